"""Conversations under way: which request may be sent after which, and what of an answer the next carries. Pure:
times are arguments, in nanoseconds since the run's start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from loadgen.drive.capture.exchange import Exchange
from loadgen.drive.requests import ScheduledRequest
from loadgen.workload import FollowUp, Prompt

AnswerOf = Callable[[Exchange], str | None]
"""The text of a complete answer; None for any other."""


class DueRequest(NamedTuple):
    place: int  # in the conversation
    due_ns: int
    at_once: bool  # it is due as soon as the answer before it has been read


class Conversation:
    """The requests of one scheduled item. A request is due `gap_s` after the last of those it follows has ended.

    A request that fails, or that its client cancels, ends the conversation: none that is not due yet is sent.
    """

    def __init__(self, first: ScheduledRequest, answer_of: AnswerOf) -> None:
        self._first = first
        self._answer_of = answer_of
        self._fields: dict[int, dict[str, Any]] = {0: first.prompt.fields}  # of those that may be continued
        self._answers: dict[int, str] = {}
        self._continued = {parent for follow_up in first.then if follow_up.continues for parent in follow_up.after}
        self._children: dict[int, list[int]] = {}
        for number, follow_up in enumerate(first.then, 1):
            for parent in follow_up.after:
                self._children.setdefault(parent, []).append(number)
        self._ended_ns: dict[int, int] = {}
        self._sent: set[int] = {0}
        self._open = 1
        self.broken = False

    def __repr__(self) -> str:
        return (
            f"<Conversation {self._first.prompt.id}: {len(self._ended_ns)} of {len(self._first.then) + 1} ended>"
        )

    @property
    def over(self) -> bool:
        """Whether no request is in flight or due."""
        return self._open == 0

    def start(self, at_ns: int) -> list[DueRequest]:
        """Further requests that follow none, counted from the start of the conversation."""
        return [
            self._due(place, at_ns) for place, follow_up in enumerate(self._first.then, 1) if not follow_up.after
        ]

    def ended(self, place: int, at_ns: int, exchange: Exchange) -> list[DueRequest]:
        """The requests that follow, now that the one at `place` has ended."""
        self._open -= 1
        answer = self._answer_of(exchange)
        if answer is None:
            self.broken = True
            return []
        self._ended_ns[place] = at_ns
        if place in self._continued:
            self._answers[place] = answer
        return [] if self.broken else list(self._freed(place))

    def abandon(self) -> None:
        """A request that was due is not sent."""
        self._open -= 1
        self.broken = True

    def _freed(self, place: int) -> Iterator[DueRequest]:
        for number in self._children.get(place, ()):
            after = self._first.then[number - 1].after
            if number not in self._sent and all(parent in self._ended_ns for parent in after):
                yield self._due(number, max(self._ended_ns[parent] for parent in after))

    def _due(self, place: int, after_ns: int) -> DueRequest:
        follow_up = self._first.then[place - 1]
        self._sent.add(place)
        self._open += 1
        at_once = bool(follow_up.after) and not follow_up.gap_s
        return DueRequest(place, after_ns + round(follow_up.gap_s * 1e9), at_once=at_once)

    def request(self, due: DueRequest) -> ScheduledRequest:
        """The request of a place, composed. Raises what its workload raises."""
        prompt = self._composed(self._first.then[due.place - 1])
        if due.place in self._continued:
            self._fields[due.place] = prompt.fields
        first = self._first
        return first._replace(
            number=first.number + due.place,
            prompt=prompt,
            due_s=due.due_ns / 1e9,
            pair=None if first.pair is None else first.pair + due.place,
            place=due.place,
        )

    def _composed(self, follow_up: FollowUp) -> Prompt:
        """The messages so far, the answer to them, and the new ones; or the prompt as it is."""
        prompt = follow_up.prompt()
        if not follow_up.continues:
            return prompt
        (parent,) = follow_up.after
        answer = {"role": "assistant", "content": self._answers[parent]}
        before = self._fields[parent]
        messages = [*before["messages"], answer, *prompt.fields["messages"]]
        fields = {**before, **prompt.fields, "messages": messages}
        return Prompt(prompt.id, prompt.endpoint, fields, prompt.expected_input)

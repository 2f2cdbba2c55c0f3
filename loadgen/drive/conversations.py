"""Conversations under way: which request may be sent after which, and what of an answer the next one carries. Pure:
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
    due_ns: int
    request: ScheduledRequest
    at_once: bool  # it is due as soon as the answer before it has been read


class Conversation:
    """The requests of one scheduled item. A request is due `gap_s` after the last of those it follows has ended.

    A request that fails, or that its client cancels, ends the conversation: none that is not due yet is sent.
    """

    def __init__(self, first: ScheduledRequest, answer_of: AnswerOf) -> None:
        self._first = first
        self._answer_of = answer_of
        self._fields: dict[int, dict[str, Any]] = {
            0: first.prompt.fields
        }  # as sent, of those that may be continued
        self._answers: dict[int, str] = {}
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
        self._answers[place] = answer
        return [] if self.broken else list(self._freed(place))

    def abandon(self) -> None:
        """A request that was due is not sent."""
        self._open -= 1
        self.broken = True

    def _freed(self, place: int) -> Iterator[DueRequest]:
        for number, follow_up in enumerate(self._first.then, 1):
            if (
                place in follow_up.after
                and number not in self._sent
                and self._ended_ns.keys() >= {*follow_up.after}
            ):
                yield self._due(number, max(self._ended_ns[parent] for parent in follow_up.after))

    def _due(self, place: int, after_ns: int) -> DueRequest:
        follow_up = self._first.then[place - 1]
        due_ns = after_ns + round(follow_up.gap_s * 1e9)
        self._sent.add(place)
        self._open += 1
        fields = self._fields[place] = self._composed(follow_up)
        prompt = Prompt(follow_up.prompt.id, follow_up.prompt.endpoint, fields, follow_up.prompt.expected_input)
        request = self._first._replace(
            number=self._first.number + place, prompt=prompt, due_s=due_ns / 1e9, place=place
        )
        return DueRequest(due_ns, request, at_once=bool(follow_up.after) and not follow_up.gap_s)

    def _composed(self, follow_up: FollowUp) -> dict[str, Any]:
        """The messages so far, the answer to them, and the new ones; or the prompt as it is."""
        if not follow_up.continues:
            return follow_up.prompt.fields
        (parent,) = follow_up.after
        answer = {"role": "assistant", "content": self._answers.pop(parent)}
        before = self._fields.pop(parent)
        messages = [*before["messages"], answer, *follow_up.prompt.fields["messages"]]
        return {**before, **follow_up.prompt.fields, "messages": messages}

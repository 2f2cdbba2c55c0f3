"""Conversations of several turns: made of a dataset's prompts, or read from a file of them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Literal

import msgspec

from corpus.bank import BYTES_PER_TOKEN
from corpus.draw import Draw
from loadgen.errors import WorkloadError
from loadgen.workload.datasets import Untimed, bounded
from loadgen.workload.files import as_object, conversations_of, lines, own_fields, path_of, prompt_fields
from loadgen.workload.model import FollowUp, Options, Prompt, Source

MOST_TURNS: Final = 1000
ALL: Final = "all"


class ThinkTime(msgspec.Struct, frozen=True):
    """The distribution of the seconds between an answer and the next turn."""

    kind: Literal["constant", "exponential", "uniform", "lognormal"]
    a: float  # the mean; of uniform the least, of lognormal the median
    b: float = 0.0  # of uniform the most, of lognormal the sigma of the logarithm

    @property
    def mean(self) -> float:
        if self.kind == "uniform":
            return (self.a + self.b) / 2
        return self.a * math.exp(self.b**2 / 2) if self.kind == "lognormal" else self.a

    def draw(self, chance: Draw) -> float:
        match self.kind:
            case "constant":
                return self.a
            case "exponential":
                return chance.exponential(self.a)
            case "uniform":
                return self.a + (self.b - self.a) * chance.unit()
            case "lognormal":
                return self.a * math.exp(self.b * chance.normal())


_THINK: Final = re.compile(r"(?:(exponential|uniform|lognormal):)?([0-9.eE+]+)(?:[-,]([0-9.eE+]+))?")
THINK_FORMS: Final = "SECONDS, exponential:MEAN, uniform:LEAST-MOST or lognormal:MEDIAN,SIGMA"


def parse_think_time(text: str) -> ThinkTime:
    """Raises WorkloadError."""
    match = _THINK.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        kind: Any = match[1] or "constant"
        a, b = float(match[2]), float(match[3] or 0)
        if (match[3] is not None) != (kind in ("uniform", "lognormal")) or max(a, b) > 86_400:
            raise ValueError
        if (kind == "uniform" and b < a) or (kind == "lognormal" and b > 5):
            raise ValueError
    except ValueError:
        raise WorkloadError(f"--think-time {text!r}: give {THINK_FORMS}, at most a day") from None
    return ThinkTime(kind, a, b)


def conversation_size(options: Options) -> tuple[float, float]:
    """The mean number of requests of a conversation, and the mean seconds between them; (1, 0) without --turns."""
    if options.turns is None:
        return 1.0, 0.0
    fewest, most = parse_turns(options.turns)
    return (fewest + most) / 2, parse_think_time(options.think_time).mean


def parse_turns(text: str) -> tuple[int, int]:
    """(fewest, most). Raises WorkloadError."""
    if text.strip() == ALL:
        return 1, MOST_TURNS
    match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", text.strip())
    fewest, most = (int(match[1]), int(match[2] or match[1])) if match is not None else (0, 0)
    if not 1 <= fewest <= most <= MOST_TURNS:
        raise WorkloadError(f"--turns {text!r}: give N, LOW-HIGH or {ALL}, 1 to {MOST_TURNS}")
    return fewest, most


class _Turns(Untimed):
    """What makes the turns of a source into conversations."""

    def __init__(self, options: Options) -> None:
        assert options.turns is not None
        self._options = options
        self._fewest, self._most = parse_turns(options.turns)
        self._think = parse_think_time(options.think_time)

    def _count(self, number: int) -> int:
        return self._fewest + Draw(self._options.seed, "turns", number).below(self._most - self._fewest + 1)

    def _gap(self, number: int, turn: int) -> float:
        return self._think.draw(Draw(self._options.seed, "think", number, turn))


class MadeConversations(_Turns):
    """The prompts of a dataset without end as turns, one after another; each answer is the model's own."""

    distinct: int | None = None

    def __init__(self, source: Source, options: Options) -> None:
        super().__init__(options)
        if options.turns == ALL:
            raise WorkloadError(
                "--turns all is for a file of conversations (sharegpt, custom); give N or LOW-HIGH"
            )
        if options.history == "file":
            raise WorkloadError("--history file needs a file of conversations (--dataset-name sharegpt or custom)")
        self.name = f"{source.name} in conversations of {options.turns} turns"
        self._source = source

    def prompt(self, number: int) -> Prompt:
        return self._source.prompt(number * self._most)

    def then(self, number: int) -> tuple[FollowUp, ...]:
        first = self.prompt(number)
        later = []
        for turn in range(1, self._count(number)):
            later.append(
                FollowUp(
                    prompt=partial(self._later, f"{first.id}#{turn + 1}", number * self._most + turn),
                    after=(turn - 1,),
                    gap_s=self._gap(number, turn),
                    continues=True,
                )
            )
        return tuple(later)

    def _later(self, name: str, number: int) -> Prompt:
        """The question of a prompt alone, without its system message and history."""
        prompt = self._source.prompt(number)
        fields = {**prompt.fields, "messages": prompt.fields["messages"][-1:]}
        return Prompt(name, prompt.endpoint, fields, prompt.expected_input)


class Turn(msgspec.Struct, frozen=True):
    """One turn of a recorded conversation."""

    messages: list[dict[str, Any]]
    answer: dict[str, Any] | None = None  # the recorded one
    output: int | None = None  # tokens
    own: dict[str, Any] = {}  # further fields of the request


class RecordedConversations(_Turns):
    """The conversations of a file, with the model's own answers or with the recorded ones."""

    def __init__(self, name: str, conversations: Sequence[tuple[str, Sequence[Turn]]], options: Options) -> None:
        super().__init__(options)
        self._conversations = [(name, turns) for name, turns in conversations if len(turns) >= self._fewest]
        if not self._conversations:
            raise WorkloadError(f"{name}: no conversation has {self._fewest} turns (--turns {options.turns})")
        self.name = name
        self.distinct: int | None = len(self._conversations)
        if not options.disable_shuffle:
            Draw(options.seed, "file").shuffle(self._conversations)

    def prompt(self, number: int) -> Prompt:
        name, turns = self._conversations[number]
        return self._prompt(name, turns[0].messages, turns[0])

    def then(self, number: int) -> tuple[FollowUp, ...]:
        name, turns = self._conversations[number]
        count = len(turns) if self._options.turns == ALL else min(self._count(number), len(turns))
        own = self._options.history == "own"
        messages = list(turns[0].messages)
        later = []
        for turn in range(1, count):
            answer = turns[turn - 1].answer
            if not own and answer is None:
                break  # what the file leaves out cannot be in a history
            messages = turns[turn].messages if own else [*messages, answer or {}, *turns[turn].messages]
            prompt = partial(self._prompt, f"{name}#{turn + 1}", messages, turns[turn])
            gap = self._gap(number, turn)
            later.append(FollowUp(prompt=prompt, after=(turn - 1,), gap_s=gap, continues=own))
        return tuple(later)

    def _prompt(self, name: str, messages: list[dict[str, Any]], turn: Turn) -> Prompt:
        size = sum(len(str(message.get("content") or "").encode()) for message in messages)
        fields = {**turn.own, **bounded({"messages": messages}, "chat", turn.output)}
        return Prompt(name, "chat", fields, round(size / BYTES_PER_TOKEN))


def sharegpt_conversations(options: Options) -> RecordedConversations:
    """Each conversation of a ShareGPT file, from its first human turn to its last."""
    path = path_of(options)
    conversations = []
    for number, raw in enumerate(conversations_of(path), 1):
        messages = []
        for turn in raw:
            value = turn.get("value") if isinstance(turn, dict) else None
            if not isinstance(value, str):
                raise WorkloadError(f'{path}: conversation {number}: each turn must have text under "value"')
            speaker = str(turn.get("from", ""))
            role = "assistant" if speaker in ("gpt", "chatgpt", "bing", "bard", "assistant", "model") else "user"
            messages.append({"role": "system" if speaker == "system" else role, "content": value})
        turns = _turns_of(messages)
        lengths = [options.sharegpt_output_len or _tokens(turn.answer) for turn in turns]
        turns = [msgspec.structs.replace(turn, output=n) for turn, n in zip(turns, lengths, strict=True)]
        if turns and all(_text(turn.messages[-1]).strip() for turn in turns):
            conversations.append((f"sharegpt/{number}", turns))
    return RecordedConversations(f"sharegpt:{path}", conversations, options)


def custom_conversations(options: Options) -> RecordedConversations:
    """Each line's messages as a conversation. Lines of a prompt are conversations of one turn."""
    path = path_of(options)
    conversations = []
    for number, line in lines(path):
        where = f"{path}:{number}"
        raw = as_object(line, where)
        messages = prompt_fields(raw, "chat", where)["messages"]
        if options.history == "own" and any(m["role"] == "tool" or m.get("tool_calls") for m in messages):
            raise WorkloadError(
                f"{where}: has tool calls, which the model's own answers would not match: give --history file"
            )
        own, output = own_fields(raw, options, where)
        turns = [msgspec.structs.replace(turn, output=output, own=own) for turn in _turns_of(messages)]
        if turns:
            conversations.append((str(raw.get("id", f"custom/{number}")), turns))
    return RecordedConversations(f"custom:{path}", conversations, options)


def _turns_of(messages: list[dict[str, Any]]) -> list[Turn]:
    """Messages cut after each answer; after each user message where there is no answer at all. Answers before the
    first question are left out."""
    answered = any(message["role"] == "assistant" for message in messages)
    turns: list[Turn] = []
    new: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] != "assistant":
            new.append(message)
            if not answered and message["role"] == "user":
                turns.append(Turn(new))
                new = []
        elif new:
            turns.append(Turn(new, message))
            new = []
    if new and any(message["role"] == "user" for message in new):
        turns.append(Turn(new))
    return turns


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else "" if content is None else str(content)


def _tokens(answer: dict[str, Any] | None) -> int | None:
    """About the length of a recorded answer; None: the server decides."""
    return None if answer is None else max(1, round(len(_text(answer).encode()) / BYTES_PER_TOKEN))

"""What a run's kind of load adds to its summary: conversations by turn, cancelled requests, models, and the
answers of both sides of an `ab`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from loadgen.analysis.definitions import Measured
from loadgen.analysis.paired import pairs_of
from loadgen.analysis.stats import PERCENTILES, Sample, Stat, describe

MOST_TURNS: Final = 20  # rows of a report; later turns are one row
SHOWN: Final = 60  # characters of an answer, around the first difference


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of one turn or one model. Statistics are of completed ones that an engine generated."""

    requests: int
    completed: int
    input_tokens: float | None  # mean, by usage
    cached_tokens: float | None  # mean: the engine's prefix cache
    output_tokens: float | None
    ttft: Stat
    tpot: Stat
    e2el: Stat


class Conversations(msgspec.Struct, frozen=True, kw_only=True):
    begun: int
    completed: int  # every request of it
    failed: int  # a request failed, and the rest was not sent
    left: int  # a client cancelled a request
    cut: int  # the run ended first
    not_sent: int  # requests of conversations that ended early
    turns: dict[str, Part]  # "1", "2", ..., and "21+" for the rest; of an `ab` "1 at a", "1 at b", ...


class Cancellations(msgspec.Struct, frozen=True, kw_only=True):
    chosen: int
    left: int  # the client cancelled it
    completed: int  # it was over before
    failed: int
    reached_first_token: int  # of those left
    after: Stat  # milliseconds from sending to the last event before leaving


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """Whether both targets of an `ab` generated the same text."""

    compared: int  # pairs in which both completed
    identical: int
    differing: int
    first_pair: int | None = None  # the first pair that differs
    at: int | None = None  # the first character that differs, from 0
    a: str = ""  # the texts around it
    b: str = ""

    @property
    def share(self) -> float:
        return self.identical / self.compared if self.compared else 0.0


class Loads(msgspec.Struct, frozen=True, kw_only=True):
    conversations: Conversations | None = None
    cancellations: Cancellations | None = None
    models: dict[str, Part] = {}
    answers: Answers | None = None


def loads_of(requests: Sequence[Measured], *, seed: int = 0) -> Loads:
    """The requests without the warm-up, in any order."""
    models = _by(requests, lambda request: request.model)
    return Loads(
        conversations=_conversations(requests, seed),
        cancellations=_cancellations(requests, seed),
        models={name: _part(part, seed) for name, part in sorted(models.items()) if name},
        answers=compare_answers(requests),
    )


def _by(requests: Iterable[Measured], key: Callable[[Measured], str]) -> dict[str, list[Measured]]:
    parts: dict[str, list[Measured]] = {}
    for request in requests:
        parts.setdefault(key(request), []).append(request)
    return parts


def _part(requests: Sequence[Measured], seed: int) -> Part:
    done = [request for request in requests if request.completed]
    fresh = [request for request in done if request.fresh]
    return Part(
        requests=len(requests),
        completed=len(done),
        input_tokens=_mean(request.prompt_tokens for request in done),
        cached_tokens=_mean(request.cached_tokens for request in done),
        output_tokens=_mean(request.output_tokens for request in done),
        ttft=_stat((request.ttft.value for request in fresh if request.ttft is not None), seed),
        tpot=_stat((request.tpot.value for request in fresh if request.tpot is not None), seed),
        e2el=_stat((request.e2e for request in fresh if request.e2e is not None), seed),
    )


def _mean(values: Iterable[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _stat(values: Iterable[float], seed: int) -> Stat:
    sample = Sample()
    for value in values:
        sample.add((value,))
    return describe(sample, PERCENTILES, seed=seed)


def _conversations(requests: Sequence[Measured], seed: int) -> Conversations | None:
    by_name = _by((request for request in requests if request.conversation), lambda request: request.conversation)
    if not by_name:
        return None
    ends = {"completed": 0, "failed": 0, "left": 0, "cut": 0}
    not_sent = 0
    for turns in by_name.values():
        ends[_end(turns)] += 1
        not_sent += turns[0].turns - len(turns)
    several = len({request.target for request in requests}) > 1
    ordered = sorted((request for request in requests if request.turn), key=lambda each: (each.turn, each.target))
    parts = _by(ordered, lambda request: _row(request.turn) + (f" at {request.target}" if several else ""))
    return Conversations(
        begun=len(by_name), not_sent=not_sent, turns={row: _part(parts[row], seed) for row in parts}, **ends
    )


def _row(turn: int) -> str:
    return str(turn) if turn <= MOST_TURNS else f"{MOST_TURNS + 1}+"


def _end(turns: Sequence[Measured]) -> str:
    """How a conversation ended."""
    if any(not turn.completed and not turn.cancelled for turn in turns):
        return "failed"
    if any(turn.left for turn in turns):
        return "left"
    return "completed" if len(turns) == turns[0].turns and all(turn.completed for turn in turns) else "cut"


def _cancellations(requests: Sequence[Measured], seed: int) -> Cancellations | None:
    chosen = [request for request in requests if request.chosen]
    if not chosen:
        return None
    left = [request for request in chosen if request.left]
    return Cancellations(
        chosen=len(chosen),
        left=len(left),
        completed=sum(request.completed for request in chosen),
        failed=sum(not request.completed and not request.cancelled for request in chosen),
        reached_first_token=sum(request.generated > 0 for request in left),
        after=_stat(
            (
                (request.end_ns - request.sent_ns) / 1e6
                for request in left
                if request.end_ns is not None and request.sent_ns is not None
            ),
            seed,
        ),
    )


def compare_answers(requests: Iterable[Measured]) -> Answers | None:
    """None where no answers were kept."""
    pairs = [(a, b) for a, b in pairs_of(requests) if a.answer is not None and b.answer is not None]
    if not pairs:
        return None
    differing = [(a, b) for a, b in pairs if a.answer != b.answer]
    answers = Answers(compared=len(pairs), identical=len(pairs) - len(differing), differing=len(differing))
    if not differing:
        return answers
    first, other = differing[0]
    a, b = first.answer or "", other.answer or ""
    at = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, at - SHOWN // 2)
    return msgspec.structs.replace(
        answers, first_pair=first.pair, at=at, a=a[start : start + SHOWN], b=b[start : start + SHOWN]
    )

"""Service-level objectives: how `--goodput` is written, and which requests met them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf, isfinite
from typing import Final

import msgspec

from loadgen.analysis.definitions import Measured, Span
from loadgen.spec import Limits

Slos = Mapping[str, float]  # name -> milliseconds


LONG_SENDING: Final = Limits().late_ms
"""Milliseconds. Where sending took longer, a client's wait begins at the first byte written."""


def _high(span: Span | None) -> float | None:
    return None if span is None else span.high


def _sending(request: Measured) -> float:
    return request.sending if request.sending > LONG_SENDING else 0.0


def _ttft(request: Measured) -> float | None:
    return None if request.ttft is None else request.ttft.high + _sending(request)


_DURATIONS: Final[Mapping[str, Callable[[Measured], float | None]]] = {
    "ttft": _ttft,
    "tpot": lambda request: _high(request.tpot),
    "e2el": lambda request: None if request.e2e is None else request.e2e + _sending(request),
    "ttft_due": lambda request: _high(request.ttft_due),
    "e2el_due": lambda request: request.e2e_due,
}
"""What each objective compares: the upper bound, so that a time known as an interval never makes a request good.
The first three are vLLM's and DistServe's (arXiv 2401.09670); `_due` counts from when the request was due. `ttft`
and `e2el` include a long sending, so that a server that does not read its socket meets no objective by that."""


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Shares are of all requests that were due and not cancelled; failed and shed ones met no objective. None
    where an objective could not be judged."""

    slos: dict[str, float]  # milliseconds
    attempted: int
    good: int | None  # met all of them
    per_second: float | None
    attainment: float | None
    by_slo: dict[str, float]  # of those that could be judged
    unmeasured: dict[str, str] = {}  # objective -> why it could not be judged


class BadGoodput(ValueError):
    """An objective that cannot be parsed; the text says what would be right."""


def parse_goodput(words: Iterable[str]) -> dict[str, float]:
    """`ttft:500 tpot:50`, separated by spaces or commas, as a mapping in milliseconds. Raises `BadGoodput`."""
    slos: dict[str, float] = {}
    for word in " ".join(words).replace(",", " ").split():
        name, colon, text = word.partition(":")
        if not colon:
            raise BadGoodput(f"goodput {word!r}: write NAME:MILLISECONDS, such as ttft:500")
        if name not in _DURATIONS:
            raise BadGoodput(f"goodput {word!r}: unknown objective {name!r}; known are {', '.join(_DURATIONS)}")
        if name in slos:
            raise BadGoodput(f"goodput {word!r}: {name} is set twice")
        slos[name] = _milliseconds(word, text)
    return slos


def _milliseconds(word: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        hint = "; give milliseconds without a unit" if text[:1].isdigit() else ""
        raise BadGoodput(f"goodput {word!r}: {text!r} is not a number{hint}") from None
    if not isfinite(value) or value <= 0:
        raise BadGoodput(f"goodput {word!r}: it must be above 0 milliseconds")
    return value


def met(request: Measured, name: str, limit: float) -> bool:
    """Whether one request met one objective. An unmeasured one is not met, except the TPOT of a single token,
    which has no gap."""
    if not request.completed:
        return False
    duration = _DURATIONS[name](request)
    return duration <= limit if duration is not None else _single(request, name)


def _single(request: Measured, name: str) -> bool:
    return name == "tpot" and request.generated == 1 and request.ttft is not None


def unmeasured(requests: Iterable[Measured], names: Iterable[str]) -> dict[str, str]:
    """The objectives of these that no completed request has a value for, and why; empty if none completed."""
    done = [request for request in requests if request.completed]
    missing = [
        name
        for name in names
        if done and all(_DURATIONS[name](request) is None and not _single(request, name) for request in done)
    ]
    return dict.fromkeys(missing, _lack(done))


def _lack(done: Sequence[Measured]) -> str:
    if all(request.empty for request in done):
        return "the server answers without any token"
    if all(request.ttft is None for request in done):
        return "the responses are no streams"
    if all(request.output_tokens is None for request in done):
        return "the server reports no usage"
    return "no response has two tokens by the server's usage"


def strain(request: Measured, slos: Slos) -> float:
    """The largest of its durations relative to their limits: at most 1 if it met all objectives; infinite if it
    failed or lacks a measure."""
    return max((_strain(request, name, limit) for name, limit in slos.items()), default=0.0)


def _strain(request: Measured, name: str, limit: float) -> float:
    if not met(request, name, limit):
        duration = _DURATIONS[name](request) if request.completed else None
        return inf if duration is None else duration / limit
    return (_DURATIONS[name](request) or 0.0) / limit


def goodput(requests: Sequence[Measured], slos: Slos, seconds: float) -> Goodput | None:
    """None without objectives."""
    if not slos:
        return None
    attempted = [request for request in requests if not request.cancelled]
    missing = unmeasured(attempted, slos)
    judged = {name: limit for name, limit in slos.items() if name not in missing}
    hits = {name: [met(request, name, limit) for request in attempted] for name, limit in judged.items()}
    good = None if missing else sum(map(all, zip(*hits.values(), strict=True)))
    n = len(attempted)
    return Goodput(
        slos=dict(slos),
        attempted=n,
        good=good,
        per_second=None if good is None else good / seconds if seconds > 0 else 0.0,
        attainment=None if good is None else good / n if n else 0.0,
        by_slo={name: sum(each) / n if n else 0.0 for name, each in hits.items()},
        unmeasured=missing,
    )

"""`ab`: the same requests at two targets, and what the second one adds, pair by pair. Its result is in
`result.json` under `loadgen.paired`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import hypot
from typing import Final

import msgspec

from loadgen.analysis.definitions import Gaps, Measured, Span
from loadgen.analysis.effect import Shift
from loadgen.analysis.stats import Bounds, Sample, Stat, describe

Pair = tuple[Measured, Measured]


def _mean_gap(gaps: Gaps | None) -> Span | None:
    """A request's ITL: its mean gap. Merged reads change it by no more than the intervals at its two ends."""
    if gaps is None or not gaps.values:
        return None
    n = len(gaps.values)
    return Span(sum(gaps.values) / n, sum(gaps.values) / n, sum(gaps.values) / n)


def _exact(value: float | None) -> Span | None:
    return None if value is None else Span(value, value, value)


PAIRED_MEASURES: Final[Mapping[str, Callable[[Measured], Span | None]]] = {
    "ttft": lambda request: request.ttft,
    "tpot": lambda request: request.tpot,
    "itl": lambda request: _mean_gap(request.itl),
    "e2el": lambda request: _exact(request.e2e),
}


class Paired(msgspec.Struct, frozen=True, kw_only=True):
    """B minus A in milliseconds, over the comparable pairs."""

    n: int
    a_p50: float | None
    b_p50: float | None
    difference: Stat
    higher: float  # share of pairs in which B took longer
    adjusted: Shift | None = None  # the difference without the effect of the order; see `_adjusted`
    second: float | None = None  # the effect of the order on the medians; below 0: the second request was faster


class Pairs(msgspec.Struct, frozen=True, kw_only=True):
    paired: int  # both completed, and an engine generated both
    shared: int  # both completed, but one response was shared, which would favour its side
    only_a: int  # pairs of which only A completed
    only_b: int
    neither: int
    measures: dict[str, Paired]


def pairs_of(requests: Iterable[Measured]) -> list[Pair]:
    """(a, b) of each complete pair, in the order in which they were due."""
    sides: dict[int, dict[str, Measured]] = {}
    for request in requests:
        if request.pair is not None:
            sides.setdefault(request.pair, {})[request.target] = request
    pairs = [(side["a"], side["b"]) for side in sides.values() if "a" in side and "b" in side]
    return sorted(pairs, key=lambda pair: min(pair[0].due_ns, pair[1].due_ns))


def comparable_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs in which both completed and no response was shared."""
    return [(a, b) for a, b in pairs if a.completed and b.completed and a.fresh and b.fresh]


def paired_differences(pairs: Sequence[Pair], read: Callable[[Measured], Span | None]) -> Sample:
    """B minus A of each pair in which both have the measure. The bounds of both are in the difference.

    Load that slows a whole pair down cancels out: that is why `ab` interleaves.
    """
    sample = Sample()
    for one, two in pairs:
        a, b = read(one), read(two)
        if a is not None and b is not None:
            exact = a.low == a.high and b.low == b.high
            sample.add((b.value - a.value,), *(() if exact else ((b.low - a.high,), (b.high - a.low,))))
    return sample


def pairs_by_order(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """(pairs that sent to A first, pairs that sent to B first)."""
    first_a = [pair for pair in pairs if (pair[0].sent_ns or 0) < (pair[1].sent_ns or 0)]
    first_b = [pair for pair in pairs if (pair[0].sent_ns or 0) >= (pair[1].sent_ns or 0)]
    return first_a, first_b


def _adjusted(pairs: Sequence[Pair], read: Callable[[Measured], Span | None]) -> tuple[Shift | None, float | None]:
    """The mean of both orders' medians, as in a crossover trial (Hills & Armitage 1979).

    The second request may find its prompt in the engine's prefix cache. That moves the medians of the two orders
    by the same amount, one down and one up, and leaves their mean. The interval is derived from theirs (MOVER).
    None below 6 of each.
    """
    middles = [describe(paired_differences(half, read), (50.0,)).at(50) for half in pairs_by_order(pairs)]
    known = [(q.value, q.interval) for q in middles if q is not None and q.value is not None and q.interval]
    if len(known) < 2:
        return None, None
    (one, at_one), (two, at_two) = known
    middle = (one + two) / 2
    low = middle - hypot(one - at_one.low, two - at_two.low) / 2
    high = middle + hypot(at_one.high - one, at_two.high - two) / 2
    return Shift(value=middle, interval=Bounds(low, high)), (one - two) / 2


def pair_up(requests: Iterable[Measured], *, seed: int = 0) -> Pairs | None:
    """Each measure's paired difference; None for a run without pairs. Intervals: order statistics for medians,
    block bootstrap over neighbouring pairs for means."""
    pairs = pairs_of(requests)
    if not pairs:
        return None
    done = [(a, b) for a, b in pairs if a.completed and b.completed]
    both = comparable_pairs(pairs)
    return Pairs(
        paired=len(both),
        shared=len(done) - len(both),
        only_a=sum(a.completed and not b.completed for a, b in pairs),
        only_b=sum(b.completed and not a.completed for a, b in pairs),
        neither=sum(not a.completed and not b.completed for a, b in pairs),
        measures={name: _paired(both, read, seed) for name, read in PAIRED_MEASURES.items()},
    )


def _paired(pairs: Sequence[Pair], read: Callable[[Measured], Span | None], seed: int) -> Paired:
    known = [(a, b) for a, b in pairs if read(a) is not None and read(b) is not None]
    sample = paired_differences(known, read)
    sides = [_median([span.value for pair in known if (span := read(pair[side])) is not None]) for side in (0, 1)]
    adjusted, second = _adjusted(known, read)
    return Paired(
        adjusted=adjusted,
        second=second,
        n=len(known),
        a_p50=sides[0],
        b_p50=sides[1],
        difference=describe(sample, seed=seed),
        higher=sum(value > 0 for value in sample.values) / len(known) if known else 0.0,
    )


def _median(values: Iterable[float]) -> float | None:
    sample = Sample()
    for value in values:
        sample.add((value,))
    median = describe(sample, (50.0,)).at(50)
    return median.value if median is not None else None

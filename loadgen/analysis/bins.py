"""A small histogram, as a terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from loadgen.analysis.format import digits
from loadgen.analysis.stats import interpolated

BINS: Final = 10


class Bin(msgspec.Struct, frozen=True):
    """Values from `low` to below `high`; the last bin has all above, and `high` is the largest value."""

    low: float
    high: float
    count: int


def histogram(values: Sequence[float], bins: int = BINS) -> list[Bin]:
    """Equal bins from the smallest value to p99, and one for what lies above; empty without values. So few
    that the ends of each differ as they are printed."""
    if not values:
        return []
    ordered = sorted(values)
    low, top, last = ordered[0], interpolated(ordered, 0.99), ordered[-1]
    while bins > 1 and not _distinct(low, top, bins):
        bins -= 1
    width = (top - low) / bins
    if not width > 0 or bins == 1:
        return [Bin(low, last, len(ordered))]
    counts = [0] * bins
    above = 0
    for value in ordered:
        if value > top:
            above += 1
        else:
            counts[min(int((value - low) / width), bins - 1)] += 1
    shown = [Bin(low + place * width, low + (place + 1) * width, count) for place, count in enumerate(counts)]
    if digits(top) == digits(last):
        return [*shown[:-1], Bin(shown[-1].low, last, shown[-1].count + above)]
    return [*shown, Bin(top, last, above)]


def _distinct(low: float, top: float, bins: int) -> bool:
    edges = [digits(low + (top - low) * place / bins) for place in range(bins + 1)]
    return len(set(edges)) == len(edges)

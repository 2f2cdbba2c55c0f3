"""A small histogram, as a terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from loadgen.analysis.stats import interpolated

BINS: Final = 10


class Bin(msgspec.Struct, frozen=True):
    """Values from `low` to below `high`; the last bin has all above, and `high` is the largest value."""

    low: float
    high: float
    count: int


def histogram(values: Sequence[float], bins: int = BINS) -> list[Bin]:
    """Equal bins from the smallest value to p99, and one for what lies above; empty without values."""
    if not values:
        return []
    ordered = sorted(values)
    low, top = ordered[0], interpolated(ordered, 0.99)
    width = (top - low) / bins
    if not width > 0:
        return [Bin(low, ordered[-1], len(ordered))]
    counts = [0] * bins
    above = 0
    for value in ordered:
        if value > top:
            above += 1
        else:
            counts[min(int((value - low) / width), bins - 1)] += 1
    shown = [Bin(low + place * width, low + (place + 1) * width, count) for place, count in enumerate(counts)]
    return [*shown, *([Bin(top, ordered[-1], above)] if above else [])]

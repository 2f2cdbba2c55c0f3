"""How two samples differ: shift, its interval, effect size, and the name of an effect of that size."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import hypot
from typing import Final, Literal

import msgspec

from loadgen.analysis.stats import Bounds

Side = Literal["lower", "higher", "unclear"]

_SIZES: Final = ((0.147, "negligible"), (0.33, "small"), (0.474, "medium"))
"""Names of |Cliff's delta| (Romano et al. 2006); beyond the last it is large."""


class Shift(msgspec.Struct, frozen=True, kw_only=True):
    """B minus A, in the measure's unit."""

    value: float
    interval: Bounds

    @property
    def side(self) -> Side:
        """The direction, or "unclear" if the interval contains 0."""
        if self.interval.high < 0:
            return "lower"
        return "higher" if self.interval.low > 0 else "unclear"


def shift(a: float, a_interval: Bounds, b: float, b_interval: Bounds) -> Shift:
    """The difference of two independent estimates and its interval, from each one's own.

    MOVER (Zou & Donner 2008; for percentiles Price & Bonett 2002): the half-widths that face each other are added
    in quadrature, as independent errors are. It needs no distribution and no samples, only what `result.json`
    keeps.
    """
    below = hypot(b - b_interval.low, a_interval.high - a)
    above = hypot(b_interval.high - b, a - a_interval.low)
    return Shift(value=b - a, interval=Bounds(b - a - below, b - a + above))


def cliffs_delta(a: Sequence[float], b: Sequence[float]) -> float | None:
    """P(B > A) - P(B < A): -1 if all of B is lower, 0 if they are equal, 1 if all of B is higher (Cliff 1993).

    None if either is empty. One sort and two bisections per value: O(n log n).
    """
    if not a or not b:
        return None
    ordered = sorted(a)
    n = len(ordered)
    more = sum(bisect_left(ordered, value) for value in b)
    less = sum(n - bisect_right(ordered, value) for value in b)
    return (more - less) / (n * len(b))


def size_of(delta: float) -> str:
    """The usual name of an effect of this size."""
    return next((word for limit, word in _SIZES if abs(delta) < limit), "large")

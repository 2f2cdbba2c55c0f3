"""Where a server saturates: stages at rising rates in, the knee and the next rate to try out. Pure, tested on
synthetic queues."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Final

import msgspec

KEEPS_UP: Final = 0.95
"""A server that completes less than this share of the requested rate falls behind: its queue grows without end."""
SLOWER: Final = 4.0
"""Ratio of a stage's median TTFT to the lightest stage's. Above it the queue is what is measured."""
ENOUGH: Final = 120
"""Random arrivals of a stage. Of simulated stages at 80 % of what one place of constant service can do, 33 % of
those of 30 arrivals looked saturated, 14 % of 60, 4 % of 120; with exponential service 47, 28 and 16 %."""
BY_CHANCE: Final = 0.6
"""A lower pace is no chance: 1.4 % of those of 30 arrivals with exponential service had one, 0.05 % of 60."""
NOTABLY: Final = 0.99
"""Share of a rate below which what was completed is named beside it."""
FINE: Final = 1.12
"""Rates closer than this factor are not told apart."""


class SweepStage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage's result. Rates in requests per second; TTFT counts from due."""

    requested: float
    pace: float  # the completed share of the requests, times `completion_ratio`
    ttft_p50_ms: float | None
    failed: float = 0.0  # share of requests
    completed: float = 0.0  # measured, the drain after the last arrival included
    requests: int = 0  # 0: unknown


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server's limit lies, in requests per second. Both None: no stage was measured."""

    kept: float | None = (
        None  # the highest rate below `over` that the server kept up with; None: not even the lowest
    )
    over: float | None = None  # the lowest rate that was too much; None: none was
    done: float | None = None  # completed per second at `kept`, where that is less

    @property
    def knee(self) -> float | None:
        """`kept`, if a higher rate was too much: without one the limit was not found."""
        return self.kept if self.over is not None else None

    def __str__(self) -> str:
        if self.over is None:
            return "nothing was measured" if self.kept is None else f"no limit found up to {self.kept:g} req/s"
        if self.kept is None:
            return f"below {self.over:g} req/s, the lowest rate tried"
        done = f" ({self.done:.3g} done/s)" if self.done else ""
        return f"{self.kept:g} req/s{done}; {self.over:g} was too much"


def completion_ratio(dues: Sequence[int], ends: Sequence[int]) -> float:
    """How fast requests ended relative to how fast they were due: 1 keeps up, at 0.5 the queue grows.

    Compares, for both, the distance between the means of two parts: the values from 10 to 50 % and from 50 to 90
    %, in any unit. So neither chance nor one long response at the end of a short stage looks like a server that
    falls behind. At most 1; 0 without values.
    """
    return min(_spread(dues) / _spread(ends), 1.0) if dues and ends else 0.0


def _spread(moments: Sequence[int]) -> float:
    ordered = sorted(moments)
    cut, half = len(ordered) // 10, len(ordered) // 2
    early, late = ordered[cut:half], ordered[len(ordered) - half : len(ordered) - cut]
    return max(fmean(late) - fmean(early), 1.0) if half > cut else 1.0


def saturated(stage: SweepStage, base_ms: float | None) -> bool:
    if stage.pace < KEEPS_UP or stage.failed > 1 - KEEPS_UP or stage.ttft_p50_ms is None:
        return True
    return base_ms is not None and stage.ttft_p50_ms > base_ms * SLOWER


def base_of(stages: Sequence[SweepStage]) -> float | None:
    """TTFT without a queue: the lightest stage's, in milliseconds."""
    known = [stage for stage in stages if stage.ttft_p50_ms is not None]
    return min(known, key=lambda stage: stage.requested).ttft_p50_ms if known else None


def unsteady_warning(stages: Sequence[SweepStage]) -> str | None:
    """A warning if the lightest stage's median TTFT is over twice a heavier one's: something other than load
    slowed the server, so the other stages were judged too generously. None otherwise."""
    known = sorted((stage.requested, stage.ttft_p50_ms) for stage in stages if stage.ttft_p50_ms)
    if len(known) < 2:
        return None
    (light, slow), (heavy, quick) = known[0], min(known[1:], key=lambda stage: stage[1])
    if slow <= 2 * quick:
        return None
    return (
        f"the lightest rate was slower than a heavier one (TTFT p50 {slow:,.0f} ms at {light:.4g}/s, {quick:,.0f} "
        f"ms at {heavy:.4g}/s): something other than load slowed the server, and its limit may be lower"
    )


def find_limit(stages: Sequence[SweepStage]) -> Limit:
    """The highest requested rate below the first saturated one, and that one."""
    base = base_of(stages)
    kept: float | None = None
    done: float | None = None
    for stage in sorted(stages, key=lambda stage: stage.requested):
        if saturated(stage, base):
            return Limit(kept=kept, over=stage.requested, done=done)
        kept = stage.requested
        done = stage.completed if 0 < stage.completed < NOTABLY * kept else None
    return Limit(kept=kept, done=done)


def chance_warning(stages: Sequence[SweepStage]) -> str | None:
    """A warning if so few random arrivals decided what was too much that chance may have. None otherwise."""
    over = find_limit(stages).over
    few = next((stage for stage in stages if stage.requested == over and 0 < stage.requests < ENOUGH), None)
    if few is None or few.pace < BY_CHANCE or few.failed > 1 - KEEPS_UP:
        return None
    return (
        f"{few.requested:.4g} req/s was too much by {few.requests} requests at random times: with fewer than "
        f"{ENOUGH} chance alone may say so; raise --stage-seconds, or give --burstiness inf"
    )


def next_rate(stages: Sequence[SweepStage], *, start: float, limit: float, refine: bool = True) -> float | None:
    """The rate to try next: doubled until one is saturated, then the geometric mean of the gap; None: done.

    `limit` is the highest rate that may be tried, in requests per second.
    """
    if not stages:
        return start
    base = base_of(stages)
    bad = [stage.requested for stage in stages if saturated(stage, base)]
    if not bad:
        highest = max(stage.requested for stage in stages)
        return None if highest >= limit else min(highest * 2, limit)
    low, high = find_limit(stages).kept, min(bad)
    if low is None:
        lower = high / 4
        return lower if len(stages) < 4 else None
    if not refine or high / low <= FINE**2:
        return None
    return float((low * high) ** 0.5)

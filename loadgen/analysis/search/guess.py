"""Roughly where the limit is: a posterior of it by the stages so far, each of which counts for as many independent
requests as its batches show. A guide to the next load, never an answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import ceil, exp, log
from typing import Final, NamedTuple

from loadgen.analysis.search.stage import Stage
from loadgen.analysis.stats import design_effect

SLOPES: Final = (5.0, 12.0, 30.0, 100.0)
"""Of the logit of the share of bad requests by the logarithm of the load."""
FINE: Final = 0.03
REACH: Final = log(8)
"""The limit may be so far from the loads that were tried."""
CLUMPED: Final = 5.0
"""Requests that count as one at least: late ones come in bursts."""
OVERLOAD: Final = 0.5
"""Share of bad requests that an overloaded server has at least, if it is overloaded for long."""
FLOORS: Final = (0.04, 0.5, 0.9)
"""Shares of requests, relative to what is allowed, that are bad at any load: without them a few at a low load
would seem to say that it is near the limit."""
MOST_GOOD: Final = 6e-6
"""The least share of good requests that is believed, so that no single stage decides alone."""


class Guess(NamedTuple):
    """The middle and a range that holds the limit four times out of five."""

    load: float
    low: float
    high: float


def guess(stages: Sequence[Stage], allowed: float) -> Guess:
    evidence: dict[int, tuple[float, float]] = {}  # by the load's place on the grid
    for stage in stages:
        bad, good = _counts(stage, allowed)
        place = round(log(stage.load) / FINE)
        before = evidence.get(place, (0.0, 0.0))
        evidence[place] = before[0] + bad, before[1] + good
    begin, end = min(evidence) - ceil(REACH / FINE), max(evidence) + ceil(REACH / FINE)
    heights: list[list[float]] = []
    for slope in SLOPES:
        for floor in FLOORS:
            curve = _curve(slope, floor * allowed, log((1 - floor) * allowed / (1 - allowed)), end - begin)
            heights.append(
                [
                    sum(
                        bad * curve[at - place][0] + good * curve[at - place][1]
                        for at, (bad, good) in evidence.items()
                    )
                    for place in range(begin, end + 1)
                ]
            )
    top = max(map(max, heights))
    masses = list(accumulate(sum(exp(height - top) for height in each) for each in zip(*heights, strict=True)))
    low, middle, high = (
        next(place for place, mass in enumerate(masses) if mass >= share * masses[-1]) for share in (0.1, 0.5, 0.9)
    )
    return Guess(*(exp((begin + place) * FINE) for place in (middle, low, high)))


def _curve(slope: float, floor: float, level: float, reach: int) -> dict[int, tuple[float, float]]:
    """For each distance of a load from the limit, on the grid: the logarithms of the shares of bad and of good
    requests, if the logit of what load makes bad is `level` at the limit."""
    curve = {}
    for distance in range(-reach, reach + 1):
        by_load = 1 / (1 + exp(min(max(-level - slope * distance * FINE, -12.0), 12.0)))
        share = floor + (1 - floor) * by_load
        curve[distance] = log(share), log(max(1 - share, MOST_GOOD))
    return curve


def _counts(stage: Stage, allowed: float) -> tuple[float, float]:
    """Effective numbers of bad and of good requests. A stage that met the objectives but was too short for its
    queue says nothing."""
    counts = [end - start for start, end in stage.cuts]
    hits = [sum(stage.bad[start:end]) for start, end in stage.cuts]
    n = sum(counts)
    if not n:
        return 0.0, 0.0
    effective = n / max(design_effect(counts, hits), min(CLUMPED, n / 4), 1.0)
    share = sum(hits) / n
    if stage.overloaded:
        share = max(share, OVERLOAD)
    elif not stage.settled and share <= allowed:
        return 0.0, 0.0
    return share * effective, (1 - share) * effective

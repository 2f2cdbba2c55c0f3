"""The search for the most users: whole numbers, each judged by all of its stages together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from loadgen.analysis.search.answer import Found, Plan, broken
from loadgen.analysis.search.fit import wilson
from loadgen.analysis.search.stage import Stage
from loadgen.analysis.stats import design_effect

SURE: Final = 2.5
"""Standard errors beyond which a number of users met or missed the objectives."""
WANTED: Final = 10.0
"""Allowed misses of a first stage, if it need not take longer than FAR of the time."""
SHORT: Final = 1 / 60
FAR: Final = 1 / 25
LONGEST: Final = 1 / 5
"""Shares of the time limit: of a first stage at least and at most, and of a repeated one at most."""
MOST_REQUESTS: Final = 1_000_000


class Users:
    """Doubles the number until one is missed, then halves between; a number that is neither surely met nor surely
    missed gets longer stages."""

    def __init__(self, *, allowed: float, precision: float, start: float, top: float, limit: float, least: float):
        self._allowed = allowed
        self._precision = precision
        self._start = max(round(start), 1)
        self._top = int(top)
        self._limit = limit
        self._least = least

    def plan(self, stages: Sequence[Stage]) -> Plan | None:
        """The next stage; None if the answer is known."""
        if not stages:
            return self._first(self._start, stages)
        met, missed = self.bounds(stages)
        if missed is None:
            highest = max(int(stage.load) for stage in stages)
            suspect = max((int(s.load) for s in stages if s.share > self._allowed), default=None)
            if met == self._top:
                return None
            if suspect is None and highest < self._top:
                return self._first(min(highest * 2, self._top), stages)
            return self._again(suspect or highest, stages)
        if missed <= 1 or missed - (met or 0) <= 1 or self._narrow(met, missed):
            return None
        return self._between(met or 0, missed, stages)

    def _between(self, met: int, missed: int, stages: Sequence[Stage]) -> Plan:
        """The middle of what is open; of numbers that were run and are still open, the one with the least time,
        unless the numbers between it and a known end were never run."""
        run = sorted({int(stage.load) for stage in stages if met < stage.load < missed})
        if not run:
            return self._first((met + missed) // 2, stages)
        leaning = self._leaning(met, missed, stages)
        # Between the highest that leans to be met and the lowest that leans to be missed.
        low = max((n for n in run if n <= leaning), default=met)
        high = min((n for n in run if n > leaning), default=missed)
        if high - low > 1:
            return self._first((low + high) // 2, stages)
        open_ends = [n for n in (low, high) if n in run]
        return self._again(min(open_ends, key=lambda n: _seconds(stages, n)), stages)

    def _first(self, users: int, stages: Sequence[Stage]) -> Plan:
        short, most = max(self._least, self._limit * SHORT), max(self._least, self._limit * FAR)
        pace = [len(stage) / stage.seconds / stage.load for stage in stages if len(stage) and stage.seconds > 0]
        needed = WANTED / self._allowed / (pace[-1] * users) if pace else short
        return Plan(float(users), MOST_REQUESTS, False, min(max(needed, short), most))

    def _again(self, users: int, stages: Sequence[Stage]) -> Plan:
        seconds = max(min(_seconds(stages, users), self._limit * LONGEST), self._least)
        return Plan(float(users), MOST_REQUESTS, True, seconds)

    def bounds(self, stages: Sequence[Stage]) -> tuple[int | None, int | None]:
        """The most users that surely met the objectives, and the fewest that surely missed them.

        The share of misses rises with the number, so stages with more users count for a number that met, and
        stages with fewer for one that missed."""
        loads = sorted({int(stage.load) for stage in stages})
        missed = next((n for n in loads if self._surely(stages, [m for m in loads if m <= n], missed=True)), None)
        below = [n for n in loads if missed is None or n < missed]
        met = next(
            (n for n in reversed(below) if self._surely(stages, [m for m in below if m >= n], missed=False)), None
        )
        return met, missed

    def _surely(self, stages: Sequence[Stage], loads: list[int], *, missed: bool) -> bool:
        """By the stages of the number itself, or together with those of its neighbours on one side."""
        if missed:
            loads = loads[::-1]
        for count in range(1, len(loads) + 1):
            pooled = [stage for stage in stages if int(stage.load) in loads[:count]]
            low, high = _interval(pooled)
            if low > self._allowed if missed else high < self._allowed:
                return True
        return False

    def _leaning(self, met: int, missed: int, stages: Sequence[Stage]) -> int:
        """The most users below the ones that surely missed whose stages together are within what is allowed."""
        best = met
        for n in sorted({int(stage.load) for stage in stages if met < stage.load < missed}):
            pooled = [stage for stage in stages if int(stage.load) == n]
            requests = sum(len(stage) - stage.skipped for stage in pooled)
            bad = sum(sum(stage.bad[stage.skipped :]) for stage in pooled)
            if bad <= self._allowed * requests:
                best = n
        return best

    def _narrow(self, met: int | None, missed: int) -> bool:
        """The answer is the lower end, so that the whole interval counts, not a half of it."""
        return met is not None and missed - 1 - met <= self._precision * met

    def found(self, known: Found, stages: Sequence[Stage]) -> Found:
        met, missed = self.bounds(stages)
        known = replace(known, met=met, missed=missed)
        loads = [int(stage.load) for stage in stages]
        if missed is None and all(stage.share <= self._allowed for stage in stages):
            return replace(known, state="no limit" if met is not None and met >= self._top else "all met")
        if met is None and (missed == 1 or all(stage.share > self._allowed for stage in stages)):
            return broken(
                replace(known, state="not met" if missed == 1 else "all missed"), stages, min(loads), self._allowed
            )
        load = self._leaning(met or 0, missed or max(loads) + 1, stages)
        if missed is not None and missed - load > 1 and load not in loads:
            load = met or 1
        load = max(load, 1)
        sure = met is not None and missed is not None and (missed - met <= 1 or self._narrow(met, missed))
        high = None if missed is None else missed - 1
        answer = replace(known, state="found" if sure else "unsure", load=float(load), low=met, high=high)
        return broken(answer, stages, load + 1, self._allowed)


def _seconds(stages: Sequence[Stage], users: int) -> float:
    return sum(stage.seconds for stage in stages if int(stage.load) == users)


def _interval(stages: Sequence[Stage]) -> tuple[float, float]:
    """Of the share of bad requests of these stages together, by batches."""
    counts = [end - start for stage in stages for start, end in stage.cuts]
    hits = [sum(stage.bad[start:end]) for stage in stages for start, end in stage.cuts]
    if not sum(counts):
        return 0.0, 1.0
    effective = max(sum(counts) / design_effect(counts, hits), 1.0)
    return wilson(sum(hits) / sum(counts) * effective, effective, SURE)

"""The search for the highest rate: doubles or quarters it, closes in by a posterior, then runs longer and longer
stages beside the estimate, on both its sides in turn."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp, inf, log, sqrt
from typing import Final

from msgspec.structs import replace

from loadgen.analysis.search.answer import Found, Plan, State, broken, narrow
from loadgen.analysis.search.controls import Queue, controls_of
from loadgen.analysis.search.crossing import Estimate, estimate
from loadgen.analysis.search.guess import Guess, guess
from loadgen.analysis.search.stage import Stage

SURE: Final = 3.0
"""Standard errors beyond which a stage by itself met or missed the objectives."""
STEPS: Final = (0.25, 2.0)
"""Factors between one load and the next, far from the limit."""
CLOSE: Final = 1.3
WIDE: Final = 2.5
"""Ratio of the ends of the guess's range below which stages are near the limit; once some were, they remain there
up to a wider one."""
APART: Final = (1.5, 1.25)
"""Near the limit stages alternate between loads at which the odds of a bad request are this factor below and above
what is allowed: the first ones show how they depend on the load, later ones are nearer, where any curve is
straight."""
STEP: Final = (0.01, 0.06)
"""The least and the most that such a load is from the estimate, relatively."""
GROWTH: Final = 1.5
"""Of the number of requests, from one stage near the limit to the next."""
FEWEST: Final = 24
"""Requests of a stage at a low rate, where more would take too long."""
FAR: Final = 1 / 40
NEAR: Final = 1 / 6
"""Shares of the time limit that a stage far from the limit, and one near it, may take."""
EVIDENCE: Final = 40
"""Allowed misses in all stages near the limit together before there is an answer."""
ROUNDS: Final = 4
"""Stages near the limit before there is an answer."""
TWICE: Final = 2
"""Stages in a row after which the interval must be narrow, since one may be so by chance."""
OUTSIDE: Final = 1.1
"""An estimate farther than this factor from every load that was run is no estimate."""
BESIDE: Final = 1.1
"""Stages whose loads are within this factor of the estimate are beside it."""
DOUBT: Final = 1.5
"""Factor by which their share may be on the wrong side of what is allowed, by chance in their arrivals."""
BEYOND: Final = 1.02
"""Factor up to which what an overloaded server answers in a stage may be too little by chance."""
AGREE: Final = 1.05
"""Factor between what two overloaded stages answered, up to which that is what the server can give."""
SAME: Final = 0.05
"""Stages whose loads differ by less are tries of one load."""
AGAIN: Final = 2  # times as many requests has the next try of a load
ALONE: Final = 0.1
"""Mean requests in flight below which requests do not delay each other, so that no lower load would be better."""
AT_TOP: Final = 0.99


class Rates:
    """Plans and judges stages of Poisson arrivals."""

    def __init__(self, *, allowed: float, precision: float, start: float, top: float, limit: float, least: float):
        self._allowed = allowed
        self._precision = precision
        self._start = start
        self._top = top
        self._limit = limit
        self._least = least
        self._few = max(100, ceil(6 / allowed))  # requests of a stage far from the limit
        self._size = max(240, ceil(12 / allowed))  # of the next one near it
        self._near: set[float] = set()
        self._queue = Queue()
        self._estimate: Estimate | None = None
        self._narrow = 0
        self._passed = False
        self._before = 0  # stages before the first that met the objectives

    def add(self, stages: Sequence[Stage]) -> None:
        """Called when a stage was added to these."""
        stage = stages[-1]
        if not self._passed and stage.settled and stage.share <= self._allowed:
            # Those before it missed, perhaps because the server was not warm yet.
            self._passed, self._before = True, len(stages) - 1
        near = [each for each in stages if each.load in self._near and not each.aborted]
        if stage.load in self._near and not stage.aborted:
            self._size = ceil(self._size * GROWTH)
        self._estimate = self._estimated(near, stages[self._before :])
        enough = sum(map(len, near)) * self._allowed >= EVIDENCE and len(near) >= ROUNDS
        self._narrow = self._narrow + 1 if enough and self._sure(self._estimate, near) else 0

    def _sure(self, now: Estimate | None, near: Sequence[Stage]) -> bool:
        """Whether the interval is narrow, and stages on both sides of the estimate do not contradict it."""
        if now is None or now.unsettled or not narrow(now.load, now.low, now.high, self._precision):
            return False
        below = [stage for stage in near if now.load / BESIDE < stage.load < now.load]
        above = [stage for stage in near if now.load < stage.load < now.load * BESIDE]
        return bool(below and above) and _pooled(below) / DOUBT <= self._allowed <= _pooled(above) * DOUBT

    def _estimated(self, near: Sequence[Stage], warm: Sequence[Stage]) -> Estimate | None:
        loads = [stage.load for stage in near]
        if len(set(loads)) < 2:
            return None
        about = self._estimate.load if self._estimate is not None else guess(warm, self._allowed).load
        reference = min(max(about, min(loads)), max(loads))
        controls = controls_of(near, self._queue.service(near, reference))
        now = estimate(controls, self._allowed, reference)
        if now is None or not min(loads) / OUTSIDE < now.load < max(loads) * OUTSIDE:
            return None
        return now if now.load <= self._ceiling(warm) else None

    def plan(self, stages: Sequence[Stage]) -> Plan | None:
        """The next stage; None if the answer is known."""
        if self._narrow >= TWICE:
            return None
        plan = self._planned(stages)
        if plan is not None and plan.near:
            self._near.add(plan.load)
        return plan

    def _planned(self, stages: Sequence[Stage]) -> Plan | None:
        if not stages:
            return self._far(self._start, stages)
        warm = stages[self._before :]
        low, high = min(stage.load for stage in warm), max(stage.load for stage in warm)
        about = guess(warm, self._allowed)
        if self._all_met(warm):
            top = self._at_top(stages)
            if top is not None:
                done = top.met(self._allowed, SURE)
                return None if done else Plan(self._rounded(top.load, stages), 2 * len(top), False)
            return self._far(min(max(about.load, high * 1.3), high * STEPS[1], self._top), stages)
        lowest = min(warm, key=lambda stage: stage.load)
        if self._floor(lowest):
            if lowest.lost(self._allowed, SURE):
                return None
            return Plan(self._rounded(low, stages), 2 * len(lowest), False)
        if self._estimate is not None and about.high / about.low < WIDE:
            aim = self._aim(self._estimate, len(self._near))
            return self._close(min(aim, self._ceiling(warm)), stages)
        load = min(max(about.load, low * STEPS[0]), high * STEPS[1], self._top, self._ceiling(warm))
        if about.high / about.low > (WIDE if len(self._near) >= ROUNDS else CLOSE):
            return self._far(load, stages)
        return self._close(self._beside(about, stages, self._ceiling(warm)), stages)

    def _all_met(self, warm: Sequence[Stage]) -> bool:
        return not any(stage.share > self._allowed or stage.aborted or stage.overloaded for stage in warm)

    def _floor(self, stage: Stage) -> bool:
        """Whether a lower load cannot be better."""
        return stage.overlap <= ALONE and (stage.aborted or stage.share > self._allowed)

    def _at_top(self, stages: Sequence[Stage]) -> Stage | None:
        """The longest stage at the highest load that may be tried; a rate is used once, so those just below it
        count."""
        return max((stage for stage in stages if stage.load >= AT_TOP * self._top), key=len, default=None)

    def _ceiling(self, stages: Sequence[Stage]) -> float:
        """No limit is above it: what an overloaded server answered in a second (with the failures that are
        allowed, if it refuses), however long a queue may grow before an objective is missed. Infinite if the two
        longest overloaded stages do not agree, or if a higher load met the objectives: then the server gives less
        when it is overloaded."""
        overloaded = [
            stage
            for stage in stages
            if 0 < stage.served < stage.load / OUTSIDE
            and stage.due[-1] - stage.due[0] >= self._least
            and stage.lost(self._allowed, SURE)
        ]
        served = [
            stage.served / (1 - self._allowed if stage.failures else 1)
            for stage in sorted(overloaded, key=len, reverse=True)[:2]
        ]
        if len(served) < 2 or max(served) > min(served) * AGREE:
            return inf
        ceiling = max(served) * BEYOND
        beyond = (stage for stage in stages if stage.load in self._near and stage.load > ceiling)
        return inf if any(stage.settled and stage.share <= self._allowed for stage in beyond) else ceiling

    def _aim(self, now: Estimate, rounds: int) -> float:
        """A load beside the estimate, on the side that has less."""
        step = min(max(log(APART[rounds >= ROUNDS]) / max(now.slope, 1.0), STEP[0]), STEP[1])
        return now.load * exp(-step if now.balance[0] <= now.balance[1] else step)

    def _beside(self, about: Guess, stages: Sequence[Stage], ceiling: float) -> float:
        """Without an estimate: around the middle of the guess."""
        middle = min(about.load, ceiling / BEYOND)
        above = sum(stage.load in self._near and stage.load > middle for stage in stages)
        below = sum(stage.load in self._near and stage.load <= middle for stage in stages)
        step = min(max(log(about.high / about.low) / 2, STEP[0]), STEP[1])
        return min(middle * exp(step if above < below else -step), ceiling)

    def _far(self, load: float, stages: Sequence[Stage]) -> Plan:
        brief = max(FEWEST, int(load * self._limit * FAR))
        tried = [len(each) for each in stages if abs(log(each.load / load)) < SAME and not each.aborted]
        requests = max(min(self._few, brief), AGAIN * max(tried, default=0), ceil(self._least * load))
        return Plan(self._rounded(load, stages), min(requests, self._most(load)), bool(tried))

    def _most(self, load: float) -> int:
        return max(FEWEST, int(load * self._limit * NEAR), ceil(self._least * load))

    def _close(self, load: float, stages: Sequence[Stage]) -> Plan:
        requests = min(max(self._size, ceil(self._least * load)), self._most(load))
        return Plan(self._rounded(min(load, self._top), stages), requests, True)

    def _rounded(self, load: float, stages: Sequence[Stage]) -> float:
        """To five digits, each rate once, since stages are named by it."""
        used = {stage.load for stage in stages}
        while (rounded := float(f"{load:.5g}")) in used:
            load *= 1 - 1e-4
        return rounded

    def _surely(self, stages: Sequence[Stage]) -> tuple[float | None, float | None]:
        """The highest load that a stage surely met, below the lowest one that a stage surely missed."""
        warm = [stage for stage in stages[self._before :] if not stage.aborted]
        missed = min((stage.load for stage in warm if stage.lost(self._allowed, SURE)), default=None)
        met = max(
            (each.load for each in warm if each.met(self._allowed, SURE) and each.load < (missed or inf)),
            default=None,
        )
        return met, missed

    def found(self, known: Found, stages: Sequence[Stage]) -> Found:
        met, missed = self._surely(stages)
        known = replace(known, met=met, missed=missed)
        warm, now = stages[self._before :], self._estimate
        loads = [stage.load for stage in stages]
        if now is not None:
            # An end beyond a factor of two is no more than a guess by a curve that holds near the limit only.
            low = now.low if now.low > now.load / 2 else met
            high = now.high if now.high < now.load * 2 else missed
            state: State = "found" if self._narrow >= TWICE else "unsure"
            answer = replace(known, state=state, load=now.load, low=low, high=high, controlled=True)
            return broken(answer, stages, now.load, self._allowed)
        if self._all_met(warm):
            top = self._at_top(stages)
            sure = top is not None and top.met(self._allowed, SURE)
            return replace(known, state="no limit" if sure else "all met")
        if all(stage.aborted or stage.share > self._allowed for stage in warm):
            lowest = min(warm, key=lambda stage: stage.load)
            sure = self._floor(lowest) and lowest.lost(self._allowed, SURE)
            return broken(
                replace(known, state="not met" if sure else "all missed"), stages, min(loads), self._allowed
            )
        load = min(max(guess(warm, self._allowed).load, min(loads)), max(loads))
        most = self._ceiling(warm) / BEYOND
        if load > most:  # the limit is between what was surely met and what the server can give
            load = sqrt((met or most) * most)
        ends = (
            met if met is not None and met <= load else None,
            missed if missed is not None and missed >= load else None,
        )
        return broken(
            replace(known, state="unsure", load=load, low=ends[0], high=ends[1]), stages, load, self._allowed
        )


def _pooled(stages: Sequence[Stage]) -> float:
    """The share of bad requests of these stages together, without their beginnings."""
    bad = sum(sum(stage.bad[stage.skipped :]) for stage in stages)
    return bad / max(sum(len(stage) - stage.skipped for stage in stages), 1)

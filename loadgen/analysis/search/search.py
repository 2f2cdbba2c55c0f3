"""The search for the highest load that meets objectives, as a state machine: it says which stage to run next, and
takes its result. No clock, no I/O."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from loadgen.analysis.search.answer import By, Found, Plan, broken_at
from loadgen.analysis.search.rates import Rates
from loadgen.analysis.search.stage import Stage
from loadgen.analysis.search.users import Users

DEAD: Final = 2
"""Stages in a row without one answer, after which the server has failed and the search ends."""
WORTH: Final = 1 / 5
"""Share of a planned stage that there must be time for."""


class Search:
    """`next()` is the stage to run, or None; `add()` takes its result; `found()` is what is known so far.

    `attainment`: the share of requests that must meet all objectives. `precision`: the half width of the 95 %
    interval, relative to the load, at which the search is done. `start`, `top`: the first and the highest load to
    try. `seconds`: the search's time limit, the sum of its stages' seconds. `least`: seconds that a stage lasts at
    least.
    """

    def __init__(
        self,
        *,
        attainment: float,
        precision: float,
        start: float,
        top: float,
        seconds: float,
        least: float = 0.0,
        by: By = "rate",
    ) -> None:
        self._by: By = by
        self._attainment = attainment
        self._precision = precision
        self._limit = seconds
        kind = Users if by == "users" else Rates
        self._kind: Users | Rates = kind(
            allowed=1 - attainment, precision=precision, start=start, top=top, limit=seconds, least=least
        )
        self.stages: list[Stage] = []

    @property
    def elapsed(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    def add(self, stage: Stage) -> None:
        self.stages.append(stage)
        if isinstance(self._kind, Rates):
            self._kind.add(self.stages)

    def next(self) -> Plan | None:
        left = self._limit - self.elapsed
        if left <= 0 or self._dead:
            return None
        plan = self._kind.plan(self.stages)
        if plan is None:
            return None
        needed = plan.requests / plan.load if self._by == "rate" else plan.seconds
        if self.stages and needed > left:
            if left < WORTH * needed:
                return None
            plan = plan._replace(requests=max(int(plan.requests * left / needed), 1), seconds=left)
        return plan

    @property
    def _dead(self) -> bool:
        return len(self.stages) >= DEAD and all(stage.dead for stage in self.stages[-DEAD:])

    def found(self) -> Found:
        """The answer by the stages so far."""
        known = Found(
            state="nothing",
            by=self._by,
            attainment=self._attainment,
            precision=self._precision,
            seconds=self.elapsed,
            requests=sum(len(stage) for stage in self.stages),
            stages=len(self.stages),
        )
        if not self.stages:
            return known
        loads = [stage.load for stage in self.stages]
        known = replace(known, tried=(min(loads), max(loads)))
        if self._dead:
            met = [stage.load for stage in self.stages if not stage.dead and stage.share <= 1 - self._attainment]
            return broken_at(replace(known, state="failed", load=max(met, default=None)), self.stages[-1])
        return self._kind.found(known, self.stages)

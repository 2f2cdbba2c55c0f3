"""The context that every fault gets: the stage, the random source, and the prompts in use."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ops.chaos.stage import EngineChild, Stage
from ops.chaos.wire import Ask

ALL_DOWN: Final = 0.05  # share of engine faults that may leave no engine undisturbed


@dataclass(slots=True)
class Chaos:
    """The context of a fault. `tags`: prompts that the load repeats."""

    stage: Stage
    pick: random.Random
    tags: Sequence[Ask]
    long: float = 0.0  # seconds of a long outage of an engine
    longs: int = 0  # how many long outages are left

    def engine(self) -> EngineChild | None:
        """An undisturbed engine, such that another one remains; None if there is none."""
        disturbed = self.stage.disturbed()
        well = [engine for engine in self.stage.engines if engine.name not in disturbed]
        if len(well) < 2 and not (well and self.pick.random() < ALL_DOWN):
            return None
        return self.pick.choice(well)


Fault = Callable[[Chaos], Awaitable[str]]
"""Causes the fault and undoes it. Returns a description, empty if there was no target."""

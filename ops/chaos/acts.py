"""The context that every fault gets: the stage, the random source, and the prompts in use."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ops.chaos.stage import EngineChild, Stage
from ops.chaos.wire import Ask

ALL_DOWN: Final = 0.05  # share of engine faults that may leave no engine well


@dataclass(slots=True)
class Chaos:
    """What a fault acts on and draws from. `tags`: prompts that the load asks for again and again."""

    stage: Stage
    pick: random.Random
    tags: Sequence[Ask]
    long: float = 0.0  # seconds of an engine's long end
    longs: int = 0  # how many such ends there are

    def engine(self) -> EngineChild | None:
        """One that suffers nothing now, so that another remains well; none where there is no such."""
        disturbed = self.stage.disturbed()
        well = [engine for engine in self.stage.engines if engine.name not in disturbed]
        if len(well) < 2 and not (well and self.pick.random() < ALL_DOWN):
            return None
        return self.pick.choice(well)


Fault = Callable[[Chaos], Awaitable[str]]
"""Makes the fault and undoes it. Gives a word on what it was; empty where there was nothing to do it to."""

"""What a search plans, and what it has found: data."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from loadgen.analysis.search.stage import Stage

State = Literal["found", "unsure", "no limit", "not met", "all met", "all missed", "failed", "nothing"]
By = Literal["rate", "users"]


class Plan(NamedTuple):
    """A stage to run: the load, its number of requests (of users: the most), whether it is near the limit, and
    for how many seconds users send."""

    load: float
    requests: int
    near: bool
    seconds: float = inf


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a search has found.

    `state`: "found"; "unsure": the time ended before the interval was as narrow as asked; "no limit": the highest
    load that was allowed still meets the objectives; "not met": the lowest one does not; "all met", "all missed":
    every load until the time ended did so; "failed": the server gave no answer any more; "nothing": no stage
    ended. `load`, `low`, `high`: the estimate and its 95 % interval; `met`, `missed`: the highest load at which a
    stage by itself surely met the objectives, and the lowest at which one surely missed them. `broke`: for each
    objective the share of requests that met it at the lowest load above the limit that was measured; `first`: the
    one that fewest met; `failures`: the share of requests that failed there, by kind; `fault`: why the generator
    itself may be what was slow there. `seconds` and `requests` are of all stages.
    """

    state: State
    by: By
    attainment: float
    precision: float
    load: float | None = None
    low: float | None = None  # None: this end is not known
    high: float | None = None
    met: float | None = None
    missed: float | None = None
    tried: tuple[float, float] | None = None  # the lowest and the highest load
    broke: dict[str, float] = {}
    broke_at: float | None = None
    first: str | None = None
    failures: dict[str, float] = {}
    fault: str = ""
    seconds: float = 0.0
    requests: int = 0
    stages: int = 0
    controlled: bool = False  # whether the luck of the arrivals was subtracted by simulated servers


def broken(found: Found, stages: Sequence[Stage], load: float, allowed: float) -> Found:
    """With the shares of requests that met each objective just above a load."""
    above = [stage for stage in stages if stage.load >= load and stage.share > allowed and stage.missed]
    if not above:
        return found
    return broken_at(found, min(above, key=lambda stage: stage.load))


def broken_at(found: Found, stage: Stage) -> Found:
    shares = {name: 1 - count / len(stage) for name, count in stage.missed.items()}
    return replace(
        found,
        broke=shares,
        broke_at=stage.load,
        first=min(shares, key=lambda name: shares[name], default=None),
        failures={kind: count / len(stage) for kind, count in stage.failures.items()},
        fault=stage.fault,
    )


def narrow(load: float, low: float, high: float, precision: float) -> bool:
    """Whether the interval's half width is as small as asked."""
    return (high - low) / 2 <= precision * load

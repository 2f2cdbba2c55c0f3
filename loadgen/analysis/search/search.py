"""The search for the highest load that meets objectives, as a state machine: it says which stage to run next, and
takes its result. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp, inf, log
from typing import Final, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from loadgen.analysis.search.fit import Line, Row, crossing, fitted, student, wilson
from loadgen.analysis.search.queue import load_at, tail, waits
from loadgen.analysis.search.stage import CERTAIN, Stage

SURE: Final = 3.0
"""Standard errors beyond which a stage by itself met or missed the objectives."""
DOUBTFUL: Final = 1.5
"""Factor up to which a share above what is allowed may be chance."""
STEP: Final = 1.2
"""Largest factor between neighbouring loads near the limit, where the lower one was run for a short time only."""
ABOVE: Final = 1.5
"""Of what an overloaded server answers, or of what met the objectives: no load beyond is tried near the limit."""
LIKELY: Final = 2.0
"""Standard errors beyond which a miss is not put down to chance, and no higher load is tried."""
BEYOND: Final = 1.05
"""Factor by which an overloaded server's answers per second must differ from loads that were run, to be tried."""
OUTSIDE: Final = 1.3
"""An estimate farther than this factor from every load that was run is no estimate."""
GRID: Final = (0.2, 0.4, 0.55, 0.68, 0.78, 0.85, 0.9, 0.94, 0.97, 1.0, 1.04)
"""Loads, near the limit, of the simulated queues that are tried as a control, before the best one is refined."""
HEAVIEST: Final = 0.985
"""Load of the simulated queue above which a stage is too short for its law to be of use."""
LEAST: Final = 60
"""Allowed misses in all stages near the limit together before there is an answer."""
APART: Final = 1.6
"""Near the limit stages alternate between loads at which the share of bad requests is this factor below and above
what is allowed: far enough apart to show how it depends on the load, near enough for a straight line."""
WIDE: Final = 4.0
"""Stages whose share of bad requests is more than this factor from what is allowed are not in the line."""
GROWTH: Final = (1.5, 2.0)
"""Of the number of requests, from one stage near the limit to the next; after one that was too short."""
FEWEST: Final = 24
"""Requests of a stage at a low rate, where more would take too long."""
FAR: Final = 1 / 25
NEAR: Final = 1 / 5
"""Shares of the time limit that a stage far from the limit, and one near it, may take."""
MOST_REQUESTS: Final = 1_000_000
LEAST_ROWS: Final = 50  # batches for an interval
FLOOR: Final = 0.005
"""Least half width of an interval, relatively, where the simulated queue is a control: it may follow the server so
closely that nothing is left but the error of its own service time, which the line does not know."""
COMPARED: Final = 12_000
"""Requests by which the simulated queues are compared."""
SAME: Final = 0.05
"""Stages whose loads differ by less are tries of one load, of which the next is longer."""
SAME_LOAD: Final = 1.01
MOST_TRIES: Final = 3
BESIDE: Final = 0.15
"""Loads that differ by less, relatively, are beside each other: of two stages the much longer one counts."""
AGREE: Final = 1.03
"""By how much the line may contradict a stage that by itself was sure."""
ALONE: Final = 0.1
"""Mean requests in flight below which requests do not delay each other, so that no lower load would be better."""


DEAD: Final = 2
"""Stages in a row without one answer, after which the server has failed and the search ends."""


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
    low: float | None = None  # None: no stage was sure of this end
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
    controlled: bool = False  # whether the luck of the arrivals was subtracted by the simulated queue


class _Estimate(NamedTuple):
    load: float
    low: float
    high: float
    below: float  # loads for the next stages
    above: float
    controlled: bool


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
        self._allowed = 1 - attainment
        self._precision = precision
        self._start = start
        self._top = top
        self._limit = seconds
        self._least = least
        self._few = max(100, ceil(6 / self._allowed))  # requests of a stage far from the limit
        self._near_requests = max(400, ceil(24 / self._allowed))
        self._near: set[float] = set()
        self._side = 0
        self._sure_twice = 0
        self._latest: _Estimate | None = None
        self._service = 0.0
        self._compared = 0
        self._passed = False
        self._before = 0  # stages before the first that met the objectives
        self.stages: list[Stage] = []

    @property
    def elapsed(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    def add(self, stage: Stage) -> None:
        self.stages.append(stage)
        if not self._passed and stage.settled and stage.share <= self._allowed:
            # Those before it missed, perhaps because the server was not warm yet.
            self._passed = True
            self._before = len(self.stages) - 1
        if stage.load in self._near and not stage.aborted:
            self._near_requests = ceil(self._near_requests * GROWTH[not stage.settled])
        estimate = self._latest = self._estimate()
        narrow = (
            estimate is not None
            and self._narrow(estimate.load, estimate.low, estimate.high)
            and self._enclosed(estimate.load)
        )
        self._sure_twice = self._sure_twice + 1 if narrow else 0

    @property
    def _counted(self) -> Sequence[Stage]:
        """The stages that say something of a warm server."""
        return self.stages[self._before :]

    # Where to go next

    def next(self) -> Plan | None:
        if self._done():
            return None
        plan = self._planned()
        if plan is None:
            return None
        left = self._limit - self.elapsed
        needed = plan.requests / plan.load if self._by == "rate" else plan.seconds
        if self.stages and needed > left:
            if left < needed / 3:
                return None
            plan = plan._replace(requests=int(plan.requests * left / needed), seconds=left)
        if plan.near:
            self._near.add(plan.load)
            self._side += 1
        return plan

    def _planned(self) -> Plan | None:
        if not self.stages:
            return self._far(self._start)
        estimate = self._latest
        if estimate is not None:
            return self._close(estimate.below if self._side % 2 else estimate.above)
        low, high = self._bracket()
        if high is None:
            top = self._at_top()
            if top is not None:
                return None if top.met(self._allowed, SURE) else self._again(top)
            low = low or max(self._counted, key=lambda stage: stage.load)
            step = 2.0 if low.share < self._allowed / 3 else 1.3
            return self._far(min(low.load * step, self._top))
        highest = max(self._counted, key=lambda stage: stage.load)
        sure = any(stage.lost(self._allowed, LIKELY) for stage in self._counted)
        if not sure and highest.load < 0.99 * self._top:
            return self._far(min(highest.load * 1.5, self._top))  # perhaps chance: higher loads show it at once
        served = self._served()
        beside = any(abs(stage.load / served - 1) < BEYOND - 1 for stage in self._counted)
        if served < high.load / BEYOND and not beside:
            return self._close(served)
        if low is None:
            if self._floor(high):
                return None if high.lost(self._allowed, SURE) else self._again(high)
            return self._far(high.load / (4 if high.share > 4 * self._allowed else 1.5))
        if high.load / low.load > 1.35 and self._separate(low, high) and not self._near:
            return self._far((low.load * high.load) ** 0.5)
        most = served * (1 + SAME * 2) if low.load < served < inf else low.load * ABOVE if served < inf else inf
        return self._close(self._between(low, min(high.load, most)))

    def _at_top(self) -> Stage | None:
        """The longest stage at the highest load that may be tried; a rate is used once, so those just below it
        count."""
        return max((stage for stage in self.stages if stage.load >= 0.99 * self._top), key=len, default=None)

    def _between(self, stage: Stage, high: float) -> float:
        """Without a line: in and around the middle, so that a line becomes possible. Never far below a load that
        surely was too much, since a low one that was run for a short time only says little."""
        low = stage.load
        centre = (low * high) ** 0.5
        spread = min(max((high / low) ** 0.25, 1.07), STEP)
        least = low if low in self._near else high / STEP
        return float(max(centre * spread ** (0, -1, 1)[self._side % 3], least))

    def _served(self) -> float:
        """The fewest good responses per second of a stage that asked for more: near the most that the server can
        give, unless load makes it less. Only a guide to where to look. Infinite if unknown."""
        return min(
            (
                stage.served
                for stage in self._counted
                if 0 < stage.served < stage.load / BEYOND
                and stage.due[-1] - stage.due[0] >= self._least
                and stage.lost(self._allowed, SURE)
            ),
            default=inf,
        )

    def _floor(self, stage: Stage) -> bool:
        """Whether a lower load than the stage's cannot be better, or cannot be tried."""
        return stage.load <= 1 if self._by == "users" else stage.overlap <= ALONE

    def _separate(self, low: Stage, high: Stage) -> bool:
        return low.share < self._allowed / WIDE or high.share > self._allowed * WIDE

    def _far(self, load: float) -> Plan:
        load = self._rounded(load)
        short = [len(s) for s in self.stages if not s.settled and not s.aborted and abs(s.load / load - 1) < SAME]
        if short:
            return self._plan(load, ceil(2.5 * max(short)), near=False)
        if self._by == "users":
            return self._plan(load, self._few, near=False)
        brief = max(FEWEST, int(load * self._limit * FAR))
        return self._plan(load, max(min(self._few, brief), ceil(self._least * load)), near=False)

    def _plan(self, load: float, requests: int, *, near: bool) -> Plan:
        """Of users, a stage lasts so long: nobody knows beforehand how many requests that is."""
        if self._by == "rate":
            return Plan(load, requests, near)
        seconds = max(self._least, self._limit * FAR) * (requests / self._few if near else 1)
        return Plan(load, MOST_REQUESTS, near, min(seconds, max(self._limit * NEAR, self._least)))

    def _close(self, load: float) -> Plan:
        load = self._rounded(load)
        if self._by == "users":
            return self._plan(load, self._near_requests, near=True)
        most = max(FEWEST, int(load * self._limit * NEAR), ceil(self._least * load))
        return self._plan(load, min(max(self._near_requests, ceil(self._least * load)), most), near=True)

    def _again(self, stage: Stage) -> Plan:
        return self._plan(self._rounded(stage.load), 2 * len(stage), near=self._by == "users")

    def _rounded(self, load: float) -> float:
        """To a whole number of users; to five digits, each rate once, since stages are named by it."""
        if self._by == "users":
            return float(max(round(load), 1))
        load = min(load, self._top)
        used = {stage.load for stage in self.stages}
        while (rounded := float(f"{load:.5g}")) in used:
            load *= 1 - 1e-4
        return rounded

    def _bracket(self) -> tuple[Stage | None, Stage | None]:
        """The two stages between which the share of bad requests passes what is allowed. The shares are made to
        rise with the load (isotonic regression), so that those around a stage outweigh chance in it. Only a guide
        to where to look: a much longer stage beside one overrules it."""
        pools: list[tuple[float, int, list[Stage]]] = []  # bad requests, requests, stages
        served = self._served()
        for stage in sorted(self._counted, key=lambda stage: (stage.load, len(stage))):
            lost = stage.lost(self._allowed, SURE) or self._restless(stage)
            if not lost and stage.load > BEYOND * served and stage.load not in self._near:
                continue  # short, and above what the server answers: it was let through from a reserve
            long = self._long(stage) or stage.load in self._near
            if not lost and not (long and (stage.settled or stage.share > self._allowed)):
                continue
            size = max(len(stage), 1)
            pool = (size * max(stage.share, CERTAIN * lost), size, [stage])
            while pools and pools[-1][0] * pool[1] >= pool[0] * pools[-1][1]:
                bad, requests, stages = pools.pop()
                pool = (bad + pool[0], requests + pool[1], stages + pool[2])
            pools.append(pool)
        below: Stage | None = None
        for bad, requests, stages in pools:
            if bad > self._allowed * requests and self._likely(bad, requests):
                return below, stages[0]
            below = stages[-1]
        return below, None

    def _likely(self, bad: float, requests: int) -> bool:
        """Whether a share above what is allowed is more than chance, or at least half as much again."""
        return bad > DOUBTFUL * self._allowed * requests or wilson(bad, requests, LIKELY)[0] > self._allowed

    def _restless(self, stage: Stage) -> bool:
        """Whether stages at this rate, each longer than the last, never came to rest: the server is about full.
        Users wait for their answers, so their queue does not grow."""
        if self._by == "users":
            return False
        tries = [s for s in self._counted if abs(s.load / stage.load - 1) < SAME and not s.aborted]
        return len(tries) >= MOST_TRIES and not any(s.settled for s in tries)

    def _long(self, stage: Stage) -> bool:
        """Whether no stage near this one's load was much longer."""
        beside = (len(other) for other in self._counted if abs(other.load / stage.load - 1) < BESIDE)
        return len(stage) >= max(beside, default=0) / 3

    # What is known

    def _done(self) -> bool:
        if self.elapsed >= self._limit or self._dead:
            return True
        near = sum(len(stage) for stage in self.stages if stage.load in self._near)
        if self._by == "rate" and near * self._allowed < LEAST:
            return False
        if self._sure_twice >= 2:
            return True
        met, missed = self._surely()
        if met is None or missed is None:
            return False
        if self._by == "users" and missed - met <= 1:
            return True
        return self._narrow((met * missed) ** 0.5, met, missed)

    @property
    def _dead(self) -> bool:
        return len(self.stages) >= DEAD and all(stage.dead for stage in self.stages[-DEAD:])

    def _narrow(self, load: float, low: float, high: float) -> bool:
        return max(high / load - 1, 1 - low / load) <= self._precision

    def _surely(self) -> tuple[float | None, float | None]:
        """The highest load that a stage surely met, below the lowest one that a stage surely missed."""
        missed = min(
            (
                stage.load
                for stage in self._counted
                if (self._enough(stage) or stage.share > CERTAIN)
                and stage.lost(self._allowed, SURE)
                and self._long(stage)
                and not self._contradicted(stage)
            ),
            default=None,
        )
        met = max(
            (
                stage.load
                for stage in self._counted
                if self._enough(stage)
                and stage.met(self._allowed, SURE)
                and self._long(stage)
                and not self._contradicted(stage)
                and stage.load < (missed or inf)
            ),
            default=None,
        )
        return met, missed

    def _contradicted(self, stage: Stage) -> bool:
        """Whether one at least half as long says the opposite, at a load where that cannot be."""
        met = stage.share <= self._allowed
        return any(
            (other.share <= self._allowed) != met
            and 2 * len(other) >= len(stage)
            and (other.load <= stage.load * SAME_LOAD if met else other.load * SAME_LOAD >= stage.load)
            for other in self._counted
            if not other.aborted
        )

    def _enough(self, stage: Stage) -> bool:
        """Whether a stage alone may be evidence. Users wait for their answers, so their queue cannot grow
        unseen."""
        return self._by == "users" or len(stage) * self._allowed >= LEAST

    def _estimate(self) -> _Estimate | None:
        """Where a line through the batches of the stages near the limit crosses what is allowed."""
        near = [stage for stage in self._counted if not stage.aborted and self._usable(stage)]
        near_loads = sorted({stage.load for stage in near})
        if len(near_loads) < 2:
            return None
        reference = _middle(near, self._allowed)
        settled = [stage for stage in near if stage.settled]
        plain = fitted(_plain(settled, reference))
        best = self._crossed(plain, reference)
        if self._by == "rate":
            service = self._service_of(near, reference)
            light = [stage for stage in near if service * stage.load < HEAVIEST]
            limit = _limit(light, service)
            if limit is not None:
                line = fitted(_controlled(light, service, limit))
                controlled = self._crossed(line, reference, service, limit)
                if controlled is not None and (best is None or _width(controlled) < _width(best)):
                    best = controlled
        met, missed = self._surely()
        if best is not None and not near_loads[0] / OUTSIDE < best.load < near_loads[-1] * OUTSIDE:
            return None
        if best is not None and (met or 0.0) / AGREE <= best.load <= (missed or inf) * AGREE:
            return best
        return None

    def _usable(self, stage: Stage) -> bool:
        if stage.load in self._near:
            return stage.share < self._allowed * 2 * WIDE
        return self._allowed / WIDE < stage.share < self._allowed * WIDE

    def _enclosed(self, load: float) -> bool:
        """Whether stages on both sides of a load had shares in whose range a straight line may be trusted."""
        inside = [
            stage.load
            for stage in self._counted
            if not stage.aborted and self._allowed / APART**2 < stage.share < self._allowed * APART**2
        ]
        return bool(inside) and min(inside) <= load <= max(inside)

    def _service_of(self, stages: Sequence[Stage], reference: float) -> float:
        """The service time of the simulated queue whose waits follow the measured strain best. Searched for again
        only after the sample has grown by half."""
        requests = sum(map(len, stages))
        if requests >= 1.5 * self._compared:
            self._compared = requests
            stages = _recent(stages, COMPARED)
            loads, step = list(GRID), 0.04
            scored: dict[float, float] = {}
            for _ in range(4):
                scored |= {load: _likeness(stages, load / reference) for load in loads if load not in scored}
                best = max(scored, key=lambda load: scored[load])
                loads, step = [best * (1 - step), best * (1 + step)], step / 2.5
            self._service = best / reference
        return self._service

    def _crossed(
        self, line: Line | None, reference: float, service: float | None = None, limit: float = 0.0
    ) -> _Estimate | None:
        if line is None or line.spare + len(line.coefficients) < LEAST_ROWS:
            return None
        at = crossing(line, self._allowed, student(line.spare))
        if at is None:
            return None
        offset, slope, *_ = line.coefficients
        if service is not None and not 0 < at[0] < 1:
            return None
        aims = ((self._allowed / APART - offset) / slope, (self._allowed * APART - offset) / slope)
        places = (*at, *aims)
        if service is None:
            load, low, high, below, above = (reference * exp(min(max(x, -3.0), 3.0)) for x in places)
        else:
            load, low, high, below, above = (load_at(limit, min(max(x, 0.0), 1.0)) / service for x in places)
        if not low <= load <= high or load <= 0:
            return None
        if service is not None:
            low, high = min(low, load * (1 - FLOOR)), max(high, load * (1 + FLOOR))
        return _Estimate(load, low, high, max(below, load / 1.25), min(above, load * 1.25), service is not None)

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
        met, missed = self._surely()
        loads = [stage.load for stage in self.stages]
        known = replace(known, state="unsure", met=met, missed=missed, tried=(min(loads), max(loads)))
        low, high = self._bracket()
        if self._dead:
            return self._at(replace(known, state="failed", load=met or (low and low.load)), self.stages[-1])
        estimate = self._latest
        narrow = met is not None and missed is not None and self._narrow((met * missed) ** 0.5, met, missed)
        controlled = False
        ends: tuple[float | None, float | None]
        if estimate is not None and not narrow:
            load, controlled = estimate.load, estimate.controlled
            # An end beyond a factor of two is no more than a guess by a line that holds near the limit only.
            ends = (
                estimate.low if estimate.low > load / 2 else met,
                estimate.high if estimate.high < load * 2 else missed,
            )
            narrow = self._narrow(load, estimate.low, estimate.high) and self._enclosed(load)
        elif high is None:
            top = self._at_top()
            sure = top is not None and top.met(self._allowed, SURE)
            return replace(known, state="no limit" if sure else "all met")
        elif low is None:
            sure = high.lost(self._allowed, SURE) and self._floor(high)
            return self._broken(replace(known, state="not met" if sure else "all missed"), min(loads))
        else:
            ends = (met, missed)
            served = self._served()
            load = (low.load * (served if low.load < served < high.load else high.load)) ** 0.5
        if self._by == "users":
            load = float(max(int(load + 1e-9), 1))
            narrow = narrow or (met is not None and missed is not None and missed - met <= 1)
        state: State = "found" if narrow else "unsure"
        answer = replace(known, state=state, load=load, low=ends[0], high=ends[1], controlled=controlled)
        return self._broken(answer, load)

    def _broken(self, found: Found, load: float) -> Found:
        """With the shares of requests that met each objective just above a load."""
        above = [
            stage for stage in self.stages if stage.load >= load and stage.share > self._allowed and stage.missed
        ]
        if not above:
            return found
        return self._at(found, min(above, key=lambda stage: stage.load))

    @staticmethod
    def _at(found: Found, stage: Stage) -> Found:
        shares = {name: 1 - count / len(stage) for name, count in stage.missed.items()}
        return replace(
            found,
            broke=shares,
            broke_at=stage.load,
            first=min(shares, key=lambda name: shares[name], default=None),
            failures={kind: count / len(stage) for kind, count in stage.failures.items()},
            fault=stage.fault,
        )


def _middle(stages: Sequence[Stage], allowed: float) -> float:
    """A load near the limit, from which the line is drawn: the mean of the two nearest to it from both sides."""
    below = max((stage.load for stage in stages if stage.share <= allowed), default=None)
    above = min((stage.load for stage in stages if stage.share > allowed), default=None)
    ends = [load for load in (below, above) if load is not None]
    return exp(sum(map(log, ends)) / len(ends))


def _width(estimate: _Estimate) -> float:
    return (estimate.high - estimate.low) / estimate.load


def _plain(stages: Sequence[Stage], reference: float) -> list[Row]:
    return [
        Row(share, (1.0, log(stage.load / reference)), end - start, number)
        for number, stage in enumerate(stages)
        for share, (start, end) in zip(stage.means(stage.bad), stage.cuts, strict=True)
    ]


def _controlled(stages: Sequence[Stage], service: float, limit: float) -> list[Row]:
    """Each batch's share of bad requests by the simulated queue's: by what its law expects at the load, and by how
    far this batch's own arrivals led away from that. The second is zero in the long run, whatever the server."""
    rows = []
    for number, stage in enumerate(stages):
        expected = tail(service * stage.load, limit)
        bad = [wait > limit * service for wait in waits(stage.due, service)]
        for share, luck, (start, end) in zip(stage.means(stage.bad), stage.means(bad), stage.cuts, strict=True):
            rows.append(Row(share, (1.0, expected, luck - expected), end - start, number))
    return rows


def _limit(stages: Sequence[Stage], service: float) -> float | None:
    """The wait in the simulated queue, in service times, that as large a share of requests exceeds as was bad."""
    waited, bad = [], 0
    for stage in stages:
        waited += waits(stage.due, service)[stage.skipped :]
        bad += sum(stage.bad[stage.skipped :])
    if not 0 < bad < len(waited):
        return None
    waited.sort()
    return waited[len(waited) - bad - 1] / service


def _recent(stages: Sequence[Stage], requests: int) -> Sequence[Stage]:
    """The last stages that have so many requests together."""
    for place in range(len(stages) - 1, -1, -1):
        requests -= len(stages[place])
        if requests <= 0:
            return stages[place:]
    return stages


def _likeness(stages: Sequence[Stage], service: float) -> float:
    """Squared correlation of the batches' mean strain and mean wait in the simulated queue."""
    pairs: list[tuple[float, float]] = []
    for stage in stages:
        pairs += zip(stage.means(stage.strain), stage.means(waits(stage.due, service)), strict=True)
    n = len(pairs)
    if not n:
        return 0.0
    x0, y0 = sum(x for x, _ in pairs) / n, sum(y for _, y in pairs) / n
    xx, yy = sum((x - x0) ** 2 for x, _ in pairs), sum((y - y0) ** 2 for _, y in pairs)
    xy = sum((x - x0) * (y - y0) for x, y in pairs)
    return xy * xy / (xx * yy) if xx > 0 and yy > 0 and xy > 0 else 0.0

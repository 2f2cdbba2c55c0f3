"""How many requests each worker may have at each engine. Pure: from what workers report to what is allotted.

The law: what all workers together may have at an engine never exceeds its limit. A worker's part is therefore
counted as the larger of what it was told and what it has confirmed, until it confirms less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proxy.flights.queue import PoolQueue
from proxy.workers.leases import Demand
from proxy.workers.order import Key, Ledger, WorkerLoad, parts


@dataclass(slots=True)
class _Worker:
    sent: int = 0  # number of the last allotment
    places: dict[str, WorkerLoad] = field(default_factory=dict)
    leaving: dict[str, int] = field(default_factory=dict)  # in flight at engines that it has no place at


class Permits:
    """Divides the limits of all engines among the workers that have joined."""

    def __init__(self, *, shared: bool = False) -> None:
        """`shared`: other gateways use the engines, so none has a place before it is bounded."""
        self._shared = shared
        self._ceilings: dict[str, int] = {}  # of shared engines
        self._reached: set[str] = set()  # engines whose limit all gateways have reached
        self._workers: dict[int, _Worker] = {}
        self._joined: set[str] = set()  # engines whose workers have changed since the last look
        self._ledger = Ledger()
        self._turns = 0  # places given where there are fewer than workers

    def __repr__(self) -> str:
        return f"<Permits of {len(self._workers)} workers>"

    def join(self, worker: int) -> None:
        self._workers[worker] = _Worker()

    def leave(self, worker: int) -> None:
        """It has ended, and its connections to engines with it."""
        gone = self._workers.pop(worker, None)
        if gone is not None:
            self._joined |= gone.places.keys() | gone.leaving.keys()
        self._ledger.leave(worker)

    def report(
        self,
        worker: int,
        number: int,
        engines: Mapping[str, tuple[int, int, int]],
        queues: Sequence[tuple[Sequence[str], PoolQueue]] = (),
        leaving: Mapping[str, int] = {},
    ) -> None:
        """What it has and wants. `number`: the last allotment that it has applied; `queues`: its queued
        requests, each summary with the engines that serve it; `leaving`: its requests in flight at engines that
        were removed there."""
        known = self._workers.get(worker)
        if known is None:
            return
        for name in known.places.keys() - engines.keys():
            del known.places[name]  # it does not use this engine any more
            self._joined.add(name)
        if leaving != known.leaving:
            self._joined |= leaving.keys() | known.leaving.keys()
            known.leaving = dict(leaving)
        for name, (inflight, queued, most) in engines.items():
            place = known.places.get(name)
            if place is None:
                place = known.places[name] = WorkerLoad(held=inflight)  # of before it was removed and added
                self._joined.add(name)
            if most != place.most:
                self._joined.add(name)
            place.report(inflight, queued, most, [queue for names, queue in queues if name in names])
            if number == known.sent:
                place.confirm()
        self._ledger.report(worker, [queue for _, queue in queues])

    def limit(self, engine: str) -> int:
        """The limit of an engine: the least that any worker's controller would have."""
        most = self._most(engine)
        return min(most, self._ceilings.get(engine, 0)) if self._shared else most

    def bound(self, engine: str, ceiling: int) -> None:
        """All workers together may have so many requests there."""
        self._ceilings[engine] = ceiling
        self._joined.add(engine)

    def reached(self, engine: str) -> None:
        """The limit of all gateways is reached there."""
        self._reached.add(engine)

    def demands(self, *, fixed: bool) -> dict[str, Demand]:
        """What all workers together want, by engine. `fixed`: the limits are not adapted."""
        engines = {
            name: self._places(name).values()
            for worker in self._workers.values()
            for name in (*worker.places, *worker.leaving)
        }
        self._ceilings = {name: ceiling for name, ceiling in self._ceilings.items() if name in engines}
        return {
            name: Demand(
                self._most(name),
                sum(place.inflight for place in places) + self._leaving(name),
                sum(place.queued for place in places),
                sum(max(place.held, place.allotted) for place in places) + self._leaving(name),
                fixed,
            )
            if places
            else Demand.to_end(self._leaving(name))
            for name, places in engines.items()
        }

    def _most(self, engine: str) -> int:
        return min(worker.places[engine].most for worker in self._workers.values() if engine in worker.places)

    def short(self, engine: str) -> bool:
        """Whether all its permits are used while requests wait."""
        places = self._places(engine)
        used = sum(place.inflight for place in places.values()) + self._leaving(engine)
        return used >= self.limit(engine) and any(place.queued for place in places.values())

    def changes(self) -> dict[int, tuple[int, dict[str, int], list[str]]]:
        """What to tell now: by worker, the number of the allotment, its places at every engine, and the engines
        that are short."""
        engines = {name for worker in self._workers.values() for name in worker.places}
        moved: set[int] = set()
        for engine in engines:
            places = self._places(engine)
            if engine in self._joined or any(place.short for place in places.values()):
                moved |= self._divide(places, max(0, self.limit(engine) - self._leaving(engine)))
            if engine in self._reached:
                moved |= places.keys()  # tell them all
            pending = any(place.held > place.allotted for place in places.values())
            if not pending:
                self._joined.discard(engine)
        self._joined &= engines
        short = [engine for engine in engines if engine in self._reached or self.short(engine)]
        self._reached.clear()
        told = {}
        for number in moved:
            worker = self._workers[number]
            worker.sent += 1
            told[number] = (worker.sent, {name: place.allotted for name, place in worker.places.items()}, short)
        return told

    def charges(self) -> dict[int, list[tuple[Key, int]]]:
        """What to tell now: by worker, the tokens that tenants that wait there were served at others."""
        return self._ledger.charges()

    def _places(self, engine: str) -> dict[int, WorkerLoad]:
        return {at: worker.places[engine] for at, worker in self._workers.items() if engine in worker.places}

    def _leaving(self, engine: str) -> int:
        """Requests in flight of workers that have no place there any more."""
        return sum(worker.leaving.get(engine, 0) for worker in self._workers.values())

    def _divide(self, places: dict[int, WorkerLoad], most: int) -> set[int]:
        """Lower allotments above their target at once; raise the others by what is free. Who has changed."""
        targets = parts(most, places, self._ledger, self._turns)
        moved = set()
        for at, place in places.items():
            if targets[at] < place.allotted:
                place.lower(targets[at])
                moved.add(at)
        free = most - sum(max(place.held, place.allotted) for place in places.values())
        for at, place in sorted(places.items(), key=lambda each: each[1].allotted):
            # What it still holds of a former allotment is its own already.
            more = min(targets[at] - place.allotted, free + max(0, place.held - place.allotted))
            if more > 0:
                free -= place.add(more)
                moved.add(at)
                self._turns += most < len(places)
        return moved

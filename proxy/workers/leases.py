"""Places at an engine that several gateways use: what one gateway asks of Redis, and what it may use meanwhile.
Pure: from demands and replies to calls and a ceiling.

A gateway's record in Redis is never below what it may use, so while Redis keeps its word all gateways together
never exceed the limit: a gateway lowers its ceiling before it reports that, and raises it after Redis has granted
more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from proxy.workers.order import MOST, filled

LEASE: Final = 3.0
"""Seconds that a record lasts in Redis, and its places here, from when they were asked for."""
MARGIN: Final = 0.2  # seconds by which a lease ends here before it ends in Redis
EVERY: Final = 0.5  # seconds between two calls for the same engine
SOON: Final = 0.1  # seconds until the next call where requests wait for a place, or a place can be given back


@dataclass(frozen=True, slots=True)
class Demand:
    """What the requests of one gateway want of one engine."""

    limit: int  # that this gateway has for the engine
    inflight: int
    queued: int
    held: int  # places that may be in use before a lower ceiling is known everywhere in this gateway
    fixed: bool = True  # the limit is configured; else adapted
    leaving: bool = False  # it gets no more requests: only those in flight have places

    @classmethod
    def to_end(cls, inflight: int) -> Demand:
        """Of an engine that was removed: a lease on what is in flight, and no limit for other gateways."""
        return cls(MOST, inflight, 0, inflight, fixed=False, leaving=True)

    @property
    def wanted(self) -> int:
        return min(self.inflight + self.queued, MOST)


@dataclass(frozen=True, slots=True)
class Call:
    """What Redis is asked. The script is `admission.RENEW`."""

    number: int  # a call that arrives after a later one is void
    held: int  # places that are recorded in any case
    asked: int
    limit: int
    inflight: int
    wanted: int
    fixed: bool = True


@dataclass(frozen=True, slots=True)
class Record:
    """What Redis knows of one gateway at one engine."""

    places: int
    inflight: int
    wanted: int
    turn: int = 0  # when its places grew last, by Redis' clock in ms


@dataclass(frozen=True, slots=True)
class Reply:
    places: int  # that this gateway may use
    limit: int  # the least of all gateways
    known: bool  # Redis had a record of this gateway
    turn: int
    others: Mapping[str, Record]


class EngineLease:
    """One gateway's places at one engine. `ceiling` is what it may have in flight there now."""

    def __init__(self, gateway: str, limit: int, number: int = 0) -> None:
        """`number`: of the gateway's last call, as the engine may have been removed and added again."""
        self.number = number  # of the last call
        self.ceiling = 0
        self.limit = limit  # the least of all gateways
        self.others: Mapping[str, Record] = {}
        self.asked_at = -math.inf
        self.calling = False
        self.answered = False  # Redis has answered a call, ever
        self._gateway = gateway
        self._called = False
        self._ends = -math.inf
        self._own = Record(0, 0, 0)  # as Redis has it
        self._failed = False  # the last call
        self._forgot = -math.inf  # when Redis had no record of this gateway: those of others may be missing too
        self._gateways = 1  # known before that

    def __repr__(self) -> str:
        return f"<EngineLease {self.ceiling} of {self.limit} gateways={self.gateways}>"

    @property
    def gateways(self) -> int:
        """Gateways known to use the engine, this one included."""
        return len(self.others) + 1

    def live(self, now: float) -> bool:
        """Whether the ceiling is what Redis has granted; at first nothing."""
        return now < self._ends

    def away(self, now: float) -> bool:
        """Whether Redis should have answered and has not: the gateway has its share."""
        return not self.live(now) and self._called

    def due(self, now: float, demand: Demand) -> bool:
        """Whether to call now."""
        past = now - self.asked_at
        if self.calling or past < SOON:
            return False
        if past >= EVERY or self._failed:
            return past >= EVERY
        waits = demand.queued > 0 and demand.inflight >= self.ceiling
        return waits or self._own.places > max(self.ceiling, demand.held)

    def full(self) -> bool:
        """Whether all places are taken while requests wait, at any gateway."""
        records = (self._own, *self.others.values())
        return sum(each.places for each in records) >= self.limit and any(
            each.wanted > each.places for each in records
        )

    def look(self, now: float, demand: Demand) -> None:
        """Without a lease the gateway has its share."""
        if self.away(now):
            self.limit = min(self.limit, demand.limit) if demand.fixed else demand.limit
            self.ceiling = 0 if demand.leaving else self._share()

    def plan(self, now: float, demand: Demand) -> int:
        """How many places to ask for. Fewer than the ceiling lower it at once."""
        if demand.leaving:
            self.ceiling = 0
        if demand.leaving or not self.answered:
            return 0  # first see who else is there
        own = replace(self._own, inflight=demand.inflight, wanted=demand.wanted)
        asked = fair(min(demand.limit, self.limit), {**self.others, self._gateway: own}, self._gateway)
        if now < self._forgot + 2 * EVERY:  # until each of the others has called
            asked = min(asked, self.ceiling)
        elif now < self._forgot + LEASE:
            asked = min(asked, max(self.ceiling, self._share()))
        self.ceiling = min(self.ceiling, asked)
        return asked

    def call(self, now: float, asked: int, demand: Demand) -> Call:
        """The next call. `demand`: with the lowered ceiling applied."""
        self.number += 1
        self.asked_at, self.calling = now, True
        if not self._called:
            self._called = True
            self._ends = now + LEASE - MARGIN  # until then others may have all places
        held = max(self.ceiling, demand.held, demand.inflight)
        return Call(self.number, held, asked, _limit(demand), demand.inflight, demand.wanted, demand.fixed)

    def replied(self, now: float, call: Call, reply: Reply) -> None:
        """The answer to the last call."""
        places = min(reply.places, call.asked)
        if self.answered and not reply.known:
            self._forgot, self._gateways = now, max(self.gateways, self._gateways)
            places = 0  # they may be in use by a gateway whose record is lost
        elif now >= self._forgot + LEASE:
            self._gateways = 1
        self.calling = self._failed = False
        self.limit = min(self.limit, reply.limit) if now < self._forgot + LEASE else reply.limit
        self.others = reply.others
        self._own = Record(reply.places, call.inflight, call.wanted, reply.turn)
        self._ends = self.asked_at + LEASE - MARGIN
        self.ceiling = max(self.ceiling, places)
        if not self.answered:
            self.answered, self.asked_at = True, -math.inf  # ask for places at once

    def failed(self) -> None:
        """The last call has no answer: whether Redis granted anything is not known, and nothing of it is used."""
        self.calling, self._failed = False, True

    def _share(self) -> int:
        return max(1, self.limit // max(self.gateways, self._gateways))


def _limit(demand: Demand) -> int:
    """Its limit, for all gateways. The controller of an idle gateway has seen nothing of the engine."""
    return MOST if not demand.fixed and not demand.wanted else demand.limit


def fair(limit: int, records: Mapping[str, Record], gateway: str) -> int:
    """A gateway's fair part of a limit, in whole places: max-min by what the gateways want, and what nobody wants
    spread evenly. One place stays at each gateway. Where there are fewer places than gateways, the one that has
    its place for longest gives it to the one that has none for longest."""
    many = limit >= len(records)
    wants = {name: (1, float(max(each.wanted, many))) for name, each in records.items()}
    amounts = filled(limit, wants)
    spare = max(0.0, limit - sum(amounts.values())) / len(records)
    exact = {name: round(amount + spare, 6) for name, amount in amounts.items()}
    counts = {name: math.floor(amount) for name, amount in exact.items()}

    def order(name: str) -> tuple[float | str, ...]:
        each = records[name]
        if many or not each.wanted:
            return each.wanted == 0, -min(each.places, counts[name] + 1), name  # places do not move to and fro
        return False, each.places > 0, -each.turn if each.places else each.turn, name

    next_ones = sorted((name for name in counts if exact[name] > counts[name]), key=order)
    return counts[gateway] + (gateway in next_ones[: limit - sum(counts.values())])

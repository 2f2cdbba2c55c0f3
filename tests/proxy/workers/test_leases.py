"""Leases: while Redis keeps its word all gateways together never have more at an engine than its limit; where it
does not, no more than is stated; and places go where requests wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.workers.leases import EVERY, LEASE, Call, Demand, EngineLease, Record, Reply, fair

LIMIT = 7
TICK = 0.05


@dataclass
class Redis:
    """What the script does, in Python; `test_admission.py` compares them."""

    rows: dict[str, tuple[float, Call, int, int]] = field(default_factory=dict)  # end, call, places, turn

    def renew(self, now: float, gateway: str, call: Call, lease: float = LEASE) -> Reply | None:
        self.rows = {name: row for name, row in self.rows.items() if row[0] > now}
        _, last, had, turn = self.rows.get(gateway, (0.0, None, 0, 0))
        if last is not None and last.number >= call.number:
            return None
        others = {name: row for name, row in self.rows.items() if name != gateway}
        least = min([call.limit, *(row[1].limit for row in others.values())])
        places = max(call.held, min(call.asked, least - sum(row[2] for row in others.values())))
        turn = int(now * 1000) if places > had else turn
        self.rows[gateway] = now + lease, call, places, turn
        records = {name: Record(row[2], row[1].inflight, row[1].wanted, row[3]) for name, row in others.items()}
        return Reply(places, least, last is not None, turn, records)


@dataclass
class Gateway:
    """One gateway's requests, and its calls that are under way."""

    name: str
    lease: EngineLease
    inflight: int = 0
    queued: int = 0
    up: list[Call] = field(default_factory=list)  # that Redis may still run, the last one first or never
    down: tuple[Call, Reply] | None = None
    limit: int = LIMIT

    @property
    def demand(self) -> Demand:
        return Demand(self.limit, self.inflight, self.queued, self.inflight)

    @property
    def uses(self) -> int:
        return max(self.lease.ceiling, self.inflight)

    def take(self) -> None:
        more = max(0, min(self.queued, self.lease.ceiling - self.inflight))
        self.queued -= more
        self.inflight += more

    def tick(self, now: float) -> Call | None:
        """What the timer does."""
        self.lease.look(now, self.demand)
        if not self.lease.due(now, self.demand):
            return None
        asked = self.lease.plan(now, self.demand)
        return self.lease.call(now, asked, self.demand)


class Gateways(RuleBasedStateMachine):
    """Gateways whose calls are delayed, lost on the way there and back, and run late; that die; and a Redis that
    forgets."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.redis = Redis()
        self.gateways: dict[str, Gateway] = {}
        self.born = 0
        self.excess: dict[str, int] = {}  # what a gateway may have beyond the limit
        self.lapsed: set[str] = set()
        self.forgot = -100.0

    def one(self, data: st.DataObject, which: Mapping[str, Gateway] | None = None) -> Gateway:
        return self.gateways[data.draw(st.sampled_from(sorted(which or self.gateways)))]

    @precondition(lambda self: len(self.gateways) < 4)
    @rule()
    def join(self) -> None:
        self.born += 1
        name = f"g{self.born}"
        self.gateways[name] = Gateway(name, EngineLease(name, LIMIT))
        if self.now - self.forgot < LEASE or self.lapsed:
            self.excess[name] = LIMIT  # it does not know of gateways that Redis does not know

    @precondition(lambda self: self.gateways)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        gone = self.one(data)
        del self.gateways[gone.name]
        self.lapsed.discard(gone.name)

    @precondition(lambda self: self.gateways)
    @rule(data=st.data(), count=st.integers(1, 9))
    def ask(self, data: st.DataObject, count: int) -> None:
        self.one(data).queued += count

    @precondition(lambda self: any(each.inflight for each in self.gateways.values()))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.one(data, {name: each for name, each in self.gateways.items() if each.inflight}).inflight -= 1

    @rule(seconds=st.sampled_from([TICK, 0.2, EVERY, EVERY, 1.0, LEASE]))
    def later(self, seconds: float) -> None:
        self.now += seconds
        for each in self.gateways.values():
            call = each.tick(self.now)
            if call is not None:
                each.up.insert(0, call)
        for name, each in self.gateways.items():
            if not each.lease.away(self.now):
                self.lapsed.discard(name)
            elif name not in self.lapsed:
                self.lapsed.add(name)
                self.excess[name] = max(self.excess.get(name, 0), each.uses)

    @rule()
    def work(self) -> None:
        for each in self.gateways.values():
            each.take()

    @precondition(lambda self: any(each.up and each.lease.calling for each in self.gateways.values()))
    @rule(data=st.data(), lost=st.booleans())
    def run(self, data: st.DataObject, lost: bool) -> None:
        """Redis runs the last call of a gateway, whose reply is then on its way, or lost."""
        waiting = {name: each for name, each in self.gateways.items() if each.up and each.lease.calling}
        each = self.one(data, waiting)
        call = each.up.pop(0)
        reply = self.redis.renew(self.now, each.name, call)
        if lost or reply is None:
            each.lease.failed()
        else:
            each.lease.replied(self.now, call, reply)

    @precondition(lambda self: any(each.lease.calling for each in self.gateways.values()))
    @rule(data=st.data())
    def time_out(self, data: st.DataObject) -> None:
        """A call is given up, though Redis may still run it."""
        self.one(data, {n: each for n, each in self.gateways.items() if each.lease.calling}).lease.failed()

    @precondition(lambda self: any(each.up and not each.lease.calling for each in self.gateways.values()))
    @rule(data=st.data())
    def run_late(self, data: st.DataObject) -> None:
        each = self.one(data, {n: each for n, each in self.gateways.items() if each.up and not each.lease.calling})
        self.redis.renew(self.now, each.name, each.up.pop())

    @rule()
    def forget(self) -> None:
        self.redis.rows.clear()
        self.forgot = self.now
        for name, each in self.gateways.items():
            self.excess[name] = self.excess.get(name, 0) + max(LIMIT if each.lease.gateways == 1 else 0, each.uses)

    @invariant()
    def together_they_have_at_most_the_limit(self) -> None:
        uses = {name: each.uses for name, each in self.gateways.items()}
        assert sum(uses.values()) <= LIMIT + sum(self.excess.values()), (uses, self.excess)
        assert all(each.lease.ceiling <= LIMIT for each in self.gateways.values())


class Faithful(Gateways):
    """The same where Redis forgets nothing and answers each gateway once within its lease."""

    @rule(seconds=st.sampled_from([TICK, 0.2, EVERY]))
    def later(self, seconds: float) -> None:
        for each in self.gateways.values():
            if not each.lease.live(self.now + seconds):
                if each.lease.calling:
                    each.lease.failed()
                call = each.lease.call(self.now, each.lease.plan(self.now, each.demand), each.demand)
                reply = self.redis.renew(self.now, each.name, call)
                assert reply is not None
                each.lease.replied(self.now, call, reply)
        super().later(seconds)

    @rule()
    def forget(self) -> None:
        """It does not."""

    @invariant()
    def none_lapses(self) -> None:
        assert not self.excess


for machine in (Gateways, Faithful):
    machine.TestCase.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
TestGateways = Gateways.TestCase
TestFaithful = Faithful.TestCase


class Virtual:
    """Gateways with a Redis that answers at once, in virtual time. A request takes `seconds`."""

    def __init__(self, limit: int, *names: str, seconds: float = 1.0) -> None:
        self.now, self.limit, self.seconds = 50.0, limit, seconds
        self.redis: Redis | None = Redis()
        self.gateways = {name: Gateway(name, EngineLease(name, limit), limit=limit) for name in names}
        self.ends: dict[str, list[float]] = {name: [] for name in names}
        self.served = dict.fromkeys(names, 0)

    def pass_(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += TICK
            for name, each in self.gateways.items():
                done = sum(end <= self.now for end in self.ends[name])
                self.ends[name] = [end for end in self.ends[name] if end > self.now]
                each.inflight -= done
                self.served[name] += done
                call = each.tick(self.now)
                reply = None if call is None or self.redis is None else self.redis.renew(self.now, name, call)
                if call is not None and reply is not None:
                    each.lease.replied(self.now, call, reply)
                elif call is not None:
                    each.lease.failed()
                before = each.inflight
                each.take()
                self.ends[name] += [self.now + self.seconds] * (each.inflight - before)

    def ceilings(self) -> list[int]:
        return [each.lease.ceiling for each in self.gateways.values()]


def test_idle_gateways_have_even_parts_and_a_busy_one_gets_what_the_others_leave() -> None:
    gateways = Virtual(12, "a", "b", "c")
    gateways.pass_(2)
    assert gateways.ceilings() == [4, 4, 4]
    gateways.gateways["b"].queued = 100
    gateways.pass_(1)
    assert gateways.ceilings() == [1, 10, 1], "one place stays for the first request of an idle one"
    gateways.gateways["a"].queued = 100
    gateways.pass_(EVERY + 1.0 + 2 * EVERY)
    assert sorted(gateways.ceilings()) == [1, 5, 6], "a call, the end of a request, a call of each"


def test_a_gateway_that_dies_leaves_its_places_within_its_lease() -> None:
    gateways = Virtual(8, "a", "b")
    for each in gateways.gateways.values():
        each.queued = 1000
    gateways.pass_(3)
    assert gateways.ceilings() == [4, 4]
    del gateways.gateways["a"]
    gateways.pass_(LEASE + EVERY + TICK)
    assert gateways.ceilings() == [8]


def test_without_redis_each_gateway_has_its_share_and_at_least_one_place() -> None:
    for limit, share in ((12, 4), (2, 1)):
        gateways = Virtual(limit, "a", "b", "c")
        gateways.gateways["a"].queued = 1000
        gateways.pass_(2)
        gateways.redis = None
        before = gateways.ceilings()
        gateways.pass_(LEASE - 2 * EVERY)
        assert gateways.ceilings() == before, "until its lease ends"
        gateways.pass_(3 * EVERY)
        assert gateways.ceilings() == [share] * 3
        gateways.redis = Redis()
        gateways.pass_(LEASE + 2)
        assert sum(gateways.ceilings()) == limit


@pytest.mark.parametrize("busy", [3, 4, 5])
@pytest.mark.parametrize("limits", [(6, 6), (6, 10), (10, 6)])
def test_a_flush_between_a_call_and_its_run_grants_nothing_beyond_the_limit(
    limits: tuple[int, int], busy: int
) -> None:
    """The places that one gateway asked for were the other's until the flush took the record of these."""
    gateways = Virtual(6, "a", "b", seconds=9.0)
    for each, limit in zip(gateways.gateways.values(), limits, strict=True):
        each.limit = limit
    one, other = gateways.gateways.values()
    gateways.pass_(1)
    other.queued = busy
    gateways.pass_(1)
    assert other.inflight == busy
    one.queued, redis = 9, gateways.redis
    assert redis is not None
    for _ in range(20):
        gateways.now += EVERY
        call = one.tick(gateways.now)
        assert call is not None
        redis.rows.clear()
        reply = redis.renew(gateways.now, "a", call)
        assert reply is not None
        one.lease.replied(gateways.now, call, reply)
        one.take()
        assert one.uses + other.uses <= 6, (one.lease, other.lease)


def test_a_gateway_that_begins_without_redis_uses_the_engine_after_the_time_of_a_lease() -> None:
    gateways = Virtual(8, "a")
    gateways.redis = None
    gateways.gateways["a"].queued = 1
    gateways.pass_(LEASE - EVERY)
    assert gateways.ceilings() == [0], "others may have all places"
    gateways.pass_(2 * EVERY)
    assert gateways.ceilings() == [8]


def test_one_place_of_two_gateways_goes_to_and_fro() -> None:
    gateways = Virtual(1, "a", "b", seconds=0.3)
    for each in gateways.gateways.values():
        each.queued = 1000
    gateways.pass_(60)
    one, other = gateways.served.values()
    assert abs(one - other) <= 0.1 * (one + other), (one, other)
    assert one + other > 60, "most of the time it is in use"


def test_no_request_of_a_busy_gateway_waits_for_ever() -> None:
    gateways = Virtual(3, "a", "b", "c", "d", seconds=0.5)
    for each in gateways.gateways.values():
        each.queued = 1000
    gateways.pass_(60)
    assert min(gateways.served.values()) > 0.5 * max(gateways.served.values()), gateways.served


def test_the_least_limit_holds_for_all_and_an_idle_adaptive_one_says_nothing() -> None:
    small, large = EngineLease("a", 4), EngineLease("b", 16)
    redis = Redis()
    busy, idle = Demand(16, 3, 9, 3), Demand(4, 0, 0, 0)
    for now in (1.0, 1.0, 2.0, 3.0):
        for lease, demand in ((small, idle), (large, busy)):
            call = lease.call(now, lease.plan(now, demand), demand)
            reply = redis.renew(now, "a" if lease is small else "b", call)
            assert reply is not None
            lease.replied(now, call, reply)
    assert (large.limit, large.ceiling, small.ceiling) == (4, 3, 1)
    adaptive = Demand(4, 0, 0, 0, fixed=False)
    assert small.call(4.0, small.plan(4.0, adaptive), adaptive).limit > 10**5


@given(
    st.integers(0, 60),
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 30), st.integers(0, 90)), min_size=1),
)
def test_fair_parts_are_all_of_the_limit(limit: int, wants: dict[str, tuple[int, int]]) -> None:
    records = {name: Record(places, 0, wanted) for name, (places, wanted) in wants.items()}
    parts = {name: fair(limit, records, name) for name in records}
    assert sum(parts.values()) == limit
    lacks = [parts[name] for name, (_, wanted) in wants.items() if parts[name] < wanted]
    for name, part in parts.items():
        assert not lacks or part <= max(wants[name][1], 1, min(lacks) + 1)
        assert part >= (limit >= len(parts))


@pytest.mark.parametrize(
    ("places", "wanted", "full"), [((4, 4), (9, 1), True), ((4, 3), (9, 1), False), ((4, 4), (4, 1), False)]
)
def test_the_limit_is_reached_where_all_have_it_and_one_wants_more(
    places: tuple[int, int], wanted: tuple[int, int], full: bool
) -> None:
    lease = EngineLease("a", 8)
    demand = Demand(8, places[0], wanted[0] - places[0], places[0])
    call = lease.call(1.0, lease.plan(1.0, demand), demand)
    lease.replied(1.0, call, Reply(places[0], 8, True, 0, {"b": Record(places[1], places[1], wanted[1])}))
    assert lease.full() is full


def test_the_requests_at_an_engine_that_was_removed_keep_their_places_and_no_more() -> None:
    redis, one, other = Redis(), EngineLease("a", 6), EngineLease("b", 6)
    wants, all_of_it = Demand(6, 3, 0, 3), Demand(6, 3, 9, 3)

    def renew(now: float, first: Demand) -> None:
        for name, lease, demand in (("a", one, first), ("b", other, all_of_it)):
            lease.look(now, demand)
            call = lease.call(now, lease.plan(now, demand), demand)
            reply = redis.renew(now, name, call)
            assert reply is not None
            lease.replied(now, call, reply)

    for now in (1.0, 1.5, 2.0):
        renew(now, wants)
    assert (one.ceiling, other.ceiling) == (3, 3)
    for inflight in (3, 2, 1):
        for _ in range(10):
            now += 0.5
            renew(now, Demand.to_end(inflight))
        assert (one.ceiling, other.ceiling, other.limit) == (0, 6 - inflight, 6)
    for _ in range(4):
        now += 0.5
        renew(now, wants)
    assert one.ceiling <= 6 - 3, "the other's requests are still there"


def test_without_redis_an_engine_that_was_removed_has_no_share() -> None:
    lease, now = EngineLease("a", 6), 0.0
    lease.call(now, 0, Demand.to_end(2))
    lease.failed()
    lease.look(9.0, Demand.to_end(2))
    assert lease.ceiling == 0
    lease.look(9.0, Demand(6, 2, 0, 2))
    assert (lease.ceiling, lease.limit) == (6, 6)

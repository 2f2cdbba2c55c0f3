"""Permits: all workers together never have more at an engine than its limit; what one leaves, others get."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.workers.leases import Demand
from proxy.workers.order import Ledger, WorkerLoad, parts
from proxy.workers.permits import Permits


def divided(most: int, wants: dict[int, int]) -> dict[int, int]:
    """Parts of workers that report no tenants."""
    return parts(most, {at: WorkerLoad(queued=count) for at, count in wants.items()}, Ledger())


@given(st.integers(0, 300), st.dictionaries(st.integers(0, 7), st.integers(0, 400), max_size=6))
def test_parts_are_all_of_the_total_and_fair(most: int, wants: dict[int, int]) -> None:
    parts = divided(most, wants)
    assert parts.keys() == wants.keys()
    assert sum(parts.values()) == (most if wants else 0)
    lacks = [at for at in wants if parts[at] < wants[at]]
    if lacks:
        least = min(parts[at] for at in lacks)
        for at, part in parts.items():
            assert part <= max(wants[at], 1, least + 1), "one has more than it wants while another lacks"
            assert part <= least + 1 or part <= max(1, wants[at])
    if most >= len(wants):
        assert all(part >= 1 for part in parts.values())


@pytest.mark.parametrize(
    ("most", "wants", "parts"),
    [
        (8, {0: 0, 1: 0}, {0: 4, 1: 4}),
        (8, {0: 20, 1: 0}, {0: 7, 1: 1}),
        (8, {0: 20, 1: 3}, {0: 5, 1: 3}),
        (9, {0: 20, 1: 20}, {0: 4, 1: 5}),
        (2, {0: 5, 1: 5, 2: 0}, {0: 1, 1: 1, 2: 0}),
        (0, {0: 1}, {0: 0}),
    ],
)
def test_examples_of_parts(most: int, wants: dict[int, int], parts: dict[int, int]) -> None:
    assert divided(most, wants) == parts


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=7),
)
def test_no_part_is_more_than_wanted_while_another_worker_lacks(
    most: int, workers: list[tuple[int, int, int]]
) -> None:
    """Whatever they were allotted before."""
    places = {
        at: WorkerLoad(allotted=allotted, inflight=inflight, queued=queued)
        for at, (allotted, inflight, queued) in enumerate(workers)
    }
    divided = parts(most, places, Ledger())
    assert sum(divided.values()) == most
    wants = {at: place.inflight + place.queued for at, place in places.items()}
    if most >= len(places) and any(divided[at] < want for at, want in wants.items()):
        assert all(divided[at] <= max(1, want) for at, want in wants.items())


def test_a_place_that_is_not_wanted_goes_to_the_worker_with_a_queue() -> None:
    """It was kept where it had been, since it was one of the two numbers next to that worker's share."""
    places = {1: WorkerLoad(allotted=2, inflight=1), 2: WorkerLoad(allotted=1, inflight=1, queued=1)}
    places |= {at: WorkerLoad(allotted=1) for at in (3, 4, 5)}
    assert parts(6, places, Ledger()) == {1: 1, 2: 2, 3: 1, 4: 1, 5: 1}


class Workers(RuleBasedStateMachine):
    """Workers with requests that come and go, and messages that take their time, in order, both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = Permits()
        self.most = 6
        self.places: dict[int, int] = {}  # as each worker has applied it
        self.applied: dict[int, int] = {}
        self.inflight: dict[int, int] = {}
        self.queued: dict[int, int] = {}
        self.down: dict[int, deque[tuple[int, int]]] = {}
        self.up: dict[int, deque[tuple[int, int, int]]] = {}
        self.names = 0

    def _send(self) -> None:
        for worker, (number, places, _) in self.permits.changes().items():
            self.down[worker].append((number, places["e"]))

    def _take(self, worker: int) -> None:
        while self.queued[worker] and self.inflight[worker] < self.places[worker]:
            self.queued[worker] -= 1
            self.inflight[worker] += 1

    def _tell(self, worker: int) -> None:
        self.up[worker].append((self.applied[worker], self.inflight[worker], self.queued[worker]))

    @precondition(lambda self: len(self.places) < 5)
    @rule()
    def join(self) -> None:
        self.names += 1
        worker = self.names
        self.permits.join(worker)
        self.places[worker] = self.applied[worker] = self.inflight[worker] = self.queued[worker] = 0
        self.down[worker], self.up[worker] = deque(), deque()
        self._tell(worker)

    @precondition(lambda self: self.places)
    @rule(data=st.data(), count=st.integers(1, 9))
    def ask(self, data: st.DataObject, count: int) -> None:
        worker = data.draw(st.sampled_from(sorted(self.places)))
        self.queued[worker] += count
        self._take(worker)
        self._tell(worker)

    @precondition(lambda self: any(self.inflight.values()))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(at for at, count in self.inflight.items() if count)))
        self.inflight[worker] -= 1
        self._take(worker)
        if data.draw(st.booleans()):
            self._tell(worker)

    @precondition(lambda self: any(self.up.values()))
    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(at for at, messages in self.up.items() if messages)))
        number, inflight, queued = self.up[worker].popleft()
        self.permits.report(worker, number, {"e": (inflight, queued, self.most)})
        self._send()

    @precondition(lambda self: any(self.down.values()))
    @rule(data=st.data())
    def apply(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(at for at, messages in self.down.items() if messages)))
        self.applied[worker], self.places[worker] = self.down[worker].popleft()
        self._take(worker)
        self._tell(worker)

    @precondition(lambda self: self.places)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.places)))
        for table in (self.places, self.applied, self.inflight, self.queued, self.down, self.up):
            del table[worker]
        self.permits.leave(worker)
        self._send()

    @invariant()
    def never_more_than_the_limit(self) -> None:
        used = sum(max(self.places[worker], self.inflight[worker]) for worker in self.places)
        assert used <= self.most

    def teardown(self) -> None:
        """Once all messages have arrived and nothing more happens, no permit lies idle while a request waits, but
        for one at each worker that has no request."""
        for _ in range(60):
            for worker in self.places:
                while self.up[worker]:
                    number, inflight, queued = self.up[worker].popleft()
                    self.permits.report(worker, number, {"e": (inflight, queued, self.most)})
                    self._send()
                while self.down[worker]:
                    self.applied[worker], self.places[worker] = self.down[worker].popleft()
                    self._take(worker)
                self._tell(worker)
        free = self.most - sum(self.inflight.values())
        assert free <= sum(not count for count in self.inflight.values()) or not any(self.queued.values())


TestWorkers = Workers.TestCase


def test_the_limit_is_the_least_that_a_worker_s_controller_would_have() -> None:
    permits = Permits()
    for worker, most in ((1, 32), (2, 16)):
        permits.join(worker)
        permits.report(worker, 0, {"e": (0, 0, most)})
    told = permits.changes()
    assert sum(places["e"] for _, places, _ in told.values()) == 16
    for worker, (number, places, _) in told.items():
        permits.report(worker, number, {"e": (places["e"], 1, 32)})
    assert {worker: short for worker, (_, _, short) in permits.changes().items()} == {1: [], 2: []}
    assert permits.limit("e") == 32


def test_an_engine_that_is_full_while_requests_wait_is_said_to_be_short() -> None:
    permits = Permits()
    for worker in (1, 2):
        permits.join(worker)
        permits.report(worker, 0, {"e": (0, 0, 4)})
    for worker, (number, _, _) in permits.changes().items():
        permits.report(worker, number, {"e": (2, 3, 4)})
    assert permits.short("e")
    permits.report(1, 1, {"e": (1, 0, 4)})
    assert not permits.short("e")


def test_places_bounded_by_other_gateways_are_held_until_the_workers_confirm() -> None:
    permits = Permits(shared=True)
    for worker in (1, 2):
        permits.join(worker)
        permits.report(worker, 0, {"e": (0, 0, 8)})
    assert permits.changes() == {}, "no place before Redis gave one"
    permits.bound("e", 6)
    assert {at: places for at, (_, places, _) in permits.changes().items()} == {1: {"e": 3}, 2: {"e": 3}}
    permits.report(1, 1, {"e": (3, 5, 8)})
    permits.bound("e", 2)
    assert {at: places for at, (_, places, _) in permits.changes().items()} == {1: {"e": 1}, 2: {"e": 1}}
    demand = permits.demands(fixed=True)["e"]
    assert (demand.limit, demand.inflight, demand.queued, demand.held) == (8, 3, 5, 6)
    permits.report(2, 2, {"e": (0, 0, 8)})
    permits.report(1, 2, {"e": (2, 5, 8)})
    assert permits.demands(fixed=True)["e"].held == 3, "what is in flight ends by itself"


def test_that_all_gateways_have_reached_a_limit_is_told_to_each_worker() -> None:
    permits = Permits(shared=True)
    for worker in (1, 2):
        permits.join(worker)
        permits.report(worker, 0, {"e": (0, 0, 8)})
    permits.bound("e", 4)
    permits.changes()
    permits.reached("e")
    assert {at: short for at, (_, _, short) in permits.changes().items()} == {1: ["e"], 2: ["e"]}
    assert permits.changes() == {}, "once"


def test_requests_of_a_worker_that_has_removed_an_engine_count_there() -> None:
    permits = Permits()
    for worker in (1, 2):
        permits.join(worker)
        permits.report(worker, 0, {"e": (0, 0, 6)})
    for worker, (number, places, _) in permits.changes().items():
        assert places == {"e": 3}
        permits.report(worker, number, {"e": (3, 9, 6)})
    permits.report(1, 1, {}, leaving={"e": 3})
    told = permits.changes()
    assert 2 not in told, "the places are taken"
    assert permits.short("e")
    permits.report(1, 1, {}, leaving={"e": 1})
    assert permits.changes()[2][1] == {"e": 5}
    assert permits.demands(fixed=True)["e"] == Demand(6, 4, 9, 6)
    permits.report(1, 1, {"e": (1, 0, 6)})  # it was added again
    permits.changes()
    assert permits.demands(fixed=True)["e"].held == 6
    permits.leave(2)
    permits.report(1, 1, {}, leaving={"e": 1})
    assert permits.demands(fixed=True) == {"e": Demand.to_end(1)}
    permits.report(1, 1, {})
    assert permits.demands(fixed=True) == {}


def test_places_of_requests_at_a_removed_engine_are_free_once_their_worker_has_ended() -> None:
    permits = Permits()
    for worker in (1, 2):
        permits.join(worker)
    permits.report(1, 0, {}, leaving={"e": 4})
    permits.report(2, 0, {"e": (0, 9, 6)})
    ((number, places, _),) = permits.changes().values()
    assert places == {"e": 2}
    permits.report(2, number, {"e": (2, 7, 6)})
    permits.leave(1)
    assert permits.changes()[2][1] == {"e": 6}

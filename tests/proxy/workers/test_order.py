"""The order of all workers' queues: classes, tenants over all workers, users, and the reports about them."""

from __future__ import annotations

import math
from collections import Counter, deque

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.config.vocabulary import HIGH, LOW, NORMAL
from proxy.flights.queue import MOST_TOKENS, PoolQueue, Waiting
from proxy.flights.queue.deficit_round_robin import DEBT, Ticket
from proxy.flights.queue.fair_queue import FairQueue
from proxy.flights.queue.request_queue import RequestQueue
from proxy.flights.queue.summary import MOST_TENANTS
from proxy.flights.spec import User
from proxy.workers.channel import FromWorker, Report, Served, ToWorker
from proxy.workers.order import Ledger, WorkerLoad, filled, parts
from proxy.workers.permits import Permits


def queue(*waiting: tuple[int, str | None, int], oldest: float = 0.0, users: int = 1) -> PoolQueue:
    """Of class, tenant and requests."""
    return PoolQueue(None, oldest, [Waiting(at, name, 1, users, count, 0) for at, name, count in waiting])


def place(inflight: int, *waiting: tuple[int, str | None, int], allotted: int = 0, users: int = 1) -> WorkerLoad:
    pool = queue(*waiting, users=users)
    return WorkerLoad(inflight=inflight, queued=pool.queued, waiting=pool.waiting, allotted=allotted, oldest=0.0)


NAMES = st.sampled_from(["x", "y", "z", None])
PLACES = st.dictionaries(
    st.integers(0, 5),
    st.builds(
        lambda inflight, waiting, allotted: place(inflight, *waiting, allotted=allotted),
        st.integers(0, 50),
        st.lists(st.tuples(st.integers(HIGH, LOW), NAMES, st.integers(1, 400)), max_size=5),
        st.integers(0, 100),
    ),
    max_size=5,
)


@given(st.integers(0, 200), PLACES, st.integers(0, 9))
def test_all_places_are_given_and_none_twice(limit: int, places: dict[int, WorkerLoad], turn: int) -> None:
    counts = parts(limit, places, Ledger(), turn)
    assert sum(counts.values()) == (limit if places else 0)
    assert all(count >= (limit >= len(places)) for count in counts.values())


@given(
    st.dictionaries(st.integers(), st.tuples(st.integers(1, 9), st.floats(0, 1000)), min_size=1),
    st.floats(0, 5000),
)
def test_filled_parts_are_fair_by_weight(wants: dict[int, tuple[int, float]], total: float) -> None:
    amounts = filled(total, wants)
    assert sum(amounts.values()) == pytest.approx(min(total, sum(most for _, most in wants.values())))
    for key, amount in amounts.items():
        if amount < wants[key][1] - 1e-6:
            level = amount / wants[key][0]
            assert all(other / wants[at][0] <= level + 1e-6 for at, other in amounts.items())


def test_a_tenant_s_share_does_not_grow_with_the_workers_that_it_reaches() -> None:
    places = {at: place(16, (NORMAL, "x", 300)) for at in (1, 2, 3)}
    places[4] = place(16, (NORMAL, "y", 300))
    assert parts(64, places, Ledger()) == {1: 10, 2: 11, 3: 11, 4: 32}, "32 for each tenant"


def test_the_places_of_a_higher_class_come_first_wherever_it_waits() -> None:
    places = {1: place(16, (LOW, "x", 300)), 2: place(16, (HIGH, "y", 300))}
    assert parts(32, places, Ledger()) == {1: 1, 2: 31}
    places[2] = place(16, (HIGH, "y", 4))
    assert parts(32, places, Ledger()) == {1: 12, 2: 20}


def test_within_a_tenant_places_go_where_its_users_wait() -> None:
    places = {1: place(16, (NORMAL, "x", 300)), 2: place(0, (NORMAL, "x", 300), users=3)}
    assert parts(16, places, Ledger()) == {1: 4, 2: 12}


def test_a_light_request_has_the_next_place() -> None:
    places = {1: place(7, (NORMAL, "x", 300), allotted=7), 2: place(1, (NORMAL, "y", 1), allotted=1)}
    assert parts(8, places, Ledger()) == {1: 6, 2: 2}


def test_places_do_not_move_for_less_than_one() -> None:
    places = {at: place(8, (NORMAL, name, 300), allotted=count) for at, name, count in ((1, "x", 8), (2, "y", 9))}
    assert parts(17, places, Ledger()) == {1: 8, 2: 9}
    for at, count in ((1, 9), (2, 8)):
        places[at].allotted = count
    assert parts(17, places, Ledger()) == {1: 9, 2: 8}


def test_the_least_served_is_next_where_workers_outnumber_the_places() -> None:
    ledger = Ledger()
    places = {1: place(1, (NORMAL, "x", 300)), 2: place(0, (NORMAL, "y", 1)), 3: place(0, (HIGH, "z", 1))}
    for at, each in places.items():
        ledger.report(at, [PoolQueue(None, 0.0, list(each.waiting))])
    ledger.report(1, [PoolQueue(None, 0.0, [Waiting(NORMAL, "x", 1, 1, 300, 90)])])
    assert parts(1, places, ledger) == {1: 0, 2: 0, 3: 1}
    assert parts(2, places, ledger) == {1: 0, 2: 1, 3: 1}
    places[1].oldest = -9.0
    assert parts(1, places, ledger, turn=3) == {1: 1, 2: 0, 3: 0}, "each fourth goes to the oldest"
    idle = {1: WorkerLoad(inflight=1, allotted=1), 2: WorkerLoad(), 3: WorkerLoad()}
    assert parts(2, idle, ledger) == {1: 2, 2: 0, 3: 0}


def test_the_ledger_counts_what_is_served_once_and_tells_the_others() -> None:
    def waits(served: int, tenant: str = "x") -> list[PoolQueue]:
        return [PoolQueue("m", 0.0, [Waiting(NORMAL, tenant, 1, 1, 5, served)])]

    ledger = Ledger()
    for worker in (1, 2, 3):
        ledger.report(worker, waits(0, "y" if worker == 3 else "x"))
    ledger.report(1, waits(100))
    ledger.report(1, waits(100))
    ledger.report(1, waits(130))
    assert ledger.charges() == {2: [(("m", NORMAL, "x"), 130)]}
    assert ledger.charges() == {}
    ledger.report(1, waits(20))
    assert ledger.charges() == {2: [(("m", NORMAL, "x"), 20)]}, "it had drained, and began again"
    assert (ledger.spent(NORMAL, "x"), ledger.spent(NORMAL, "y"), ledger.spent(LOW, "x")) == (150, 0, 0)
    ledger.report(3, [])
    ledger.report(3, waits(0, "z"))
    assert ledger.spent(NORMAL, "z") == 150, "who is new has no credit"
    ledger.report(1, waits(90))
    ledger.leave(2)
    assert ledger.charges() == {}
    for worker in (1, 3):
        ledger.leave(worker)
    assert repr(ledger) == "<Ledger of 0 tenants>"


def test_a_summary_has_a_bounded_size_and_counts_everything() -> None:
    requests: RequestQueue[object] = RequestQueue(limit=999, max_batch=1, ticket=lambda item: Ticket(pool="m"))
    line: FairQueue[object] = requests.line
    assert requests.summary() == []
    for n in range(100):
        for user in range(2):
            line.offer((n, user), Ticket(owner=User(f"t{n}", user), pool="m", cost=70), float(n))
    line.offer("low", Ticket(owner=object(), priority=LOW, pool="m"), 0.0)
    requests.requeue("back", 5.0)
    first, back = requests.summary()
    assert (first.pool, first.oldest, first.queued, back.queued, back.oldest) == ("m", 0.0, 201, 1, 5.0)
    assert first.waiting[0] == Waiting(NORMAL, "t0", 1, 2, 2, 0)
    rest = 100 - MOST_TENANTS
    assert first.waiting[MOST_TENANTS:] == [
        Waiting(NORMAL, None, rest, rest, 2 * rest, 0), Waiting(LOW, None, 1, 1, 1, 0)
    ]  # fmt: skip
    item = line.next(0.0)
    line.granted(item)
    assert sum(each.served for each in line.summary()[0].waiting) == 70


def test_what_workers_and_supervisor_tell_each_other_is_read_as_it_was_sent() -> None:
    line: FairQueue[int] = FairQueue()
    for n, owner in enumerate([User(b"\x01t", "key"), "192.0.2.1", object()]):
        line.offer(n, Ticket(owner=owner), 1.5)
    report = Report(1, {"e": (1, 3, 4)}, [(["e"], each) for each in line.summary()])
    assert [each.tenant for each in report.queues[0][1].waiting] == ["#0174", "192.0.2.1", None]
    assert msgspec.msgpack.Decoder(FromWorker).decode(msgspec.msgpack.encode(report)) == report
    tokens = Served([((None, NORMAL, "#0174"), 64), (("m", LOW, "192.0.2.1"), 64)])
    assert msgspec.msgpack.Decoder(ToWorker).decode(msgspec.msgpack.encode(tokens)) == tokens
    line.charge(None, NORMAL, "#0174", 100)
    assert line._rings[NORMAL][None].tenants[b"\x01t"].deficit == -100


def test_a_request_for_any_number_of_tokens_and_a_name_of_any_text_can_be_told() -> None:
    line: FairQueue[int] = FairQueue()
    for n, owner in enumerate(["192.0.2.1", "192.0.2.1", "\udcff", "#00"]):
        line.offer(n, Ticket(owner=owner, cost=10**30), 0.0)
    line.granted(0)
    (told,) = line.summary()
    assert sorted(str(each.tenant) for each in told.waiting) == ["192.0.2.1", "None", "None"]
    msgspec.msgpack.encode(Report(1, {}, [([], told)]))
    ledger = Ledger()
    waiting = [PoolQueue(None, 0.0, [Waiting(NORMAL, "x", 1, 1, 5, served)]) for served in (0, MOST_TOKENS, 1)]
    for number in range(40):
        ledger.report(1, waiting[:1])
        ledger.report(2, [waiting[1 + number % 2]])
    msgspec.msgpack.encode(Served(ledger.charges()[1]))


def test_what_was_served_elsewhere_counts_as_a_tenant_s_turn_within_a_bound() -> None:
    line: FairQueue[str] = FairQueue()
    for n in range(40):
        for owner in "xy":
            line.offer(f"{owner}{n}", Ticket(owner=owner, cost=64), 0.0)
    line.charge(None, NORMAL, "x", 640)
    line.charge(None, NORMAL, "nobody", 640)
    line.charge("m", LOW, "x", 640)
    order = []
    for _ in range(22):
        item = line.next(0.0)
        assert item is not None
        line.granted(item)
        order.append(item[0])
    assert abs(order.count("y") - 16) <= 1, "ten more than x"
    for _ in range(9):
        line.charge(None, NORMAL, "x", DEBT)
    assert line._rings[NORMAL][None].tenants["x"].deficit == -DEBT


class Worker:
    """A queue, its permits, and messages that take their time, in order, both ways."""

    def __init__(self) -> None:
        self.line: FairQueue[tuple[str, int]] = FairQueue()
        self.allotted = self.applied = 0
        self.flying: list[str] = []
        self.up: deque[tuple[int, int, list[PoolQueue]]] = deque()
        self.down: deque[tuple[int, int]] = deque()

    def take(self) -> list[str]:
        taken = []
        while len(self.flying) < self.allotted and (item := self.line.next(0.0)) is not None:
            self.line.granted(item)
            self.flying.append(item[0])
            taken.append(item[0])
        return taken

    def tell(self) -> None:
        self.up.append((self.applied, len(self.flying), self.line.summary()))


def hear(permits: Permits, workers: dict[int, Worker], most: int, at: int) -> None:
    number, inflight, queues = workers[at].up.popleft()
    queued = sum(each.queued for each in queues)
    permits.report(at, number, {"e": (inflight, queued, most)}, [(["e"], each) for each in queues])
    for worker, (told, places, _) in permits.changes().items():
        workers[worker].down.append((told, places["e"]))
    for worker, tokens in permits.charges().items():
        for (pool, priority, tenant), count in tokens:
            workers[worker].line.charge(pool, priority, tenant, count)


class Order(RuleBasedStateMachine):
    """Whatever is asked for, answered and lost in whatever order: never more than the limit, and in the end every
    request has had its place."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = Permits()
        self.most = 3
        self.workers: dict[int, Worker] = {}
        self.made = 0

    @precondition(lambda self: len(self.workers) < 5)
    @rule()
    def join(self) -> None:
        self.made += 1
        self.permits.join(self.made)
        self.workers[self.made] = Worker()
        self.workers[self.made].tell()

    @precondition(lambda self: self.workers)
    @rule(
        data=st.data(),
        tenant=st.sampled_from("xyz"),
        priority=st.integers(HIGH, LOW),
        count=st.integers(1, 5),
        cost=st.integers(1, 300),
    )
    def ask(self, data: st.DataObject, tenant: str, priority: int, count: int, cost: int) -> None:
        worker = self.workers[data.draw(st.sampled_from(sorted(self.workers)))]
        for _ in range(count):
            self.made += 1
            worker.line.offer((tenant, self.made), Ticket(owner=tenant, priority=priority, cost=cost), 0.0)
        worker.take()
        worker.tell()

    @precondition(lambda self: any(worker.flying for worker in self.workers.values()))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from(sorted(at for at, worker in self.workers.items() if worker.flying)))
        self.workers[at].flying.pop()
        self.workers[at].take()
        if data.draw(st.booleans()):
            self.workers[at].tell()

    @precondition(lambda self: any(worker.up for worker in self.workers.values()))
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from(sorted(at for at, worker in self.workers.items() if worker.up)))
        hear(self.permits, self.workers, self.most, at)

    @precondition(lambda self: any(worker.down for worker in self.workers.values()))
    @rule(data=st.data())
    def apply(self, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from(sorted(at for at, worker in self.workers.items() if worker.down)))
        self.apply_at(at)

    def apply_at(self, at: int) -> None:
        worker = self.workers[at]
        worker.applied, worker.allotted = worker.down.popleft()
        worker.take()
        worker.tell()

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from(sorted(self.workers)))
        del self.workers[at]
        self.permits.leave(at)

    @rule(most=st.integers(1, 6))
    def limit(self, most: int) -> None:
        self.most = max(most, self.most)  # a lower one holds once requests have ended

    @invariant()
    def never_more_than_the_limit(self) -> None:
        assert sum(max(worker.allotted, len(worker.flying)) for worker in self.workers.values()) <= self.most

    def teardown(self) -> None:
        queued = sum(len(worker.line) for worker in self.workers.values())
        for _ in range(20 * (queued + 9)):
            for at, worker in self.workers.items():
                worker.tell()
                while worker.up:
                    hear(self.permits, self.workers, self.most, at)
            for at, worker in self.workers.items():
                while worker.down:
                    self.apply_at(at)
                if worker.flying:
                    worker.flying.pop()
                    worker.take()
        assert not any(worker.line or worker.flying for worker in self.workers.values()), "a request waits in vain"


TestOrder = Order.TestCase
TestOrder.settings = settings(max_examples=50)


def served(most: int, asks: list[dict[str, int]], rounds: int) -> Counter[str]:
    """What each tenant is served by workers with these queued requests, all answers taking as long."""
    permits = Permits()
    workers = {}
    for at, tenants in enumerate(asks):
        permits.join(at)
        workers[at] = worker = Worker()
        for tenant, count in tenants.items():
            for n in range(count):
                worker.line.offer((tenant, n), Ticket(owner=tenant, cost=100), 0.0)
    total: Counter[str] = Counter()
    answers: deque[Worker] = deque()  # in the order of their ends
    for _ in range(rounds):
        for at, worker in workers.items():
            worker.tell()
            hear(permits, workers, most, at)
        for worker in workers.values():
            while worker.down:
                worker.applied, worker.allotted = worker.down.popleft()
            taken = worker.take()
            total.update(taken)
            answers.extend([worker] * len(taken))
        for _ in range(max(1, len(answers) // 4)):
            if answers:
                answers.popleft().flying.pop()
    return total


@pytest.mark.parametrize(
    ("most", "asks"),
    [
        (16, [{"x": 9000}, {"y": 9000}]),
        (16, [{"x": 9000}, {"x": 9000}, {"x": 9000}, {"y": 9000}]),
        (16, [{"x": 9000, "y": 9000}, {"x": 9000}]),
        (16, [{"x": 9000, "y": 9000}, {"x": 9000}, {"x": 9000}, {"x": 9000}]),
        (1, [{"x": 900}, {"y": 900}]),
        (2, [{"x": 900}, {"x": 900}, {"x": 900, "y": 900}]),
    ],
)
def test_tenants_are_served_alike_wherever_they_wait(most: int, asks: list[dict[str, int]]) -> None:
    total = served(most, asks, 200)
    assert math.isclose(total["x"], total["y"], rel_tol=0.15), total


def test_three_tenants_that_meet_at_some_workers_are_served_alike() -> None:
    total = served(24, [{"x": 9000, "y": 9000}, {"y": 9000, "z": 9000}, {"x": 9000}], 200)
    assert max(total.values()) <= 1.15 * min(total.values()), total

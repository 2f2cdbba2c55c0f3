"""Users of one tenant take turns within its turns, and share its part of a full queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.vocabulary import HIGH, LOW, NORMAL
from proxy.errors import Code, GatewayError
from proxy.flights.queue.deficit_round_robin import Ticket
from proxy.flights.queue.fair_queue import FairQueue
from proxy.flights.queue.request_queue import RequestQueue
from proxy.flights.queue.shares import Shares
from proxy.flights.spec import QueueState, User, tenant_of
from tests.proxy.flights.queue.test_fair_queue import drained

HEAVY, LIGHT, OTHER = User("t", "heavy"), User("t", "light"), User("other", "key")


def test_a_user_with_300_requests_delays_another_of_its_tenant_by_one() -> None:
    line: FairQueue[object] = FairQueue()
    for n in range(300):
        line.offer(n, Ticket(owner=HEAVY, cost=100), 0.0)
    line.offer("light", Ticket(owner=LIGHT, cost=100), 0.0)
    assert drained(line).index("light") <= 1


def test_neither_many_users_nor_many_requests_take_more_than_a_tenant_s_turns() -> None:
    line: FairQueue[tuple[str, int]] = FairQueue()
    for n in range(300):
        line.offer(("t", n), Ticket(owner=User("t", n), cost=100), 0.0)
    for n in range(20):
        line.offer(("other", n), Ticket(owner=OTHER, cost=100), 0.0)
    first = Counter(tenant for tenant, _ in drained(line)[:40])
    assert abs(first["t"] - first["other"]) <= 2


@given(
    st.dictionaries(
        st.sampled_from("abc"), st.tuples(st.integers(1, 500), st.lists(st.sampled_from("xyz"), max_size=30))
    ),
    st.integers(1, 200),
)
def test_tenants_take_the_same_turns_whoever_their_users_are(
    tenants: dict[str, tuple[int, list[str]]], quantum: int
) -> None:
    orders = []
    for users in (True, False):
        line: FairQueue[tuple[str, int]] = FairQueue(quantum=quantum)
        for tenant, (cost, keys) in tenants.items():
            for n, key in enumerate(keys):
                line.offer((tenant, n), Ticket(owner=User(tenant, key) if users else tenant, cost=cost), 0.0)
        orders.append([tenant for tenant, _ in drained(line)])
    assert orders[0] == orders[1]


@given(
    st.dictionaries(st.sampled_from("xyz"), st.lists(st.integers(1, 3000), min_size=20, max_size=20), min_size=2),
    st.integers(1, 1000),
    st.booleans(),
)
def test_users_that_wait_get_alike_within_a_quantum_and_an_item(
    costs: dict[str, list[int]], quantum: int, others: bool
) -> None:
    line: FairQueue[tuple[Hashable, int]] = FairQueue(quantum=quantum)
    for name, items in costs.items():
        for n, cost in enumerate(items):
            line.offer((name, n), Ticket(owner=User("t", name), cost=cost), 0.0)
    if others:
        for n in range(200):
            line.offer((None, n), Ticket(owner=OTHER, cost=300), 0.0)
    spent: Counter[Hashable] = Counter()
    while all(line.shares.used(User("t", key)) for key in costs):
        item = line.next(0.0)
        assert item is not None
        line.granted(item)
        key, n = item
        if key in costs:
            spent[key] += costs[str(key)][n]
    dearest = max(max(items) for items in costs.values())
    assert max(spent.values()) - min(spent[key] for key in costs) <= 2 * (quantum + dearest)


def test_a_higher_class_and_a_user_s_earlier_deadline_go_first() -> None:
    line: FairQueue[str] = FairQueue()
    line.offer("low", Ticket(owner=LIGHT, priority=LOW), 0.0)
    line.offer("late", Ticket(owner=HEAVY), 0.0)
    line.offer("soon", Ticket(owner=HEAVY, deadline=5.0), 0.0)
    line.offer("high", Ticket(owner=HEAVY, priority=HIGH), 0.0)
    assert drained(line) == ["high", "soon", "late", "low"]


@given(
    st.lists(
        st.tuples(st.sampled_from([HEAVY, LIGHT, OTHER, "address"]), st.integers(0, 2), st.booleans()), max_size=60
    )
)
def test_a_queue_that_is_empty_again_holds_nothing(steps: list[tuple[Hashable, int, bool]]) -> None:
    line: FairQueue[int] = FairQueue()
    for at, (owner, priority, leaves) in enumerate(steps):
        line.offer(at, Ticket(owner=owner, priority=priority), 0.0)
        if leaves:
            line.discard(at // 2)
    items = list(line)
    assert line.owners == len({tenant_of(line.entries[item].ticket.owner) for item in items})
    assert sorted(drained(line)) == items
    assert (line.owners, line._rings, line.shares._tenants) == (0, [{}, {}, {}], {})


@pytest.mark.parametrize(("mine", "before"), [(0, 0), (2, 8), (9, 22)])
def test_the_requests_ahead_are_counted_by_user_and_by_tenant(mine: int, before: int) -> None:
    """The heavy user has 5 requests, another tenant 8; a quantum buys nothing."""
    line: FairQueue[object] = FairQueue(quantum=1)
    for n in range(5):
        line.offer(("heavy", n), Ticket(owner=HEAVY, cost=2), 0.0)
    for n in range(mine):
        line.offer(("light", n), Ticket(owner=LIGHT, cost=2), 0.0)
    for n in range(8):
        line.offer(("other", n), Ticket(owner=OTHER, cost=2), 0.0)
    assert line.ahead(Ticket(owner=LIGHT, cost=2)) == before


def test_a_shared_request_waits_in_the_turn_of_its_lightest_user() -> None:
    line: FairQueue[object] = FairQueue()
    for n in range(5):
        line.offer(n, Ticket(owner=HEAVY), 0.0)
    assert line.promote(4, NORMAL, 9e9, LIGHT)
    assert line.shares.used(LIGHT) == 1
    queue: RequestQueue[str] = RequestQueue(
        limit=9, max_batch=1, ticket=lambda item: Ticket(owner=HEAVY), callers=lambda item: (HEAVY, LIGHT)
    )
    queue.enqueue("first", 0.0)
    queue.enqueue("second", 0.0)
    assert (queue.line.shares.used(HEAVY), queue.line.shares.used(LIGHT)) == (1, 1)


def full(*owners: Hashable) -> Shares[int]:
    shares: Shares[int] = Shares()
    for at, owner in enumerate(owners):
        shares.add(at, owner)
    return shares


def test_in_a_full_queue_a_light_user_displaces_the_heavy_one_of_its_tenant() -> None:
    shares = full(HEAVY, HEAVY, HEAVY, HEAVY)
    victim, error = shares.make_room(LIGHT, NORMAL, 4, lambda item: ())
    assert (victim, error.code) == (3, Code.QUEUE_SHARE)
    assert "(2 of 4 requests; 1 callers have requests queued, and 2 of your tenant's keys have)" in error.message
    shares.drop(3, HEAVY)
    shares.add(4, LIGHT)
    assert shares.make_room(LIGHT, NORMAL, 4, lambda item: ())[0] == 2
    shares.drop(2, HEAVY)
    shares.add(5, LIGHT)
    for user in (HEAVY, LIGHT):
        with pytest.raises(GatewayError) as caught:
            shares.make_room(user, NORMAL, 4, lambda item: ())
        assert caught.value.code is Code.QUEUE_FULL, "each has its part"


def test_a_tenant_s_users_together_have_no_more_than_its_share() -> None:
    shares = full(HEAVY, LIGHT, User("t", "third"), "address")
    with pytest.raises(GatewayError) as caught:
        shares.make_room(User("t", "fourth"), NORMAL, 4, lambda item: ())
    assert caught.value.code is Code.QUEUE_SHARE
    assert shares.make_room("address", NORMAL, 4, lambda item: ())[0] in {0, 1, 2}


def test_a_request_of_a_lower_class_of_any_user_makes_room_within_the_tenant() -> None:
    shares = full(LIGHT)
    shares.add(1, HEAVY, LOW)
    victim, error = shares.make_room(LIGHT, HIGH, 2, lambda item: ())
    assert (victim, error.code) == (1, Code.QUEUE_FULL)


def test_memory_and_failures_count_for_the_tenant() -> None:
    assert QueueState(owner=HEAVY).resolve_tenant() == "t"
    state = QueueState(owner=lambda: "192.0.2.1")
    assert (state.resolve_tenant(), state.owner) == ("192.0.2.1", "192.0.2.1")

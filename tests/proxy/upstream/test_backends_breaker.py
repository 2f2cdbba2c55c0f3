"""Engines with breakers: who is asked while some are open, what probes decide, and engines that come and go."""

from __future__ import annotations

from typing import cast

import pytest

from proxy.errors import Code, GatewayError
from proxy.upstream.backends import Backend, Backends, Lease
from proxy.upstream.breaker import Breaker, BreakerRules, State
from proxy.upstream.http.pool import Pool
from proxy.upstream.routing import PowerOfTwo
from tests.kit.trip import MemoryEngine

RULES = BreakerRules(failures=2, span=4.0, rate=0.0)


class House:
    """Engines `a`, `b`, … and a clock that the test sets."""

    def __init__(self, count: int = 2, room: int = 3) -> None:
        self.now = 0.0
        self.engines = [
            Backend(chr(97 + n), cast(Pool, MemoryEngine()), room, up=True, breaker=Breaker(RULES, lambda: 0.0))
            for n in range(count)
        ]
        self.told: list[str] = []
        self.changed: list[Backend] = []
        self.backends = Backends(
            self.engines,
            clock=lambda: self.now,
            on_breaker=lambda b, why: self.told.append(f"{b.name}: {why or 'closed'}"),
            on_change=self.changed.append,
        )
        self.released = 0
        self.backends.subscribe(capacity_changed=self.count)

    def count(self) -> None:
        self.released += 1

    def take(self) -> Lease:
        lease = self.backends.acquire(None)
        assert lease is not None
        return lease

    def trip(self, engine: Backend) -> None:
        for _ in range(2):
            lease = Lease(engine, self.backends)
            self.backends.record_failure(lease, "it broke")
            lease.release()


def test_an_engine_whose_breaker_is_open_is_passed_over_and_that_is_told_once() -> None:
    house = House()
    house.trip(house.engines[0])
    house.trip(house.engines[0])
    assert [house.take().backend.name for _ in range(3)] == ["b", "b", "b"]
    assert house.told == ["a: it broke"]
    assert house.backends.acquire(None) is None  # the other is full: worth a wait


def test_with_every_breaker_open_a_client_is_told_when_to_come_again() -> None:
    house = House()
    house.trip(house.engines[0])
    house.now = 0.5
    house.trip(house.engines[1])
    with pytest.raises(GatewayError) as caught:
        house.take()
    assert (caught.value.code, caught.value.retry_after) == (Code.NO_BACKEND, 4)
    house.now = 3.9
    with pytest.raises(GatewayError) as caught:
        house.take()
    assert caught.value.retry_after == 1


def test_a_probe_goes_when_it_is_time_and_the_others_wait_for_what_becomes_of_it() -> None:
    house = House(1)
    house.trip(house.engines[0])
    house.now = 4.0
    probe = house.take()
    assert probe.probe
    assert house.backends.acquire(None) is None
    before = house.released
    house.backends.record_success(probe)
    assert house.released == before + 1  # those who wait are looked at again
    assert not house.take().probe
    assert house.told == ["a: it broke", "a: closed"]
    probe.release()
    assert house.engines[0].breaker.state is State.CLOSED


def test_a_probe_whose_client_leaves_lets_the_next_one_go() -> None:
    house = House(1)
    house.trip(house.engines[0])
    house.now = 4.0
    probe = house.take()
    probe.release()
    probe.release()
    assert house.take().probe


def test_an_engine_that_was_down_and_answers_again_may_be_probed_at_once() -> None:
    house = House(1)
    house.trip(house.engines[0])
    house.backends._set(house.engines[0], up=True)  # up all the time: what failed is something else
    with pytest.raises(GatewayError):
        house.take()
    house.backends.record_unreachable(house.engines[0], "gone")
    house.backends._set(house.engines[0], up=True)
    assert house.take().probe


def test_outcomes_of_a_closed_breaker_s_leases_are_no_probe_s() -> None:
    house = House(1)
    old = house.take()
    house.trip(house.engines[0])
    house.now = 4.0
    probe = house.take()
    house.backends.record_success(old)
    states = [house.engines[0].breaker.state]
    house.backends.record_failure(probe, "still")
    assert [*states, house.engines[0].breaker.state] == [State.HALF_OPEN, State.OPEN]
    assert house.told == ["a: it broke", "a: still"]


def test_an_engine_that_is_removed_ends_what_it_has_and_then_its_connections_close() -> None:
    house = House()
    gone, stays = house.engines
    lease = house.take()
    assert lease.backend is gone
    new = Backend("c", cast(Pool, MemoryEngine()), 3, up=True)
    house.backends.change([new], [gone])
    assert [b.name for b in house.backends.all] == ["b", "c"]
    assert {house.take().backend.name for _ in range(4)} == {"b", "c"}
    pool = cast(MemoryEngine, gone.pool)
    closed = [pool.closed]
    house.backends.record_success(lease)
    lease.release()
    assert [*closed, pool.closed] == [False, True]
    assert not cast(MemoryEngine, stays.pool).closed


def test_one_that_is_idle_closes_at_once_and_what_is_seen_of_it_later_is_not_told() -> None:
    house = House()
    gone = house.engines[0]
    house.trip(gone)
    house.backends.change([], [gone])
    assert cast(MemoryEngine, gone.pool).closed
    house.backends.record_unreachable(gone, "its pool was closed")
    assert house.changed == []
    assert house.backends._tripped == set()


def test_the_policy_and_what_belongs_together_are_asked_of_the_router() -> None:
    asked: list[int] = []

    class Noting(PowerOfTwo):
        def choose(self, targets, key):  # type: ignore[no-untyped-def]
            asked.append(key)
            return super().choose(targets, key)

    house = House()
    backends = Backends(house.engines, router=Noting())
    assert backends.acquire(None, affinity=7) is not None
    assert backends.acquire(None, affinity=9, exclude=frozenset(house.engines[:1])) is not None
    assert asked == [7]  # with one engine there is nothing to choose

"""The ticks of the pacers: what they are told, and what becomes of it."""

from __future__ import annotations

from typing import cast

from proxy.upstream.backends import Backend, Backends
from proxy.upstream.concurrency import AdaptiveLimit
from proxy.upstream.http.pool import Pool
from proxy.upstream.limit_ticker import LimitTicker
from proxy.upstream.load import LoadReport
from tests.trip import MemoryEngine


def engine(name: str = "e0", limit: int = 4) -> Backend:
    return Backend(name, cast(Pool, MemoryEngine()), limit, up=True, adaptive_limit=AdaptiveLimit(limit))


def test_an_engine_that_was_full_gets_more_and_who_waits_is_told() -> None:
    backend, told, room = engine(), [], []
    watch = LimitTicker(
        lambda: [backend],
        clock=lambda: 0.0,
        on_room=lambda: room.append(1),
        on_large=lambda engine, limit: told.append(limit),
    )
    backends = Backends([backend])
    leases = [backends.acquire(None) for _ in range(4)]
    for lease in leases:
        assert lease is not None
        lease.release()
    assert backend.reached
    backend.report = LoadReport(4.0, 0.0, 0.1)
    watch.tick()
    assert (backend.max_inflight, backend.reached, room) == (8, False, [1])
    watch.tick()  # not reached since
    assert (backend.max_inflight, room) == (8, [1])
    backend.report = LoadReport(1.0, 7.0, 0.1)
    watch.tick()
    assert backend.max_inflight == 4
    backend.report = LoadReport(1.0, 3.0, 0.1)
    watch.tick()
    assert (backend.max_inflight, told) == (2, [4, 2])


def test_one_that_is_down_or_has_no_pacer_is_left_alone() -> None:
    down, plain = engine(), Backend("e1", cast(Pool, MemoryEngine()), 7, up=True)
    down.up, down.reached = False, True
    LimitTicker(lambda: [down, plain], clock=lambda: 0.0, on_room=lambda: None).tick()
    assert (down.max_inflight, down.reached, plain.max_inflight) == (4, True, 7)


def test_one_that_is_down_keeps_no_other_from_its_tick() -> None:
    down, full = engine("e0"), engine("e1")
    down.up, full.reached, full.report = False, True, LoadReport(4.0, 0.0, 0.1)
    LimitTicker(lambda: [down, full], clock=lambda: 0.0, on_room=lambda: None).tick()
    assert (down.max_inflight, full.max_inflight) == (4, 8)


def test_an_engine_that_is_removed_is_forgotten() -> None:
    engines = [engine("e0"), engine("e1")]
    watch = LimitTicker(lambda: engines, clock=lambda: 0.0, on_room=lambda: None)
    watch.tick()
    assert len(watch._told) == 2
    del engines[0]
    watch.tick()
    assert list(watch._told) == engines

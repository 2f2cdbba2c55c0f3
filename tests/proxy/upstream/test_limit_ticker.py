"""The ticks of the pacers: what they are told, and what becomes of it."""

from __future__ import annotations

from typing import cast

import pytest

from proxy.upstream.backends import Backend, Backends
from proxy.upstream.concurrency import AdaptiveLimit
from proxy.upstream.http.pool import Pool
from proxy.upstream.limit_ticker import TICK, LimitTicker
from proxy.upstream.load import LoadReport
from tests.kit.trip import MemoryEngine


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


def test_a_limit_is_told_where_it_is_twice_or_half_of_what_was_told_last() -> None:
    backend, told, limits = engine(limit=10), list[int](), iter([10, 19, 20, 39, 40, 21, 20, 40])

    class Scripted(AdaptiveLimit):
        def tick(self, now: float, *, reached: bool, report: LoadReport | None) -> int:
            return next(limits)

    backend.adaptive_limit = Scripted()
    watch = LimitTicker(
        lambda: [backend], clock=lambda: 0.0, on_room=lambda: None, on_large=lambda _, limit: told.append(limit)
    )
    for _ in range(8):
        watch.tick()
    assert told == [20, 40, 20, 40]
    assert backend.max_inflight == 40


def test_who_waits_is_told_where_there_is_more_room_and_not_where_there_is_as_much_or_less() -> None:
    first, second, rooms = engine("e0"), engine("e1"), list[int]()
    limits = {"e0": iter([5, 5, 4, 6]), "e1": iter([4, 4, 4, 3])}

    class Scripted(AdaptiveLimit):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def tick(self, now: float, *, reached: bool, report: LoadReport | None) -> int:
            return next(limits[self.name])

    first.adaptive_limit, second.adaptive_limit = Scripted("e0"), Scripted("e1")
    watch = LimitTicker(lambda: [first, second], clock=lambda: 0.0, on_room=lambda: rooms.append(1))
    counts = []
    for _ in range(4):
        watch.tick()
        counts.append(len(rooms))
    assert counts == [1, 1, 1, 2], "though another has less"


def test_an_engine_is_reached_where_it_was_or_is_full_and_is_told_the_time() -> None:
    backend, seen = engine(limit=4), list[tuple[float, bool]]()

    class Told(AdaptiveLimit):
        def tick(self, now: float, *, reached: bool, report: LoadReport | None) -> int:
            seen.append((now, reached))
            return 4

    backend.adaptive_limit = Told()
    watch = LimitTicker(lambda: [backend], clock=lambda: 7.0, on_room=lambda: None)
    for was, inflight in ((False, 3), (False, 4), (True, 0)):
        backend.reached, backend.inflight = was, inflight
        watch.tick()
        assert not backend.reached
    assert seen == [(7.0, False), (7.0, True), (7.0, True)]


async def test_it_ticks_once_a_second_for_ever() -> None:
    slept: list[float] = []

    class Enough(Exception):
        pass

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise Enough

    ticks = 0

    def engines() -> list[Backend]:
        nonlocal ticks
        ticks += 1
        return []

    with pytest.raises(Enough):
        await LimitTicker(engines, clock=lambda: 0.0, on_room=lambda: None, sleep=sleep).run()
    assert (slept, ticks) == ([TICK] * 3, 2)

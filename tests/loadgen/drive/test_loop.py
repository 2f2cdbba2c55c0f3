"""The loop's eyes: a blocked loop's ticks are counted, timers are never early, a look bounds a read."""

from __future__ import annotations

import asyncio
import selectors
import socket
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.drive.capture.loop import Probe, Timer, TimestampingSelector, late_ticks, new_loop, selector_of


def test_every_missed_tick_counts_by_its_own_lateness() -> None:
    late: list[int] = []
    assert late_ticks(57, 10, 10, late.append) == 60
    assert late == [47, 37, 27, 17, 7]


@given(st.integers(0, 10_000), st.integers(1, 100))
def test_the_schedule_of_ticks_never_drifts(now: int, interval: int) -> None:
    late: list[int] = []
    after = late_ticks(now, interval, interval, late.append)
    assert after % interval == 0
    assert now < after <= now + interval
    assert len(late) == now // interval


@pytest.fixture
async def timer() -> AsyncIterator[Timer]:
    timer = Timer(asyncio.get_running_loop())
    yield timer
    timer.close()


async def test_a_timer_is_never_early(timer: Timer) -> None:
    for wait in (0, 200_000, 1_500_000):
        due = time.monotonic_ns() + wait
        await timer.until(due)
        assert time.monotonic_ns() >= due


async def test_a_time_that_has_passed_is_not_waited_for(timer: Timer) -> None:
    await timer.until(1)


async def test_a_cancelled_wait_leaves_a_timer_that_still_works(timer: Timer) -> None:
    waiting = asyncio.create_task(timer.until(time.monotonic_ns() + 60 * 10**9))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    due = time.monotonic_ns() + 1_000_000
    await timer.until(due)
    assert time.monotonic_ns() >= due


async def test_a_probe_counts_the_ticks_of_a_blocked_loop(timer: Timer) -> None:
    probe = Probe(asyncio.get_running_loop(), interval_ns=1_000_000)
    try:
        until = time.monotonic_ns() + 20_000_000
        while time.monotonic_ns() < until:  # the loop, hogged
            pass
        await timer.until(until + 1_000_000)
        while not probe.samples:  # noqa: ASYNC110 - a tick that is due is all that is waited for
            await asyncio.sleep(0)
        assert len(probe.samples) >= 19
        assert max(probe.samples) >= 18_000_000
        probe.clear()
        assert len(probe.samples) == 0
    finally:
        probe.close()


def test_what_a_look_did_not_find_came_after_it() -> None:
    selector = TimestampingSelector()
    here, there = socket.socketpair()
    with selector, here, there:
        selector.register(here, 1)
        before = time.monotonic_ns()
        assert selector.select(0) == []
        between = time.monotonic_ns()
        there.send(b"x")
        assert len(selector.select(1)) == 1
        assert before <= selector.not_before_ns <= between


def test_a_look_that_sleeps_is_dated_before_it_fell_asleep() -> None:
    selector = TimestampingSelector()
    here, there = socket.socketpair()
    with selector, here, there:
        selector.register(here, 1)
        before = time.monotonic_ns()
        assert selector.select(0.002) == []
        assert before <= selector.not_before_ns < time.monotonic_ns() - 1_000_000


def test_a_selector_tells_at_once_what_can_be_read() -> None:
    selector = TimestampingSelector()
    told: list[int] = []
    selector.read_ahead = told.append
    here, there = socket.socketpair()
    with selector, here, there:
        selector.register(here, selectors.EVENT_READ)
        selector.register(there, selectors.EVENT_WRITE)
        selector.select(0)
        assert told == []
        there.send(b"x")
        selector.select(0)
        selector.select(1)
        assert told == [here.fileno()] * 2


def test_only_our_own_loop_has_our_selector() -> None:
    ours = new_loop()
    other = asyncio.new_event_loop()
    try:
        assert isinstance(selector_of(ours), TimestampingSelector)
        assert selector_of(other) is None
    finally:
        ours.close()
        other.close()

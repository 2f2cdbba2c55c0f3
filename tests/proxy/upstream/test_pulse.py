"""Pauses of our own process, as the pulse notices them."""

from __future__ import annotations

import asyncio

import pytest

from proxy.upstream.pulse import AGAIN, EVERY, KEPT, LATE, Pulse
from tests.kit.clock import virtual


class Clock:
    """The loop's time, and what a pause adds to it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.added = 0.0

    def __call__(self) -> float:
        return self.loop.time() + self.added


def beating() -> tuple[Pulse, Clock]:
    clock = Clock()
    pulse = Pulse(clock.loop, clock)
    pulse.start()
    return pulse, clock


@virtual
async def test_time_that_passes_is_not_lost_and_a_pause_is_before_and_after_a_beat_saw_it() -> None:
    pulse, clock = beating()
    await asyncio.sleep(10.0)
    began = clock()
    assert pulse.lost(0.0) == 0.0
    clock.added += 3.0
    assert 3.0 <= pulse.lost(began) <= 3.0 + EVERY, "no beat has seen it yet"
    await asyncio.sleep(5.0)
    assert 3.0 <= pulse.lost(began) <= 3.0 + EVERY
    assert pulse.lost(clock() - 1.0) == 0.0
    assert repr(pulse) == "<Pulse beats, 1 pauses>"
    pulse.close()
    pulse.close()
    assert pulse.lost(0.0) == 0.0


@virtual
async def test_of_many_pauses_the_last_are_remembered() -> None:
    pulse, clock = beating()
    for _ in range(2 * KEPT):
        clock.added += 1.0
        await asyncio.sleep(1.0)
    assert len(pulse._pauses) == KEPT
    pulse.close()


@pytest.mark.parametrize(("pauses", "attempts"), [(0, 1), (1, 2), (99, AGAIN + 1)])
@virtual
async def test_what_ran_out_of_time_in_a_pause_is_tried_again_a_few_times(pauses: int, attempts: int) -> None:
    pulse, clock = beating()
    tried = 0

    async def attempt() -> None:
        nonlocal tried
        tried += 1
        await asyncio.sleep(1.0)
        if tried <= pauses:
            clock.added += 2.0
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await pulse.patiently(attempt)
    assert tried == attempts
    pulse.close()


@virtual
async def test_another_error_is_not_for_patience() -> None:
    pulse, clock = beating()
    tried = 0

    async def attempt() -> None:
        nonlocal tried
        tried += 1
        clock.added += 2.0
        raise ValueError("not of time")

    with pytest.raises(ValueError, match="not of time"):
        await pulse.patiently(attempt)
    assert tried == 1
    pulse.close()


class Still:
    """A loop and a clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[float] = []

    def call_later(self, delay: float, call: object) -> asyncio.TimerHandle:
        self.timers.append(delay)
        still = self

        class Handle:
            def cancel(self) -> None:
                still.timers.append(-1.0)

        return Handle()  # type: ignore[return-value]

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("late", "pause"), [(EVERY, 0.0), (EVERY + LATE, 0.0), (EVERY + LATE + 0.25, 0.75)])
def test_a_beat_that_is_just_late_enough_is_no_pause(late: float, pause: float) -> None:
    still = Still()
    pulse = Pulse(still, still)  # type: ignore[arg-type]
    assert (repr(pulse), pulse.lost(0.0)) == ("<Pulse stopped, 0 pauses>", 0.0)
    pulse.start()
    still.now += late
    assert pulse.lost(0.0) == pause
    assert pulse.lost(still.now - 0.5) == min(0.5, pause)
    pulse._beat()
    assert (len(pulse._pauses), still.timers) == (int(pause > 0), [EVERY] * 2)
    assert (pulse.lost(0.0), pulse.lost(still.now)) == (pause, 0.0)
    pulse.close()
    assert (still.timers[-1], pulse.lost(0.0)) == (-1.0, 0.0)


@pytest.mark.parametrize(("paused", "attempts"), [(EVERY, 1), (EVERY + 1.0, AGAIN + 1)])
@virtual
async def test_only_a_pause_that_counts_earns_another_attempt(paused: float, attempts: int) -> None:
    pulse, tried = Pulse(asyncio.get_running_loop()), 0

    async def attempt() -> int:
        nonlocal tried
        tried += 1
        if tried <= AGAIN:
            raise LookupError
        return tried

    pulse.lost = lambda since: paused  # type: ignore[method-assign]
    if attempts == 1:
        with pytest.raises(LookupError):
            await pulse.patiently(attempt, lambda error: isinstance(error, LookupError))
    else:
        assert await pulse.patiently(attempt, lambda error: isinstance(error, LookupError)) == attempts
    assert tried == attempts

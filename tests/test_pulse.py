"""Pauses of our own process, as the pulse notices them."""

from __future__ import annotations

import asyncio

import pytest

from proxy.upstream.pulse import AGAIN, EVERY, KEPT, Pulse
from tests.clock import virtual


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

"""What signals mean: the first ends well, the second at once, and so does one that comes while it starts."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from proxy.program import Signals


def kill(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers_as_before() -> object:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_sets_stop_and_the_second_cancels(number: signal.Signals) -> None:
    with Signals() as signals:
        signals.running(lambda: None)
        kill(number)
        await signals.stop.wait()
        kill(number)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()


async def test_while_it_starts_the_first_cancels() -> None:
    with Signals() as signals:
        kill(signal.SIGTERM)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        assert signals.stop.is_set()


async def test_a_hang_up_reads_again_while_it_runs_and_only_then() -> None:
    read = asyncio.Event()
    with Signals() as signals:
        kill(signal.SIGHUP)  # not running yet: it must not end the process either
        await asyncio.sleep(0)
        signals.running(read.set)
        kill(signal.SIGHUP)
        await read.wait()


async def test_once_it_ends_nothing_is_read_again_and_signals_interrupt_nothing() -> None:
    read: list[int] = []
    with Signals() as signals:
        assert "starting" in repr(signals)
        signals.running(lambda: read.append(1))
        assert "running" in repr(signals)
        signals._end()
        assert "stopping" in repr(signals)
        signals._hang_up()
    assert read == []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        assert signal.getsignal(number) is signal.SIG_IGN
        kill(number)
    await asyncio.sleep(0)

"""Signals at any moment of the start: a hang-up ends nothing, the others end it well with nothing left behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import pytest

from tests.kit.client import get
from tests.kit.engine import Engine
from tests.kit.patience import patience
from tests.kit.ports import free_port
from tests.kit.running import until

PATIENCE = 60.0
MOMENTS = random.Random(16)  # the same in each run

pytestmark = pytest.mark.e2e


@asynccontextmanager
async def starting(*flags: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A gateway whose program has just begun: Python runs, and hardly anything is imported."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "proxy", "--port", str(port), *flags),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with patience(PATIENCE):
            await until(
                lambda: (
                    holds(process.pid, "SigIgn", signal.SIGHUP) and holds(process.pid, "SigCgt", signal.SIGTERM)
                )
            )
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def holds(pid: int, field: str, number: signal.Signals) -> bool:
    """Whether a process ignores (SigIgn) or catches (SigCgt) a signal."""
    with open(f"/proc/{pid}/status") as status:
        mask = next(line for line in status if line.startswith(field)).split()[1]
    return bool(int(mask, 16) >> (number - 1) & 1)


def session(pid: int) -> list[int]:
    """The processes of a session."""
    found = []
    for name in os.listdir("/proc"):
        with suppress(OSError, ValueError):
            if name.isdigit():
                with open(f"/proc/{name}/stat") as stat:
                    fields = stat.read().rpartition(")")[2].split()
                if int(fields[3]) == pid and fields[0] != "Z":
                    found.append(int(name))
    return found


async def ended(
    process: asyncio.subprocess.Process,
    seconds: float,
    within: Callable[[float], AbstractAsyncContextManager[object]] = patience,
) -> bool:
    try:
        async with within(seconds):
            await process.wait()
    except TimeoutError:
        return False
    return True


async def test_hang_ups_at_any_moment_of_the_start_end_nothing(engine: Engine) -> None:
    async with starting("--backend", engine.url, "--redis", "off") as (process, url):
        sent = 0
        serves = False
        async with patience(PATIENCE):
            while not serves or sent <= 10:  # a slow machine sends few while it starts
                process.send_signal(signal.SIGHUP)
                sent += 1
                assert not await ended(process, MOMENTS.uniform(0, 0.02), asyncio.timeout), (
                    f"ended by hang-up {sent}"
                )
                with suppress(OSError):
                    serves = (await get(url, "/health")).status == 200
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert await ended(process, PATIENCE)
        assert process.returncode == 0


async def test_workers_that_end_say_on_a_terminal_how_long_that_may_take(engine: Engine) -> None:
    master, terminal = os.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "proxy", "--port", str(free_port()), "--workers", "2"),
        *("--backend", engine.url, "--redis", "off", "--drain-timeout", "4"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=terminal,
    )
    os.close(terminal)
    said = ""
    try:
        async with patience(PATIENCE):
            while "curl -iN" not in said:
                said += (await asyncio.to_thread(os.read, master, 4096)).decode()
            process.send_signal(signal.SIGINT)
            while "stop now" not in said:
                said += (await asyncio.to_thread(os.read, master, 4096)).decode()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)
    assert "\nfinishing the requests under way, up to 4 s (Ctrl-C again: stop now)" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", [0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0])
async def test_an_end_at_any_moment_of_the_start_is_clean_and_leaves_nothing(
    engine: Engine, number: signal.Signals, moment: float
) -> None:
    async with starting("--backend", engine.url) as (process, _):  # with its own Redis
        await ended(process, moment, asyncio.timeout)
        process.send_signal(number)
        assert process.stderr is not None
        async with patience(PATIENCE):
            _, err = await process.communicate()
        assert process.returncode == 0, err
        assert b"Traceback" not in err
        async with patience(PATIENCE):
            await until(lambda: not session(process.pid))

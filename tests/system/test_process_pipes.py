"""The program where nobody reads what it says: stdout and stderr are full pipes, or closed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.kit.client import Connection, NoAnswer, get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.patience import patience
from tests.kit.ports import free_port
from tests.kit.running import HELLO
from tests.proxy.test_terminal import fill

CHAT = "/v1/chat/completions"
PATIENCE = 60.0  # seconds for it to start on a machine that is busy
END = 15.0  # seconds for it to end after a signal: its bounds add up to 5

pytestmark = pytest.mark.e2e


@pytest.fixture
def full() -> Iterator[int]:
    """A pipe that takes not one byte more, and that nobody reads."""
    reader, writer = os.pipe()
    fill(writer)
    yield writer
    os.close(reader)
    os.close(writer)


@asynccontextmanager
async def program(*flags: str, out: int, err: int) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *("-m", "proxy", "--port", str(port), *flags), stdout=out, stderr=err
    )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def serves(process: asyncio.subprocess.Process, url: str) -> None:
    async with patience(PATIENCE):
        while process.returncode is None:
            try:
                assert (await get(url, "/health")).status == 200
            except OSError:
                continue
            return
    raise AssertionError(f"it ended with {process.returncode}")


async def ends(process: asyncio.subprocess.Process) -> int:
    async with patience(END):
        return await process.wait()


@pytest.mark.parametrize("level", ["debug", "error"])
async def test_with_full_pipes_for_stdout_and_stderr_it_serves_and_sigterm_ends_it(
    engine: Engine, full: int, level: str
) -> None:
    engine.auto(echo_script())
    flags = ("--backend", engine.url, "--redis", "off", "--log-level", level)
    async with program(*flags, out=full, err=full) as (process, url):
        await serves(process, url)
        for number in range(200):  # some 100 KB of log
            async with await Connection.open(url) as client:
                await client.send(b"no request of HTTP\r\n\r\n")
                assert (await client.read()).status == 400
            async with patience(5):
                assert (await get(url, "/health")).status == 200
            if number % 20 == 0:
                assert (await post_json(url, CHAT, HELLO)).status == 200
                assert (await post_json(url, CHAT, {"model": "x" * 5000})).status == 400
        process.send_signal(signal.SIGTERM)
        assert await ends(process) == 0


async def test_the_embedded_engine_and_redis_run_though_nobody_reads_the_gateways_pipes(full: int) -> None:
    """What they say is read by the gateway: it goes to none of its own pipes."""
    async with program(out=full, err=full) as (process, url):
        await serves(process, url)
        assert (await get(url, "/ready")).status == 200
        process.send_signal(signal.SIGTERM)
        assert await ends(process) == 0


@pytest.mark.parametrize("flags", [("--port", "x"), ("--backend", "http://127.0.0.1:1", "--host", "256.0.0.1")])
async def test_with_full_pipes_it_ends_where_it_cannot_start(full: int, flags: tuple[str, ...]) -> None:
    async with program("--redis", "off", *flags, out=full, err=full) as (process, _), patience(PATIENCE):
        assert await process.wait() == 2


async def test_a_second_signal_ends_it_at_once_though_nobody_reads(engine: Engine, full: int) -> None:
    async with program("--backend", engine.url, "--redis", "off", out=full, err=full) as (process, url):
        await serves(process, url)
        post = asyncio.create_task(post_json(url, CHAT, HELLO))
        turn = await engine.next_request()
        process.send_signal(signal.SIGTERM)
        while True:  # until it has heard the first: it listens no longer
            try:
                await get(url, "/health")
            except (OSError, NoAnswer):
                break
        process.send_signal(signal.SIGTERM)
        await turn.cancelled()
        assert await ends(process) == 0
        await asyncio.gather(post, return_exceptions=True)


@pytest.mark.parametrize("closed", ["1", "2", "12", "012"])
async def test_with_standard_files_closed_it_serves_and_nobody_reads_its_log(engine: Engine, closed: str) -> None:
    engine.auto(echo_script())
    port = free_port()
    words = [sys.executable, "-m", "proxy", "--port", str(port), "--backend", engine.url, "--redis", "off"]
    command = 'exec "$@" ' + " ".join(f"{fd}>&-" for fd in closed)
    process = await asyncio.create_subprocess_exec("/bin/sh", "-c", command, "sh", *words)
    try:
        url = f"http://127.0.0.1:{port}"
        await serves(process, url)
        for _ in range(20):
            answer = await post_json(url, CHAT, HELLO)
            assert answer.status == 200
            assert b"request_id" not in answer.body
        process.send_signal(signal.SIGTERM)
        assert await ends(process) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

"""The gateway's own process is stopped for a while, with streams under way: no engine is blamed for it."""

from __future__ import annotations

import asyncio
import re
import signal
from typing import Any

import pytest

from tests.kit.client import get, streaming
from tests.kit.engine import Engine, Turn
from tests.system.test_process import proxy

CHAT = "/v1/chat/completions"
STREAMS = 8
STOPPED = 7.0  # seconds, with a token timeout of 6: the engine is of the test, which may stand still too
TOKENS = 80

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]


async def paced(turn: Turn) -> None:
    """A token each 50 ms, whether the client reads or not."""
    if not turn.is_chat:
        await turn.respond(404, {})
        return
    await turn.start()
    for n in range(TOKENS):
        await turn.send(f" {n}")
        await _pace()
    await turn.finish()


async def _pace() -> None:
    await asyncio.sleep(0.05)


async def _stopped(process: asyncio.subprocess.Process) -> None:
    """As a virtual machine that is paused: it does not run, and time goes on."""
    process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(STOPPED)
    finally:
        process.send_signal(signal.SIGCONT)


def ask(number: int) -> dict[str, Any]:
    text = [{"role": "user", "content": f"number {number}"}]
    return {"model": "m1", "messages": text, "stream": True, "temperature": 1}


async def test_streams_outlive_a_pause_of_the_gateway_that_is_longer_than_their_token_timeout() -> None:
    flags = ("--redis", "off", "--token-timeout", "6", "--first-token-timeout", "6", "--retries", "0")
    async with Engine(paced) as engine, proxy("--backend", engine.url, *flags) as gateway:

        async def one(number: int) -> bytes:
            async with streaming(gateway.url, CHAT, ask(number)) as client:
                return (await client.read()).body

        reading = [asyncio.ensure_future(one(number)) for number in range(STREAMS)]
        await engine.until(lambda: engine.generations == STREAMS)
        await _stopped(gateway.process)
        bodies = await asyncio.gather(*reading)
        page = (await get(gateway.url, "/metrics")).body.decode()
    assert [body.endswith(b"data: [DONE]\n\n") and b'"error"' not in body for body in bodies] == [True] * STREAMS
    assert [body.count(b'"content":" ') for body in bodies] == [TOKENS] * STREAMS
    breaker = re.search(r"^gateway_backend_breaker\{.*\} (\S+)$", page, re.MULTILINE)
    assert breaker is not None
    assert float(breaker[1]) == 0
    assert f'gateway_backend_up{{backend="{engine.url}"}} 1' in page
    assert "gateway_upstream_errors_total{" not in page

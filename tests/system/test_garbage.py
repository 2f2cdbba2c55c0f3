"""A request leaves nothing for the garbage collector: what it made is gone when it is over."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from typing import Any

import pytest

from tests.kit.client import post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_wire import error_frame
from tests.kit.running import HELLO, HELLO_STREAM, gateway, until

CHAT = "/v1/chat/completions"
ROUNDS = 5
LIMITED: dict[str, Any] = {"rate_limit_rps": 1000, "rate_limit_tokens_per_minute": 10**8, "rate_limit_streams": 9}


@pytest.mark.parametrize(
    "body", [HELLO, HELLO_STREAM, HELLO | {"temperature": 1}, HELLO_STREAM | {"temperature": 1}, {"model": 1}]
)
@pytest.mark.parametrize("limits", [{}, LIMITED])
async def test_a_request_leaves_no_circle_behind(
    engine: Engine, body: dict[str, Any], limits: dict[str, Any]
) -> None:
    engine.auto(echo_script())
    async with gateway(engine, **limits) as app:

        async def ask() -> None:
            for _ in range(ROUNDS):
                await post_json(app.url, CHAT, body)
            await until(lambda: len(app.group) == 0)

        await ask()
        found = await _left_by(ask)
    assert found == {}


@pytest.mark.parametrize("limits", [{}, LIMITED])
async def test_a_client_that_leaves_leaves_no_circle_behind(engine: Engine, limits: dict[str, Any]) -> None:
    async with gateway(engine, **limits) as app:

        async def leave() -> None:
            for _ in range(ROUNDS):
                async with streaming(app.url, CHAT, HELLO_STREAM):
                    turn = await engine.next_request()
                await turn.cancelled()
            await until(lambda: len(app.group) == 0)

        await leave()
        found = await _left_by(leave)
    assert found == {}


@pytest.mark.parametrize("folds", [True, False])
async def test_a_body_that_waits_for_a_stream_leaves_no_circle_behind(engine: Engine, folds: bool) -> None:
    async with gateway(engine, probe="on", resume="off") as app:

        async def wait() -> None:
            for _ in range(ROUNDS):
                async with streaming(app.url, CHAT, HELLO_STREAM) as stream:
                    turn = await engine.next_request()
                    await turn.send("one")
                    await stream.event()
                    whole = asyncio.create_task(post_json(app.url, CHAT, HELLO))
                    await until(lambda: app.group.subscribers == 2)
                    if not folds:
                        await turn.frame(error_frame("no"))
                        await (await engine.next_request()).answer("one")
                    await turn.finish()
                    assert (await whole).status == 200
                    await stream.read()
            await until(lambda: len(app.group) == 0)

        await wait()
        found = await _left_by(wait)
    assert found == {}


async def _left_by(work: Any) -> dict[str, int]:
    """What of the proxy's only the collector can free after the work, by type, each in every round."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await work()
        gc.collect()
        kinds = Counter(type(one).__qualname__ for one in gc.garbage if type(one).__module__.startswith("proxy."))
        kinds.pop("ClientConnection", None)  # aiohttp's own circle, of a connection with its parser
        return {kind: count for kind, count in kinds.items() if count >= ROUNDS}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def test_embeddings_leave_no_circle_behind(engine: Engine) -> None:
    engine.auto(echo_script())
    async with gateway(engine) as app:

        async def ask() -> None:
            for n in range(ROUNDS):
                await post_json(app.url, "/v1/embeddings", {"model": "m1", "input": ["a", f"b{n}", "a"]})
            await until(lambda: len(app.group) == 0)

        await ask()
        found = await _left_by(ask)
    assert found == {}

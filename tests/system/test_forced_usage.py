"""An engine that gives usage unasked (vLLM's `--enable-force-include-usage`): every client sees it as it came."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.golden import load
from tests.kit.client import post_json, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO_STREAM, gateway, until

CHAT = "/v1/chat/completions"
FRAMES = load("chat-continuous-usage-stream").frames()
ASKED: dict[str, Any] = {"stream_options": {"include_usage": True}}


async def script(turn: Turn) -> None:
    await turn.start()
    await turn.end(*FRAMES)


@pytest.mark.parametrize("first", [{}, ASKED], ids=["first unasked", "first asked"])
async def test_private_shared_and_replayed_streams_show_what_the_engine_forces(
    engine: Engine, first: dict[str, Any]
) -> None:
    engine.auto(script)
    async with redis_server() as path, gateway(engine, redis=f"unix://{path}") as app:
        private = await post_json(app.url, CHAT, HELLO_STREAM, (("x-gateway-share", "off"),))
        shared = await post_json(app.url, CHAT, HELLO_STREAM | first)
        await until(lambda: len(app.group) == 0)
        again = [await post_json(app.url, CHAT, HELLO_STREAM | more) for more in ({}, ASKED)]
    assert {answer.body for answer in (private, shared, *again)} == {b"".join(FRAMES)}
    assert [answer.head["x-gateway-cache"] for answer in (shared, *again)] == ["miss", "hit", "hit"]


async def test_who_joins_a_running_stream_sees_it_too(engine: Engine) -> None:
    async with gateway(engine) as app, streaming(app.url, CHAT, HELLO_STREAM) as stream:
        turn = await engine.next_request()
        await turn.start()
        await turn.frame(*FRAMES[:3])
        await stream.event()
        other = asyncio.create_task(post_json(app.url, CHAT, HELLO_STREAM | {"user": "another"}))
        await until(lambda: app.group.subscribers == 2)
        await turn.end(*FRAMES[3:])
        joined = await other
        rest = await stream.read()
    assert joined.head["x-gateway-cache"] == "attached"
    assert joined.body == b"".join(FRAMES)
    assert joined.body.endswith(rest.body)

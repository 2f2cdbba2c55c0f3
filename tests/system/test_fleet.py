"""Several gateways with one Redis: identical requests are one generation, whichever gateway gets them, and each
client gets the whole stream while it is generated. Gateways of one event loop, a real redis-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy.app import App
from tests.kit.client import post_json, streaming
from tests.kit.engine import Engine
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, HELLO_STREAM, gateway, until

CHAT = "/v1/chat/completions"


@pytest.fixture
async def redis() -> AsyncIterator[str]:
    async with redis_server() as path:
        yield f"unix://{path}"


@asynccontextmanager
async def two(engine: Engine, redis: str, **changes: Any) -> AsyncIterator[tuple[App, App]]:
    async with gateway(engine, redis=redis, **changes) as one, gateway(engine, redis=redis, **changes) as other:
        assert one.scheduler.fleet is not None
        assert other.scheduler.fleet is not None
        await until(lambda: bool(one.scheduler.fleet.live and other.scheduler.fleet.live))
        yield one, other


async def test_a_follower_gets_the_stream_while_it_is_generated(redis: str) -> None:
    async with Engine() as engine, two(engine, redis) as (one, other):
        async with streaming(one.url, CHAT, HELLO_STREAM) as first:
            turn = await engine.next_request()
            await turn.send("a", "b")
            assert [(await first.event()).text for _ in range(3)] == ["", "a", "b"]
            async with streaming(other.url, CHAT, HELLO_STREAM) as second:
                assert [(await second.event()).text for _ in range(3)] == ["", "a", "b"]
                assert second.head is not None
                assert second.head["x-gateway-cache"] == "attached"
                await turn.send("c")
                assert (await first.event()).text == "c"
                assert (await second.event()).text == "c"
                await turn.finish()
                rest = [event.raw async for event in first.events()]
                assert [event.raw async for event in second.events()] == rest
                assert rest[-1] == b"data: [DONE]\n\n"
        assert engine.generations == 1

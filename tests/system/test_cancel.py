"""The last reader leaving cancels the generation at the engine, in every phase."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kit.client import Connection, streaming
from tests.kit.engine import Engine, full_backlog
from tests.kit.running import HELLO, HELLO_STREAM, gateway, until

CHAT = "/v1/chat/completions"
SAMPLED = {"temperature": 1}


@pytest.mark.parametrize("ask", [HELLO, HELLO_STREAM, HELLO | SAMPLED, HELLO_STREAM | SAMPLED])
async def test_leaving_during_prefill_cancels(engine: Engine, ask: dict[str, Any]) -> None:
    async with gateway(engine) as app, streaming(app.url, CHAT, ask) as client:
        turn = await engine.next_request()
        await client.abort()
        await turn.cancelled()
        await until(lambda: len(app.group) == 0)


@pytest.mark.parametrize("ask", [HELLO_STREAM, HELLO_STREAM | SAMPLED])
async def test_leaving_while_tokens_stream_cancels(engine: Engine, ask: dict[str, Any]) -> None:
    async with gateway(engine) as app, streaming(app.url, CHAT, ask) as client:
        turn = await engine.next_request()
        await turn.send("a")
        await client.event()
        await client.close()
        await turn.cancelled()


async def test_leaving_while_connecting_ends_the_attempt() -> None:
    with full_backlog() as url:
        async with gateway(url) as app, streaming(app.url, CHAT, HELLO_STREAM) as client:
            await until(lambda: app.group.subscribers == 1)
            await client.abort()
            await until(lambda: len(app.group) == 0)


async def test_leaving_the_queue_costs_the_engine_nothing(engine: Engine) -> None:
    async with gateway(engine, max_inflight=1) as app, streaming(app.url, CHAT, HELLO_STREAM) as first:
        turn = await engine.next_request()
        async with streaming(app.url, CHAT, HELLO_STREAM | SAMPLED) as queued:
            await until(lambda: len(app.scheduler.queue) == 1)
            await queued.abort()
            await until(lambda: len(app.scheduler.queue) == 0)
        await turn.finish("a")
        await first.read()
        assert engine.generations == 1


async def test_one_of_two_leaving_cancels_nothing_and_the_second_does(engine: Engine) -> None:
    async with (
        gateway(engine) as app,
        streaming(app.url, CHAT, HELLO_STREAM) as one,
        streaming(app.url, CHAT, HELLO_STREAM) as two,
    ):
        turn = await engine.next_request()
        await until(lambda: app.group.subscribers == 2)
        await one.abort()
        await until(lambda: app.group.subscribers == 1)
        assert not turn.is_cancelled
        await two.abort()
        await turn.cancelled()


async def test_no_one_joins_a_generation_that_is_being_cancelled(engine: Engine) -> None:
    async with gateway(engine) as app:
        async with streaming(app.url, CHAT, HELLO_STREAM) as first:
            turn = await engine.next_request()
            await first.abort()
            await turn.cancelled()
        async with streaming(app.url, CHAT, HELLO_STREAM) as second:
            again = await engine.next_request()
            await again.finish("b")
            assert (await second.read_head())["x-gateway-cache"] == "miss"
            await second.read()


async def test_a_disconnect_in_mid_body_leaves_nothing(engine: Engine) -> None:
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n"
            b'content-length: 100\r\n\r\n{"model"'
        )
        await client.abort()
    assert engine.generations == 0

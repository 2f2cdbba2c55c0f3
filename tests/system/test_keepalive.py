"""Keep-alives: a client that waits long for its stream gets comments, which are no part of the answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.kit.client import Connection, get, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, HELLO_STREAM, gateway, pause, until

CHAT = "/v1/chat/completions"
COMMENT = b": keep-alive\n\n"
SOON: dict[str, Any] = {"keepalive_seconds": 0.02}
ASKS = {"shared": HELLO_STREAM, "private": HELLO_STREAM | {"temperature": 0.9}}


async def comments(client: Connection, count: int) -> bytes:
    """What has come once there are so many of them."""
    body = b""
    while body.count(COMMENT) < count:
        body += await client.chunk() or b"the end"
    assert body == COMMENT * (len(body) // len(COMMENT))
    return body


async def rest(client: Connection) -> bytes:
    return b"".join([event.raw async for event in client.events()]).replace(COMMENT, b"")


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
async def test_while_the_engine_thinks_comments_come_and_then_the_stream_as_ever(
    engine: Engine, ask: dict[str, Any]
) -> None:
    async with gateway(engine, **SOON) as app:
        async with streaming(app.url, CHAT, ask) as client:
            turn = await engine.next_request()
            head = await client.read_head()
            assert (head.status, head["content-type"]) == (200, "text/event-stream; charset=utf-8")
            assert "x-request-id" in head
            await comments(client, 3)
            await turn.send("one")
            await turn.finish()
            late = await rest(client)
        engine.auto(lambda again: _one(again))
        async with streaming(app.url, CHAT, ask | {"user": "u"}) as client:
            await client.read_head()
            assert _texts(await rest(client)) == _texts(late)


async def _one(turn: Any) -> None:
    await turn.send("one")
    await turn.finish()


def _texts(body: bytes) -> bytes:
    assert COMMENT not in body
    return b"".join(part for part in body.split(b'"content"')[1:])[:10]


async def test_no_comment_is_stored_and_a_hit_has_none(engine: Engine) -> None:
    async with (
        redis_server() as path,
        gateway(engine, redis=f"unix://{path}", **SOON) as app,
        # Its own keep-alives never come: a slow look-up would draw one before the hit.
        gateway(engine, redis=f"unix://{path}", keepalive_seconds=30.0) as other,
    ):
        async with streaming(app.url, CHAT, HELLO_STREAM) as client:
            turn = await engine.next_request()
            await client.read_head()
            await comments(client, 2)
            await turn.send("one")
            await turn.finish()
            first = await rest(client)
        await until(lambda: not app.group.live)
        while b'gateway_cache_operations_total{op="store"} 1' not in (await get(app.url, "/metrics")).body:
            await pause()
        async with streaming(other.url, CHAT, HELLO_STREAM) as client:
            head = await client.read_head()
            assert head["x-gateway-cache"] == "hit"
            events = [event.raw async for event in client.events()]
        assert b"".join(events) == first


async def test_each_reader_gets_them_for_its_own_wait(engine: Engine) -> None:
    async with gateway(engine, **SOON) as app, streaming(app.url, CHAT, HELLO_STREAM) as one:
        turn = await engine.next_request()
        await one.read_head()
        await comments(one, 2)
        async with streaming(app.url, CHAT, HELLO_STREAM) as other:
            head = await other.read_head()
            assert head["x-gateway-cache"] == "attached"
            await comments(other, 1)
            await turn.send("one")
            await turn.finish()
            assert await rest(other) == await rest(one)
        assert engine.generations == 1


async def test_in_the_queue_too(engine: Engine) -> None:
    async with gateway(engine, max_inflight=1, **SOON) as app, streaming(app.url, CHAT, HELLO_STREAM) as one:
        turn = await engine.next_request()
        async with streaming(app.url, CHAT, HELLO_STREAM | {"seed": 7}) as other:
            await other.read_head()
            await comments(other, 2)
            assert engine.generations == 1
            await turn.send("one")
            await turn.finish()
            later = await engine.next_request()
            await later.send("two")
            await later.finish()
            assert b"two" in await rest(other)
        assert b"one" in await rest(one)


@pytest.mark.parametrize("how", ["drop", "refusal", "whole", "deadline"])
async def test_what_fails_after_the_head_is_an_error_frame_without_a_done(engine: Engine, how: str) -> None:
    headers = [("x-request-timeout", "1.5")] if how == "deadline" else []
    async with gateway(engine, retries=0, **SOON) as app:
        async with streaming(app.url, CHAT, HELLO_STREAM, headers) as client:
            turn = await engine.next_request()
            await client.read_head()
            await comments(client, 1)
            if how == "drop":
                await turn.start(role=False)
                await turn.drop()
            elif how == "refusal":
                await turn.respond(400, {"error": {"message": "no\nsuch", "code": "bad"}})
            elif how == "whole":
                await turn.answer("one")
            events = [event for event in [event async for event in client.events()] if event.raw != COMMENT]
        assert len(events) == 1
        code = events[0].json()["error"]["code"]
        assert code == {
            "drop": "upstream_truncated",
            "refusal": "bad",
            "whole": "upstream_protocol",
            "deadline": "deadline_exceeded",
        }[how]  # fmt: skip


async def test_up_to_the_first_comment_the_true_status_is_kept(engine: Engine) -> None:
    async with gateway(engine, retries=0, keepalive_seconds=30.0) as app:
        post = asyncio.create_task(post_json(app.url, CHAT, HELLO_STREAM))
        turn = await engine.next_request()
        await turn.respond(400, {"error": {"message": "no"}})
        assert (await post).status == 400


@pytest.mark.parametrize("settings", [SOON, {"keepalive_seconds": 0.0}], ids=["json", "off"])
async def test_a_client_that_wants_one_body_gets_none_and_with_0_nobody_does(
    engine: Engine, settings: dict[str, Any]
) -> None:
    ask = HELLO if settings is SOON else HELLO_STREAM
    async with gateway(engine, retries=0, **settings) as app:
        post = asyncio.create_task(post_json(app.url, CHAT, ask))
        turn = await engine.next_request()
        with pytest.raises(TimeoutError):  # silence for longer than a keep-alive would take
            async with asyncio.timeout(0.1):
                await asyncio.shield(post)
        await turn.respond(400, {"error": {"message": "no"}})
        answer = await post
        assert answer.status == 400
        assert b": keep-alive" not in answer.raw


async def test_a_client_that_leaves_meanwhile_stops_its_generation(engine: Engine) -> None:
    async with gateway(engine, **SOON) as app:
        async with streaming(app.url, CHAT, HELLO_STREAM) as client:
            turn = await engine.next_request()
            await client.read_head()
            await comments(client, 1)
            await client.abort()
        await turn.cancelled()
        await until(lambda: not app.group.live)

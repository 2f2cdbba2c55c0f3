"""Coalescing as clients see it: one generation, many readers, late joiners, and who may not share."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from tests.kit.client import Connection, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.running import HELLO, HELLO_STREAM, gateway, until

CHAT = "/v1/chat/completions"


async def texts(connection: Connection) -> str:
    return "".join([event.text async for event in connection.events() if not event.is_done])


async def test_a_hundred_twins_arriving_at_any_time_cost_one_generation(engine: Engine) -> None:
    async with gateway(engine) as app, AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(streaming(app.url, CHAT, HELLO_STREAM))]
        turn = await engine.next_request()
        words = [f" w{i}" for i in range(98)]
        for word in words:
            await turn.send(word)
            await readers[0].event()
            readers.append(await stack.enter_async_context(streaming(app.url, CHAT, HELLO_STREAM)))
        readers.append(await stack.enter_async_context(streaming(app.url, CHAT, HELLO_STREAM)))
        for reader in readers[1:]:
            await reader.event()  # it has joined: everything so far was replayed to it
        assert app.group.subscribers == 100
        await turn.finish(" end")
        bodies = [b"".join([event.raw async for event in reader.events()]) for reader in readers[1:]]
        assert len(bodies) == 99
        assert len(set(bodies)) == 1
        assert engine.generations == 1


async def test_the_verdict_says_who_made_the_generation_and_who_attached(engine: Engine) -> None:
    async with (
        gateway(engine) as app,
        streaming(app.url, CHAT, HELLO_STREAM) as first,
        streaming(app.url, CHAT, HELLO_STREAM) as second,
    ):
        turn = await engine.next_request()
        await turn.send("a")
        heads = [await first.read_head(), await second.read_head()]
        assert sorted(head["x-gateway-cache"] for head in heads) == ["attached", "miss"]
        await turn.finish()
        assert await texts(first) == await texts(second) == "a"


async def test_a_slow_reader_holds_nobody(engine: Engine) -> None:
    async with (
        gateway(engine) as app,
        streaming(app.url, CHAT, HELLO_STREAM) as slow,
        streaming(app.url, CHAT, HELLO_STREAM) as fast,
    ):
        turn = await engine.next_request()
        big = "x" * 10_000
        for _ in range(1500):  # 15 MB: far more than the sockets' buffers hold for the one that does not read
            await turn.send(big)
            assert await fast.event() is not None
        await turn.finish()
        assert (await texts(fast)).count("x") > 0
        assert len(await texts(slow)) == 15_000_000


async def test_whole_bodies_and_streams_of_one_prompt_share_one_stream(engine: Engine) -> None:
    async with gateway(engine, probe="on") as app, streaming(app.url, CHAT, HELLO_STREAM) as stream:
        turn = await engine.next_request()
        await turn.send("one")
        await stream.event()
        whole = asyncio.create_task(post_json(app.url, CHAT, HELLO))
        await until(lambda: app.group.subscribers == 2)
        await turn.finish(" two")
        answer = await whole
        assert answer.status == 200
        assert answer.head["x-gateway-cache"] == "attached"
        assert answer.json()["object"] == "chat.completion"
        assert answer.json()["choices"][0]["message"]["content"] == "one two"
        assert answer.json()["usage"]["completion_tokens"] == 2
        assert engine.generations == 1


async def test_a_stream_never_waits_for_a_whole_body(engine: Engine) -> None:
    async with gateway(engine) as app:
        whole = asyncio.create_task(post_json(app.url, CHAT, HELLO))
        first = await engine.next_request()
        async with streaming(app.url, CHAT, HELLO_STREAM) as stream:
            second = await engine.next_request()
            await second.send("now")
            assert (await stream.read_head())["x-gateway-cache"] == "miss"
            await second.finish()
        await first.answer("later")
        assert (await whole).json()["choices"][0]["message"]["content"] == "later"


async def test_usage_is_shown_to_those_who_asked_and_only_to_them(engine: Engine) -> None:
    asked = HELLO_STREAM | {"stream_options": {"include_usage": True}}
    async with (
        gateway(engine) as app,
        streaming(app.url, CHAT, HELLO_STREAM) as plain,
        streaming(app.url, CHAT, asked) as counted,
    ):
        turn = await engine.next_request()
        assert turn.wants_usage
        await until(lambda: app.group.subscribers == 2)
        await turn.send("a")
        await turn.finish()
        plain_events = [event async for event in plain.events()]
        counted_events = [event async for event in counted.events()]
    assert engine.generations == 1
    assert not any(b'"usage"' in event.raw for event in plain_events)
    assert json.loads(counted_events[-2].data)["usage"]["completion_tokens"] == 1
    # vLLM puts the fingerprint on the finish chunk of a stream without usage
    assert b"system_fingerprint" in plain_events[-2].raw
    assert len(counted_events) == len(plain_events) + 1


@pytest.mark.parametrize(
    ("change", "headers"),
    [
        ({"temperature": 0.7}, ()),
        ({}, (("x-gateway-share", "off"),)),
    ],
    ids=["sampled", "share off"],
)
async def test_what_may_not_be_shared_is_generated_twice(
    engine: Engine, change: dict[str, object], headers: tuple[tuple[str, str], ...]
) -> None:
    body = HELLO_STREAM | change
    async with (
        gateway(engine) as app,
        streaming(app.url, CHAT, body, headers) as one,
        streaming(app.url, CHAT, body, headers) as two,
    ):
        for _ in range(2):
            turn = await engine.next_request()
            await turn.finish("a")
        assert await texts(one) == await texts(two) == "a"
        assert engine.generations == 2


async def test_sampled_twins_share_where_the_client_says_all(engine: Engine) -> None:
    body = HELLO_STREAM | {"temperature": 0.7}
    headers = (("x-gateway-share", "all"),)
    async with (
        gateway(engine) as app,
        streaming(app.url, CHAT, body, headers) as one,
        streaming(app.url, CHAT, body, headers) as two,
    ):
        turn = await engine.next_request()
        await until(lambda: app.group.subscribers == 2)
        await turn.finish("a")
        assert await texts(one) == await texts(two) == "a"
        assert engine.generations == 1


async def test_two_credentials_never_share(engine: Engine) -> None:
    async with (
        gateway(engine) as app,
        streaming(app.url, CHAT, HELLO_STREAM, (("authorization", "Bearer a"),)) as one,
        streaming(app.url, CHAT, HELLO_STREAM, (("authorization", "Bearer b"),)) as two,
    ):
        for _ in range(2):
            turn = await engine.next_request()
            assert "authorization" not in turn.headers
            await turn.finish("a")
        assert await texts(one) == await texts(two) == "a"


async def test_the_first_reader_leaving_harms_nobody(engine: Engine) -> None:
    async with gateway(engine) as app, streaming(app.url, CHAT, HELLO_STREAM) as first:
        turn = await engine.next_request()
        await turn.send("a")
        await first.event()
        async with streaming(app.url, CHAT, HELLO_STREAM) as second:
            await second.event()
            await first.abort()
            await until(lambda: app.group.subscribers == 1)
            await turn.finish(" b")
            assert await texts(second) == "a b"


async def test_an_error_before_the_first_frame_keeps_its_status_for_every_reader(engine: Engine) -> None:
    async with (
        gateway(engine) as app,
        streaming(app.url, CHAT, HELLO_STREAM) as one,
        streaming(app.url, CHAT, HELLO_STREAM) as two,
    ):
        turn = await engine.next_request()
        await until(lambda: app.group.subscribers == 2)
        error = {"error": {"message": "no", "type": "NotFoundError", "param": "model", "code": 404}}
        await turn.respond(404, error)
        for reader in (one, two):
            answer = await reader.read()
            assert (answer.status, answer.json()) == (404, error)
        assert engine.generations == 1

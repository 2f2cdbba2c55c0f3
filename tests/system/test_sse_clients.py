"""Clients that send `no-cache` or `no-store` of themselves share a generation under way, over loopback."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import httpx_sse
import pytest

from tests.kit.client import post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, HELLO_STREAM, gateway, until

CHAT = "/v1/chat/completions"
NO_CACHE, NO_STORE = (("cache-control", "no-cache"),), (("cache-control", "no-store"),)


async def by_aiohttp_sse_client(url: str) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from aiohttp_sse_client import client
    events = []
    async with client.EventSource(url + CHAT, option={"method": "POST"}, json=HELLO_STREAM) as source:
        async for event in source:
            events.append(event.data)
            if event.data == "[DONE]":
                break
    return events


async def by_httpx_sse(url: str) -> list[str]:
    async with (
        httpx.AsyncClient(trust_env=False) as client,
        httpx_sse.aconnect_sse(client, "POST", url + CHAT, json=HELLO_STREAM) as source,
    ):
        return [event.data async for event in source.aiter_sse()]


@pytest.mark.parametrize("client", [by_aiohttp_sse_client, by_httpx_sse])
async def test_ten_clients_of_a_kind_are_one_generation(
    engine: Engine, client: Callable[[str], Awaitable[list[str]]]
) -> None:
    async with gateway(engine) as app:
        tasks = [asyncio.ensure_future(client(app.url)) for _ in range(10)]
        turn = await engine.next_request()
        await until(lambda: app.group.subscribers == 10)
        await turn.finish("hello")
        answers = await asyncio.gather(*tasks)
        assert all(answer == answers[0] for answer in answers)
        assert answers[0][-1] == "[DONE]"
        assert engine.generations == 1


@pytest.mark.parametrize("first", [(), NO_CACHE, NO_STORE], ids=["plain", "no-cache", "no-store"])
@pytest.mark.parametrize("second", [(), NO_CACHE, NO_STORE], ids=["plain", "no-cache", "no-store"])
async def test_each_may_join_any_other_that_an_engine_is_answering(
    engine: Engine, first: Any, second: Any
) -> None:
    async with (
        gateway(engine) as app,
        streaming(app.url, CHAT, HELLO_STREAM, first) as one,
        streaming(app.url, CHAT, HELLO_STREAM) as _,
    ):
        turn = await engine.next_request()
        await turn.send("a")
        await one.event()
        async with streaming(app.url, CHAT, HELLO_STREAM, second) as two:
            assert (await two.read_head())["x-gateway-cache"] == "attached"
            await turn.finish()
            await two.read()
        assert engine.generations == 1


async def test_no_cache_joins_no_flight_that_may_still_be_answered_from_the_store(engine: Engine) -> None:
    async with (
        redis_server() as path,
        gateway(engine, redis=f"unix://{path}", max_inflight=1) as app,
        streaming(app.url, CHAT, HELLO_STREAM | {"seed": 1}) as _,
    ):
        busy = await engine.next_request()
        plain = asyncio.ensure_future(post_json(app.url, CHAT, HELLO_STREAM))
        await until(lambda: len(app.scheduler.queue) == 1)
        fresh = [asyncio.ensure_future(post_json(app.url, CHAT, HELLO_STREAM, NO_CACHE)) for _ in range(3)]
        await until(lambda: app.group.subscribers == 5)
        assert len(app.scheduler.queue) == 2, "the three share one generation"
        await busy.finish()
        engine.auto(echo_script())
        await asyncio.gather(plain, *fresh)


@pytest.mark.parametrize(
    ("headers", "stored"),
    [([NO_STORE, NO_STORE], False), ([NO_STORE, ()], True), ([NO_CACHE], True), ([NO_STORE, NO_CACHE], True)],
)
async def test_an_answer_is_stored_where_a_reader_allows_it(
    engine: Engine, headers: list[Any], stored: bool
) -> None:
    async with redis_server() as path, gateway(engine, redis=f"unix://{path}") as app:
        tasks = []
        for one in headers:
            tasks.append(asyncio.ensure_future(post_json(app.url, CHAT, HELLO_STREAM, one)))
            if len(tasks) == 1:
                turn = await engine.next_request()
            await until(lambda: app.group.subscribers == len(tasks))
        await turn.finish("hello")
        await asyncio.gather(*tasks)
        await until(lambda: len(app.group) == 0)
        engine.auto(echo_script())
        later = await post_json(app.url, CHAT, HELLO_STREAM)
        assert later.head["x-gateway-cache"] == ("hit" if stored else "miss")


async def test_no_store_is_answered_from_the_store_and_no_cache_is_not(engine: Engine) -> None:
    engine.auto(echo_script())
    async with redis_server() as path, gateway(engine, redis=f"unix://{path}") as app:
        verdicts = []
        for headers in ((), NO_STORE, NO_CACHE, (("cache-control", "no-cache, no-store"),)):
            answer = await post_json(app.url, CHAT, HELLO, headers)
            await until(lambda: len(app.group) == 0)
            verdicts.append(answer.head["x-gateway-cache"])
        assert verdicts == ["miss", "hit", "miss", "miss"]


async def test_embeddings_share_likewise(engine: Engine) -> None:
    ask = {"model": "m1", "input": "a"}
    async with redis_server() as path, gateway(engine, redis=f"unix://{path}") as app:
        tasks = []
        for number, headers in enumerate((NO_STORE, NO_CACHE, NO_STORE), 1):
            tasks.append(asyncio.ensure_future(post_json(app.url, "/v1/embeddings", ask, headers)))
            if number == 1:
                turn = await engine.next_request()
            await until(lambda: app.group.subscribers >= number)  # noqa: B023 - waited for here
        engine.auto(echo_script())
        await echo_script()(turn)
        answers = await asyncio.gather(*tasks)
        assert len({answer.body for answer in answers}) == 1
        assert len(engine.requests) == 1


@pytest.mark.parametrize("size", [0, 300_000], ids=["small", "large"])
async def test_an_answer_about_a_picture_by_url_is_joined_but_not_stored(engine: Engine, size: int) -> None:
    parts = [
        {"type": "text", "text": "what is this?" + "x" * size},
        {"type": "image_url", "image_url": {"url": "http://cam/latest.jpg"}},
    ]
    ask = HELLO_STREAM | {"messages": [{"role": "user", "content": parts}]}
    async with redis_server() as path, gateway(engine, redis=f"unix://{path}") as app:
        for _ in range(2):
            tasks = [asyncio.ensure_future(post_json(app.url, CHAT, ask)) for _ in range(3)]
            turn = await engine.next_request()
            await until(lambda: app.group.subscribers == 3)
            await turn.finish("a cat")
            verdicts = sorted([(await task).head["x-gateway-cache"] for task in tasks])
            assert verdicts == ["attached", "attached", "miss"]
            await until(lambda: len(app.group) == 0)

"""The flush of stored answers: of one model or of all, of this fleet alone, and of what is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from proxy.app import App
from proxy.flights.key import model_tag
from proxy.redis.cache import KEY_BYTES, Cache
from tests.kit.client import Answer, call, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until

CHAT = "/v1/chat/completions"


@pytest.fixture
async def redis() -> AsyncIterator[str]:
    async with redis_server() as path:
        yield f"unix://{path}"


async def verdict(app: App, model: str) -> str:
    answer = await post_json(app.url, CHAT, HELLO | {"model": model})
    await until(lambda: len(app.group) == 0)
    return answer.head["x-gateway-cache"]


async def flush(app: App, query: str = "") -> Answer:
    return await call(app.url, "DELETE", f"/-/cache{query}")


async def test_one_models_answers_go_or_all_and_no_other_fleets_nor_limits(redis: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with (
        Engine(echo_script(), models=["m1", "m2"]) as engine,
        gateway(engine, redis=redis, log_to=log, rate_limit_rps=1000.0) as app,
        gateway(engine, redis=redis, redis_namespace="gateway:other") as other,
        Redis.from_url(redis) as client,
    ):
        for model in ("m1", "m2"):
            assert [await verdict(app, model) for _ in range(2)] == ["miss", "hit"]
            assert await verdict(other, model) == "miss"
        assert (await flush(app, "?model=m1")).json() == {
            "object": "cache.flush", "model": "m1", "removed": 1, "flights": 0,
        }  # fmt: skip
        assert (await verdict(app, "m2"), await verdict(app, "m1")) == ("hit", "miss")
        assert (await flush(app)).json()["removed"] == 2
        assert (await verdict(app, "m2"), await verdict(app, "m1")) == ("miss", "miss")
        assert (await verdict(other, "m1"), await verdict(other, "m2")) == ("hit", "hit")
        assert [key async for key in client.scan_iter(b"gateway:limit:*")] != []
    told = [line for line in lines(log) if line["msg"] == "cache flushed"]
    assert [(line["what"], line["removed"], line["result"]) for line in told] == [
        ("m1", 1, "good"),
        ("all models", 2, "good"),
    ]


async def test_what_is_under_way_is_joined_by_nobody_any_more_and_not_stored(engine: Engine, redis: str) -> None:
    async with gateway(engine, redis=redis) as app, streaming(app.url, CHAT, HELLO_STREAM) as old:
        turn = await engine.next_request()
        await turn.send("a")
        assert await old.event() is not None
        assert (await flush(app, "?model=m1")).json()["flights"] == 1
        async with streaming(app.url, CHAT, HELLO_STREAM) as new:
            second = await engine.next_request()
            await turn.finish(" old")
            assert b"old" in (await old.read()).body
            await second.send("a")
            await second.finish(" new")
            assert b"new" in (await new.read()).body
        await until(lambda: len(app.group) == 0)
        answer = await post_json(app.url, CHAT, HELLO_STREAM)
        assert answer.head["x-gateway-cache"] == "hit"
        assert b"new" in answer.body


async def test_embeddings_are_flushed_with_their_model(redis: str) -> None:
    async with Engine(echo_script()) as engine, gateway(engine, redis=redis) as app:
        body = {"model": "m1", "input": ["a", "b"]}

        async def ask() -> str:
            answer = await post_json(app.url, "/v1/embeddings", body)
            await until(lambda: len(app.group) == 0 and app.embedder is not None and len(app.embedder) == 0)
            return answer.head["x-gateway-cache"]

        assert [await ask(), await ask()] == ["miss", "hit"]
        assert (await flush(app, "?model=m1")).json()["removed"] == 2
        assert await ask() == "miss"


@pytest.mark.parametrize("query", ["?model=", "?model=a&model=b", "?name=a", "?model=a&all=1"])
async def test_what_names_no_model_is_refused_and_nothing_removed(engine: Engine, query: str) -> None:
    async with gateway(engine) as app:
        answer = await flush(app, query)
        assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_value")


async def test_many_keys_go_in_small_steps_and_others_are_served_meanwhile(redis: str) -> None:
    cache = Cache(redis, timeout=30.0, ttl=60, max_entry=1000, max_pending=10**6)
    async with Redis.from_url(redis) as client:
        tag = model_tag("m1").hex().encode()
        async with client.pipeline(transaction=False) as pipe:
            for number in range(20_000):
                pipe.set(b"gateway:" + tag + b"%064x" % number, b"x")
            pipe.set(b"gateway:" + tag + b"short", b"x")
            pipe.set(b"gateway:%0*x" % (2 * KEY_BYTES, 5), b"x")
            await pipe.execute()
        await cache.start()
        flushing = asyncio.ensure_future(cache.flush(model_tag("m1")))
        asked = 0
        while not flushing.done():
            assert await client.ping()
            asked += 1
        assert await flushing == 20_000
        assert asked > 3
        assert await client.dbsize() == 2
    await cache.stop()


async def test_a_redis_that_is_away_is_told(engine: Engine, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with gateway(engine, redis=f"unix://{tmp_path}/nobody", log_to=log) as app:
        answer = await flush(app)
        assert (answer.status, answer.json()["error"]["code"]) == (503, "cache_unavailable")
        assert (await flush(app, "?model=m1")).status == 503  # the next one may try
    told = [line["result"] for line in lines(log) if line["msg"] == "cache flushed"]
    assert told == ["failed", "failed"]

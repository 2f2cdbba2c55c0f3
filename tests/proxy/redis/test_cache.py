"""Redis for real: hits, one round trip for many, and everything that can go wrong with it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from proxy.app import App
from proxy.embedded.redis import EmbeddedRedis
from proxy.redis.cache import Cache, Op, Stored
from tests.kit.client import post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.redis_server import look_up
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until

CHAT = "/v1/chat/completions"


@pytest.fixture
async def redis() -> AsyncIterator[EmbeddedRedis]:
    server = EmbeddedRedis(8)
    server.url = await server.start()  # type: ignore[attr-defined]
    yield server
    if server.pid is not None:
        try:
            os.kill(server.pid, signal.SIGCONT)
        except ProcessLookupError:
            pass
    await server.stop()


def url(redis: EmbeddedRedis) -> str:
    return str(redis.url)  # type: ignore[attr-defined]


def available(app: App) -> bool:
    return app.cache is not None and app.cache.available


async def settled(app: App) -> None:
    """Stores are through: no flight waits for one."""
    await until(lambda: not len(app.group))


async def test_a_finished_stream_answers_the_next_request_with_the_same_bytes(
    engine: Engine, redis: EmbeddedRedis
) -> None:
    async with gateway(engine, redis=url(redis)) as app:
        async with streaming(app.url, CHAT, HELLO_STREAM) as first:
            turn = await engine.next_request()
            await turn.send("a", " b")
            await turn.finish()
            one = await first.read()
        await settled(app)
        two = await post_json(app.url, CHAT, HELLO_STREAM)
        assert one.head["x-gateway-cache"] == "miss"
        assert two.head["x-gateway-cache"] == "hit"
        assert int(two.head["age"]) >= 0
        assert two.body == one.body
        assert engine.generations == 1


async def test_a_stored_stream_answers_a_client_that_wants_one_body(engine: Engine, redis: EmbeddedRedis) -> None:
    engine.auto(echo_script(tokens=3))
    async with gateway(engine, redis=url(redis)) as app:
        await post_json(app.url, CHAT, HELLO_STREAM)
        await settled(app)
        answer = await post_json(app.url, CHAT, HELLO)
        assert answer.head["x-gateway-cache"] == "hit"
        assert answer.json()["usage"]["completion_tokens"] == 3
        assert engine.generations == 1


async def test_a_stored_body_is_a_miss_for_a_stream_and_the_stream_replaces_it(
    engine: Engine, redis: EmbeddedRedis
) -> None:
    engine.auto(echo_script(tokens=3))
    async with gateway(engine, redis=url(redis)) as app:
        verdicts = []
        for body in (HELLO, HELLO_STREAM, HELLO, HELLO_STREAM):
            answer = await post_json(app.url, CHAT, body)
            verdicts.append(answer.head["x-gateway-cache"])
            await settled(app)
        assert verdicts == ["miss", "miss", "hit", "hit"]
        assert engine.generations == 2


async def test_no_cache_generates_anew_and_replaces_what_is_stored(engine: Engine, redis: EmbeddedRedis) -> None:
    engine.auto(echo_script(tokens=3))
    async with gateway(engine, redis=url(redis)) as app:
        await post_json(app.url, CHAT, HELLO_STREAM)
        await settled(app)
        fresh = await post_json(app.url, CHAT, HELLO_STREAM, (("cache-control", "no-cache"),))
        await settled(app)
        later = await post_json(app.url, CHAT, HELLO_STREAM)
        assert (fresh.head["x-gateway-cache"], later.head["x-gateway-cache"]) == ("miss", "hit")
        assert later.body == fresh.body


async def test_a_truncated_stream_is_not_stored(engine: Engine, redis: EmbeddedRedis) -> None:
    async with gateway(engine, redis=url(redis), resume="off") as app:
        async with streaming(app.url, CHAT, HELLO_STREAM) as first:
            turn = await engine.next_request()
            await turn.send("a")
            await turn.drop()
            assert b'"upstream_truncated"' in (await first.read()).body
        engine.auto(echo_script())
        assert (await post_json(app.url, CHAT, HELLO_STREAM)).head["x-gateway-cache"] == "miss"


def _stop(redis: EmbeddedRedis) -> None:
    assert redis.pid is not None
    os.kill(redis.pid, signal.SIGSTOP)


def _kill(redis: EmbeddedRedis) -> None:
    assert redis.pid is not None
    os.kill(redis.pid, signal.SIGKILL)


AWAY = ("redis away", "look-ups")


@pytest.mark.parametrize("harm", [_stop, _kill], ids=["frozen", "killed"])
async def test_requests_are_served_while_redis_is_away_and_it_is_used_again_when_it_is_back(
    engine: Engine, redis: EmbeddedRedis, harm: Callable[[EmbeddedRedis], None], tmp_path: Path
) -> None:
    engine.auto(echo_script(tokens=3))
    log = tmp_path / "log"
    async with gateway(engine, redis=url(redis), redis_timeout_ms=3000, log_to=log) as app:
        await post_json(app.url, CHAT, HELLO_STREAM)
        await settled(app)
        harm(redis)
        for n in range(5):
            answer = await post_json(app.url, CHAT, HELLO_STREAM | {"max_tokens": 10 + n})
            assert answer.status == 200
            assert answer.head["x-gateway-cache"] == "miss"
        assert (await post_json(app.url, "/health", {})).status == 405  # it lives
        # Killed, it may be back by now.
        await until(lambda: any((line["msg"], line.get("use")) == AWAY for line in lines(log)))
        if harm is _stop:
            assert not available(app)
            assert redis.pid is not None
            os.kill(redis.pid, signal.SIGCONT)
        await until(lambda: available(app))  # the probe finds it; killed, its supervisor started it again
        await settled(app)
        await post_json(app.url, CHAT, HELLO_STREAM)
        await settled(app)
        assert (await post_json(app.url, CHAT, HELLO_STREAM)).head["x-gateway-cache"] == "hit"


async def test_no_redis_at_all_is_no_reason_not_to_serve(engine: Engine) -> None:
    engine.auto(echo_script(tokens=3))
    async with gateway(engine, redis="redis://127.0.0.1:1/0") as app:
        assert (await post_json(app.url, CHAT, HELLO_STREAM)).status == 200


async def test_garbage_under_our_key_is_a_miss_and_is_replaced(engine: Engine, redis: EmbeddedRedis) -> None:
    engine.auto(echo_script(tokens=3))
    async with gateway(engine, redis=url(redis)) as app, Redis.from_url(url(redis)) as other:
        await post_json(app.url, CHAT, HELLO)
        await settled(app)
        (key,) = await other.keys("*")
        await other.set(key, b"garbage")
        assert (await post_json(app.url, CHAT, HELLO)).head["x-gateway-cache"] == "miss"
        await settled(app)
        assert (await post_json(app.url, CHAT, HELLO)).head["x-gateway-cache"] == "hit"


async def test_a_full_redis_that_evicts_nothing_only_stores_nothing(engine: Engine, redis: EmbeddedRedis) -> None:
    engine.auto(echo_script(tokens=3))
    async with gateway(engine, redis=url(redis)) as app, Redis.from_url(url(redis)) as other:
        await other.config_set("maxmemory-policy", "noeviction")
        await other.config_set("maxmemory", "1")
        for _ in range(2):
            assert (await post_json(app.url, CHAT, HELLO_STREAM)).head["x-gateway-cache"] == "miss"
            await settled(app)
        assert available(app)


async def test_one_round_trip_serves_a_whole_batch_of_look_ups(redis: EmbeddedRedis) -> None:
    seen: list[Op] = []
    cache = make(url(redis), record=lambda op, count: seen.extend([op] * count))
    await cache.start()
    try:
        done = asyncio.Event()
        cache.store(b"k1", Stored("whole", 1.0, b'{"choices":[{"finish_reason":"stop"}]}'), done.set)
        await done.wait()
        async with Redis.from_url(url(redis)) as other:
            before = (await other.info("commandstats"))["cmdstat_mget"]["calls"] if await stats(other) else 0
            found = await look_up(cache, [b"k0", b"k1", b"k2"])
            after = (await other.info("commandstats"))["cmdstat_mget"]["calls"]
        assert [value is not None for value in found] == [False, True, False]
        assert after - before == 1
        assert seen == ["store", "miss", "miss", "hit"]
    finally:
        await cache.stop()


async def stats(redis: Any) -> bool:
    return "cmdstat_mget" in await redis.info("commandstats")


async def test_what_is_too_large_or_too_much_is_not_stored(redis: EmbeddedRedis) -> None:
    seen: list[Op] = []
    cache = make(url(redis), record=lambda op, count: seen.extend([op] * count), max_entry=100)
    done: list[int] = []
    cache.store(b"k", Stored("whole", 1.0, b"x" * 101), lambda: done.append(1))
    assert (seen, done) == (["store_skipped"], [1])
    await cache.stop()


async def test_entries_expire(redis: EmbeddedRedis) -> None:
    cache = make(url(redis), ttl=7)
    await cache.start()
    try:
        done = asyncio.Event()
        cache.store(b"k", Stored("whole", 1.0, b"{}"), done.set)
        await done.wait()
        async with Redis.from_url(url(redis)) as other:
            assert 0 < await other.ttl(b"gateway:" + b"k".hex().encode()) <= 7
    finally:
        await cache.stop()


def make(url: str, **changes: Any) -> Cache:
    settings: dict[str, Any] = {"timeout": 1.0, "ttl": 60, "max_entry": 1 << 20, "max_pending": 1 << 20}
    return Cache(url, **(settings | changes))


async def test_two_fleets_with_a_namespace_each_share_one_redis_and_no_answer(
    engine: Engine, redis: EmbeddedRedis
) -> None:
    engine.auto(echo_script())
    body = HELLO | {"messages": [{"role": "user", "content": "fleets"}]}
    embed = {"model": "m1", "input": ["fleets"]}
    async with (
        gateway(engine, redis=url(redis)) as production,
        gateway(engine, redis=url(redis), redis_namespace="staging") as staging,
        Redis.from_url(url(redis)) as client,
    ):
        for app in (production, staging):
            for verdict in ("miss", "hit"):
                for path, asked in ((CHAT, body), ("/v1/embeddings", embed)):
                    assert (await post_json(app.url, path, asked)).head["x-gateway-cache"] == verdict
                await settled(app)
                await until(lambda app=app: not len(app.embedder))  # type: ignore[misc]
        names = [name.decode().partition(":")[::2] for name in await client.keys("*") if isinstance(name, bytes)]
        mine = {space: {rest for at, rest in names if at == space} for space in ("gateway", "staging")}
        assert mine["staging"]
        assert mine["staging"] <= mine["gateway"]

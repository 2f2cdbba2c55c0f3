"""Several gateways with one Redis: identical requests are one generation, whichever gateway gets them, and each
client gets the whole stream while it is generated. Gateways of one event loop, a real redis-server."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.app import App
from proxy.flights.fleet import Node
from proxy.redis import FlightKeys, address
from proxy.redis.client import RedisClient
from tests.kit.client import Connection, get, post_json, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, HELLO_STREAM, gateway, until
from tests.ops.kit import ROOT
from tests.system.test_limits_processes import bare_redis

CHAT = "/v1/chat/completions"
OTHER = HELLO_STREAM | {"messages": [{"role": "user", "content": "another"}]}


@pytest.fixture
async def redis() -> AsyncIterator[str]:
    async with redis_server() as path:
        yield f"unix://{path}"


def node(app: App) -> Node:
    assert app.scheduler.fleet is not None
    return app.scheduler.fleet


@asynccontextmanager
async def two(engine: Engine, redis: str, **changes: Any) -> AsyncIterator[tuple[App, App]]:
    changes = {"redis": redis, "fleet": "auto"} | changes
    async with gateway(engine, **changes) as one, gateway(engine, **changes) as other:
        await until(lambda: node(one).live and node(other).live)
        yield one, other
        await until(lambda: not (node(one).publishing or node(other).publishing))


async def texts(client: Connection, count: int) -> list[str]:
    """The texts of the next events; the first one has the role alone."""
    events = [await client.event() for _ in range(count)]
    return [event.text for event in events if event is not None]


async def rest(client: Connection) -> list[bytes]:
    return [event.raw async for event in client.events()]


@asynccontextmanager
async def followed(
    engine: Engine, one: App, other: App, body: dict[str, Any] = HELLO_STREAM
) -> AsyncIterator[tuple[Turn, Connection, Connection]]:
    """A stream of two tokens so far that a client of each gateway reads; the second follows the first."""
    async with streaming(one.url, CHAT, HELLO_STREAM) as first:
        turn = await engine.next_request()
        await turn.send("a", "b")
        assert await texts(first, 3) == ["", "a", "b"]
        async with streaming(other.url, CHAT, body) as second:
            assert await texts(second, 3) == ["", "a", "b"]
            yield turn, first, second


async def test_a_follower_gets_the_stream_while_it_is_generated(redis: str) -> None:
    async with Engine() as engine, two(engine, redis) as (one, other):
        assert (await get(one.url, "/-/state")).json()["fleet"]["generations"] is True
        async with followed(engine, one, other) as (turn, first, second):
            assert second.head is not None
            assert second.head["x-gateway-cache"] == "attached"
            await turn.send("c")
            assert await texts(first, 1) == await texts(second, 1) == ["c"]
            await turn.finish()
            assert await rest(first) == (last := await rest(second))
            assert last[-1] == b"data: [DONE]\n\n"
        assert engine.generations == 1
        assert (await post_json(other.url, CHAT, HELLO)).head["x-gateway-cache"] in ("hit", "miss")


async def test_twins_at_all_gateways_are_one_generation(redis: str) -> None:
    async def script(turn: Turn) -> None:
        await turn.send("a")
        await until(lambda: sum(app.group.subscribers for app in apps) == 40)
        await turn.send(*"bcdef")
        await turn.finish()

    async def read(app: App) -> list[bytes]:
        async with streaming(app.url, CHAT, HELLO_STREAM) as client:
            return await rest(client)

    async with Engine(script) as engine, two(engine, redis) as apps:
        answers = await asyncio.gather(*(read(app) for app in apps for _ in range(20)))
        assert engine.generations == 1
        assert all(answer == answers[0] for answer in answers)
        assert answers[0][-1] == b"data: [DONE]\n\n"


async def test_a_body_is_folded_from_a_stream_at_another_gateway(redis: str) -> None:
    async with Engine() as engine, two(engine, redis, probe="on") as (one, other):
        async with streaming(one.url, CHAT, HELLO_STREAM) as first:
            turn = await engine.next_request()
            await turn.send("a", "b")
            assert await texts(first, 3) == ["", "a", "b"]
            body = asyncio.ensure_future(post_json(other.url, CHAT, HELLO))
            await until(lambda: node(other).following == 1)
            await turn.finish()
            answer = await body
            assert answer.head["x-gateway-cache"] == "attached"
            assert answer.json()["choices"][0]["message"]["content"] == "ab"
            await rest(first)
        assert engine.generations == 1


async def test_the_last_reader_anywhere_cancels(redis: str) -> None:
    async with (
        Engine() as engine,
        two(engine, redis) as (one, other),
        followed(engine, one, other) as (turn, first, second),
    ):
        await first.abort()
        await turn.send("c")
        assert await texts(second, 1) == ["c"]
        assert not turn.is_cancelled
        await second.abort()
        await turn.cancelled()


async def test_a_record_of_somebody_else_keeps_no_generation_without_readers(redis: str) -> None:
    link = RedisClient(address(redis), connect_timeout=5.0)
    async with (
        Engine() as engine,
        two(engine, redis) as (one, other),
        followed(engine, one, other) as (turn, first, second),
    ):
        (interest,) = await link.call(b"KEYS", b"*:interest", timeout=5.0)
        await link.call(b"ZADD", interest, 10**15, b"nobody", timeout=5.0)
        await link.call(b"PEXPIRE", interest, 600_000, timeout=5.0)
        await first.abort()
        await second.abort()
        await turn.cancelled()
    await link.close()


async def test_a_follower_that_leaves_harms_nobody(redis: str) -> None:
    async with (
        Engine() as engine,
        two(engine, redis) as (one, other),
        followed(engine, one, other) as (turn, first, second),
    ):
        await second.abort()
        await until(lambda: node(other).following == 0)
        await turn.send("c")
        await turn.finish()
        assert (await rest(first))[-1] == b"data: [DONE]\n\n"


async def test_a_client_without_followers_cancels_at_once(redis: str) -> None:
    async with Engine() as engine, two(engine, redis) as (one, other):
        async with streaming(one.url, CHAT, HELLO_STREAM) as first:
            turn = await engine.next_request()
            await first.abort()
            await turn.cancelled()
        async with streaming(other.url, CHAT, HELLO_STREAM) as second:  # the claim has ended too
            turn = await engine.next_request()
            await turn.finish("x")
            assert (await rest(second))[-1] == b"data: [DONE]\n\n"
            assert second.head is not None
            assert second.head["x-gateway-cache"] == "miss"


async def test_a_follower_generates_itself_where_the_leader_fails_before_the_first_token(redis: str) -> None:
    async with (
        Engine() as engine,
        two(engine, redis, retries=0) as (one, other),
        streaming(one.url, CHAT, HELLO_STREAM) as first,
        streaming(other.url, CHAT, HELLO_STREAM) as second,
    ):
        turn = await engine.next_request()
        await until(lambda: node(one).following + node(other).following == 1)
        await turn.respond(500, {"error": {"message": "no", "type": "InternalServerError", "code": 500}})
        again = await engine.next_request()
        await again.finish("x")
        answers = [await first.read_head(), await second.read_head()]
        assert sorted(head.status for head in answers) == [200, 500]
        assert engine.generations == 2


async def test_an_engine_that_fails_in_the_middle_ends_all_streams_alike(redis: str) -> None:
    async with (
        Engine() as engine,
        two(engine, redis, resume="off") as (one, other),
        followed(engine, one, other) as (turn, first, second),
    ):
        await turn.drop()
        for client in (first, second):
            *_, last = await rest(client)
            assert b'"upstream_truncated"' in last


async def test_a_stream_that_breaks_is_continued_for_the_readers_of_all_gateways(redis: str) -> None:
    async with (
        Engine() as engine,
        two(engine, redis) as (one, other),
        followed(engine, one, other) as (turn, first, second),
    ):
        await turn.drop()
        again = await engine.next_request()
        await again.send("a", "b", "c")
        assert await texts(first, 1) == await texts(second, 1) == ["c"]
        await again.finish()
        assert await rest(first) == (last := await rest(second))
        assert last[-1] == b"data: [DONE]\n\n"
        assert engine.generations == 2


async def test_a_follower_waits_while_its_leader_waits_for_an_engine(redis: str) -> None:
    """Only the leader knows whether the engine is late, or the stream is being continued: the limit between two
    tokens is its own."""
    settings: dict[str, Any] = {"redis": redis, "fleet": "auto"}
    async with (
        Engine() as engine,
        gateway(engine, **settings) as one,
        gateway(engine, token_timeout=0.2, resume="off", **settings) as other,
    ):
        await until(lambda: node(one).live and node(other).live)
        async with followed(engine, one, other) as (turn, first, second):
            sampled = HELLO_STREAM | {"temperature": 1, "messages": OTHER["messages"]}
            async with streaming(other.url, CHAT, sampled) as late:  # a clock: this one does time out
                own = await engine.next_request()
                await own.send("x")
                assert b'"upstream_token_timeout"' in (await rest(late))[-1]
            await turn.send("c")
            await turn.finish()
            assert await rest(first) == (frames := await rest(second))
            assert frames[-1] == b"data: [DONE]\n\n"


async def test_a_gateway_that_stops_leaves_its_streams_to_their_followers(redis: str) -> None:
    """Its own client is cut at the end of the drain; the other one's stream is continued by its own gateway."""
    changes: dict[str, Any] = {"redis": redis, "fleet": "auto", "drain_timeout": 0.0}
    async with Engine() as engine, gateway(engine, **changes) as other, AsyncExitStack() as stack:
        one = await stack.enter_async_context(gateway(engine, **changes))
        await until(lambda: node(one).live and node(other).live)
        async with followed(engine, one, other) as (turn, first, second):
            stopping = asyncio.create_task(stack.aclose())
            assert b'"shutting_down"' in (await rest(first))[-1]
            again = await engine.next_request()
            await again.send("a", "b", "c")
            assert await texts(second, 1) == ["c"]
            await again.finish()
            assert (await rest(second))[-1] == b"data: [DONE]\n\n"
            assert turn.is_cancelled
            await stopping


async def test_an_error_in_the_stream_is_the_same_for_all(redis: str) -> None:
    async with (
        Engine() as engine,
        two(engine, redis, resume="off") as (one, other),
        followed(engine, one, other) as (turn, first, second),
    ):
        await turn.end(b'data: {"error": {"message": "out of memory", "code": 500}}\n\n', b"data: [DONE]\n\n")
        assert await rest(first) == (frames := await rest(second))
        assert len(frames) == 1


async def test_a_refused_request_is_answered_by_each_engine(redis: str) -> None:
    async def script(turn: Turn) -> None:
        await until(lambda: engine.generations > 1 or sum(node(app).following for app in apps) == 1)
        await turn.respond(400, {"error": {"message": "too long", "type": "BadRequestError", "code": 400}})

    async with Engine(script) as engine, two(engine, redis) as apps:
        answers = await asyncio.gather(*(post_json(app.url, CHAT, HELLO_STREAM) for app in apps))
        assert [answer.status for answer in answers] == [400, 400]
        assert answers[0].body == answers[1].body


async def test_no_store_leads_nothing_and_follows(redis: str) -> None:
    """The content of such a request does not go to Redis."""
    no_store = [("cache-control", "no-store")]
    async with Engine() as engine, two(engine, redis) as (one, other):
        async with streaming(one.url, CHAT, HELLO_STREAM, no_store), streaming(other.url, CHAT, HELLO_STREAM):
            await engine.next_request()
            await engine.next_request()
        async with streaming(one.url, CHAT, OTHER) as first:
            turn = await engine.next_request()
            async with streaming(other.url, CHAT, OTHER, no_store) as second:
                await until(lambda: node(other).following == 1)
                await turn.finish("x")
                assert await rest(first) == await rest(second)


async def test_redis_that_dies_in_the_middle_costs_followers_a_generation_and_leaders_nothing(
    tmp_path: Path,
) -> None:
    async with (
        Engine() as engine,
        bare_redis(tmp_path) as (url, process),
        two(engine, url, redis_timeout_ms=1500) as (one, other),
    ):
        async with followed(engine, one, other) as (turn, first, second):
            process.kill()
            await process.wait()
            await turn.send("c")
            assert await texts(first, 1) == ["c"]
            await until(lambda: engine.generations == 2)
            again = await engine.next_request()
            await again.send("a", "b", "c")
            await again.finish("d")
            assert b'"d"' in b"".join(frames := await rest(second))
            assert frames[-1] == b"data: [DONE]\n\n"
            await turn.finish()
            assert (await rest(first))[-1] == b"data: [DONE]\n\n"
        engine.auto(echo_script(3))  # each alone from now on
        for app in (one, other):
            async with streaming(app.url, CHAT, OTHER) as client:
                assert (await rest(client))[-1] == b"data: [DONE]\n\n"


async def test_redis_that_freezes_before_the_first_token_leaves_each_alone(tmp_path: Path) -> None:
    async with (
        Engine() as engine,
        bare_redis(tmp_path) as (url, process),
        two(engine, url, redis_timeout_ms=1500) as (one, other),
    ):
        async with streaming(one.url, CHAT, HELLO_STREAM) as first:
            turn = await engine.next_request()
            async with streaming(other.url, CHAT, HELLO_STREAM) as second:
                await until(lambda: node(other).following == 1)
                process.send_signal(signal.SIGSTOP)
                own = await engine.next_request()
                for each, client in ((turn, first), (own, second)):
                    await each.finish("x")
                    assert (await rest(client))[-1] == b"data: [DONE]\n\n"
        process.send_signal(signal.SIGCONT)


async def test_hostile_records_change_no_answer(redis: str) -> None:
    """Whoever writes under our keys, or into an inbox, costs a generation at most."""
    keys = FlightKeys("gateway")
    link = RedisClient(address(redis), connect_timeout=5.0)

    def call(*words: Any) -> Awaitable[Any]:
        return link.call(*words, timeout=5.0)

    async with Engine() as engine, two(engine, redis) as (one, other):
        async with followed(engine, one, other) as (turn, first, second):
            (claim,) = await call(b"KEYS", b"gateway:flight:{*}")
            fence = await call(b"GET", claim)
            frame = b'data: {"choices":[{"index":0,"delta":{"content":"EVIL"}}]}\n\n'
            chunk = b"%x\r\n%b\r\n" % (len(frame), frame)
            for offset in (b"0", b"1", b"400", b"999999999999"):
                for data in (chunk, b"", b"\xff" * 50, b"x" * 100_000):
                    line = b"more %b %b %b %b open " % (claim, fence, offset, b"0" * 32)
                    await call(b"PUBLISH", keys.inbox + node(other).name, line + b"\n" + data)
            for word in (b"", b"join", b"join x", b"more \xff\n", b"gone " + claim + b" 0000.1", b"\n" * 1000):
                for app in (one, other):
                    await call(b"PUBLISH", keys.inbox + node(app).name, word)
            await turn.finish("c")
            assert await rest(first) == (frames := await rest(second))
            assert b"EVIL" not in b"".join(frames)
        for value in (b"x", b"\xff" * 1000, b"0" * 16 + b".", b"zz.1"):
            body = HELLO_STREAM | {"messages": [{"role": "user", "content": repr(value)[:20]}]}
            async with streaming(one.url, CHAT, body) as first:
                turn = await engine.next_request()
                (claim,) = await call(b"KEYS", b"gateway:flight:{*}")
                await call(b"SET", claim, value)
                async with streaming(other.url, CHAT, body) as second:
                    own = await engine.next_request()  # the claim names nobody
                    for each, client in ((turn, first), (own, second)):
                        await each.finish("x")
                        assert (await rest(client))[-1] == b"data: [DONE]\n\n"
            await call(b"DEL", claim)
    await link.close()


async def test_the_documented_rights_are_enough(redis: str) -> None:
    """Those of the fleet's page, besides those of any gateway; without them each gateway is alone."""
    link = RedisClient(address(redis), connect_timeout=5.0)
    pages = ((ROOT / "ops" / "docs" / name).read_text().splitlines() for name in ("redis.md", "fleet.md"))
    usual, more = (next(line for line in page if line.startswith("ACL SETUSER gateway")) for page in pages)
    await link.call(*usual.replace(">PASSWORD", ">p").split(), timeout=5.0)
    url = redis.replace("unix://", "unix://gateway:p@")
    async with Engine() as engine, gateway(engine, redis=url, fleet="auto") as app:
        assert not node(app).live
        assert app.cache is not None
        assert app.cache.available
        await link.call(*more.split(), timeout=5.0)
        await until(lambda: node(app).live)
        async with gateway(engine, redis=url, fleet="auto") as other:
            await until(lambda: node(other).live)  # before that it generates alone
            async with followed(engine, app, other) as (turn, one, two):
                await turn.finish("c")
                assert await rest(one) == await rest(two)
    await link.close()

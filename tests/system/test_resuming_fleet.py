"""Clients that come back to their stream at another gateway of the fleet: byte for byte the same, one generation,
and never a gap, whatever is lost on the way. Gateways of one event loop, a real redis-server.

`RESUME_CUTS=1000 python -m pytest tests/system/test_resuming_fleet.py -k cuts -s` cuts more clients."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.app import App
from proxy.flights.fleet import Node, following
from proxy.flights.fleet import node as fleet_node
from proxy.flights.resuming import streams
from proxy.redis import address
from proxy.redis.client import RedisClient
from tests.kit.client import Connection, IncompleteBody, call, get, post_json, split_events, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script, paced_script
from tests.kit.patience import patience
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO_STREAM, gateway, pause, until
from tests.system.test_fleet import node, two
from tests.system.test_limits_processes import bare_redis
from tests.system.test_resuming import CHAT, DONE, GRACE, IDS, SAMPLED, left, name_of, refused, rest, resumed

CUTS = int(os.environ.get("RESUME_CUTS", "30"))


@pytest.fixture
async def redis() -> AsyncIterator[str]:
    async with redis_server() as path:
        yield f"unix://{path}"


@asynccontextmanager
async def client_of(redis: str) -> AsyncIterator[RedisClient]:
    client = RedisClient(address(redis), connect_timeout=5)
    try:
        yield client
    finally:
        await client.close()


async def published(app: App) -> None:
    """All that its streams have is in Redis."""
    fleet = node(app)
    await until(lambda: not any(each.sending for each in fleet._published.values()))


async def kept(app: App) -> int:
    """The streams that it keeps."""
    count: int = (await get(app.url, "/-/state")).json()["resumable"]
    return count


async def test_what_keeps_and_publishes_a_stream_is_no_reader(redis: str) -> None:
    async def readers(app: App) -> int:
        found: int = (await get(app.url, "/-/state")).json()["readers"]
        return found

    async with Engine() as engine, two(engine, redis) as (one, other):
        async with left(engine, one.url) as (turn, name, _):
            await until(lambda: one.group.subscribers == 0)
            assert await readers(one) == 0
            async with await Connection.open(other.url) as again:
                await again.request("GET", f"/v1/streams/{name}?after=2")
                await again.event()
                assert (await readers(one), await readers(other)) == (0, 1)
                await turn.finish()
                assert (await rest(again))[-1] == DONE
        assert (await readers(one), await readers(other)) == (0, 0)


@pytest.mark.parametrize("body", [HELLO_STREAM, SAMPLED], ids=["shared", "alone"])
@pytest.mark.parametrize("options", [{}, {"include_usage": True}], ids=["plain", "usage"])
@pytest.mark.parametrize("headers", [GRACE, IDS], ids=["counted", "ids"])
async def test_the_rest_comes_from_another_gateway(
    redis: str, body: dict[str, Any], options: dict[str, Any], headers: Any
) -> None:
    body = body | ({"stream_options": options} if options else {}) | {"user": str(random.random())}
    async with Engine() as engine, two(engine, redis, cache_ttl_seconds=1) as (one, other):
        async with streaming(one.url, CHAT, body, headers) as whole:
            turn = await engine.next_request()
            await turn.send("a", "b")
            first = [event.raw for event in [await whole.event() for _ in range(3)] if event is not None]
            name = name_of(whole.head)
            async with await Connection.open(other.url) as again:
                await again.request("GET", f"/v1/streams/{name}?after=2")
                assert name_of(await again.read_head()) == name
                assert (event := await again.event()) is not None
                assert event.raw == first[2]
                await turn.send("c")
                await turn.finish()
                events = first + await rest(whole)
                assert await rest(again) == events[3:]
        assert events[-1].endswith(DONE)
        for app in (one, other):
            for after in (0, 3, len(events)):
                assert await resumed(app.url, name, after) == events[after:]
            assert (await refused(app.url, f"/v1/streams/{name}?after={len(events) + 1}"))[0] == 416
        assert engine.generations == 1


async def test_a_stored_answer_is_resumed_in_its_middle(redis: str) -> None:
    text = ["x" * 2000] * 60
    async with Engine(paced_script(text)) as engine, two(engine, redis) as (one, other):
        await post_json(one.url, CHAT, HELLO_STREAM)
        await until(lambda: not len(one.group))
        answer = await post_json(one.url, CHAT, HELLO_STREAM, IDS)
        assert answer.head["x-gateway-cache"] == "hit"
        name, events = name_of(answer.head), answer.events()
        assert [event.partition(b"\n")[0] for event in events] == [
            b"id: %d" % n for n in range(1, len(events) + 1)
        ]
        await published(one)
        for app in (one, other):
            for after in (0, 1, 30, len(events) - 1, len(events)):
                assert await resumed(app.url, name, after) == events[after:]
            assert (await refused(app.url, f"/v1/streams/{name}?after={len(events) + 1}"))[0] == 416
        assert engine.generations == 1


async def test_cuts_at_random_bytes_are_joined_at_any_gateway(redis: str) -> None:
    """Each client is cut again and again, and comes back to the other gateway, until it has its stream."""
    dice = random.Random(7)
    tokens = 24

    async def script(turn: Turn) -> None:
        if turn.json()["messages"][0]["content"].startswith("slow"):
            await asyncio.gather(*(asyncio.sleep(0) for _ in range(3)))
        await echo_script(tokens)(turn)

    async def one_client(n: int, apps: tuple[App, App]) -> int:
        body = SAMPLED | {"messages": [{"role": "user", "content": f"slow {n}"}], "temperature": 1 if n % 2 else 0}
        async with streaming(apps[n % 2].url, CHAT, body, GRACE) as client:
            name = name_of(await client.read_head())
            got, cuts = await cut(client, dice.randrange(1, 4000)), 1
        while not got.endswith(DONE):
            frames, part = split_events(got)
            got = got[: len(got) - len(part)]
            async with await Connection.open(apps[(n + cuts) % 2].url) as client:
                await client.request("GET", f"/v1/streams/{name}?after={len(frames)}")
                head = await client.read_head()
                assert head.status == 200, await client.read()
                got += await cut(client, dice.randrange(1, 4000))
                cuts += 1
        assert got == (await get(apps[0].url, f"/v1/streams/{name}")).body
        assert len(split_events(got)[0]) == tokens + 3
        return cuts

    async def cut(client: Connection, size: int) -> bytes:
        got = b""
        try:
            while len(got) < size and (chunk := await client.chunk()) is not None:
                got += chunk
        except IncompleteBody as error:
            got += error.received
        await client.abort()
        return got if got.endswith(DONE) else got[:size]

    async with Engine(script) as engine, two(engine, redis, resume_streams_max=2 * CUTS + 2) as apps:
        done, total = 0, 0
        while total < CUTS:
            counts = await asyncio.gather(*(one_client(done + n, apps) for n in range(10)))
            done, total = done + 10, total + sum(counts)
        assert engine.generations == done  # one each
        print(f"{total} cuts, {done} streams, {engine.generations} generations")


async def test_an_abandoned_stream_is_cancelled_at_its_grace(redis: str) -> None:
    soon = (("x-gateway-resume", "0.05"),)
    async with Engine() as engine, two(engine, redis) as (one, other):
        async with left(engine, one.url, headers=soon) as (turn, name, _):
            await turn.cancelled()
        assert (await refused(one.url, f"/v1/streams/{name}"))[0] == 404
        await until(lambda: not node(one).publishing)
        # A client at another gateway keeps it, and its own grace is the last one.
        async with left(engine, one.url) as (turn, name, events):
            async with await Connection.open(other.url) as client:
                await client.request("GET", f"/v1/streams/{name}?after=3")
                await client.read_head()
                await turn.send("c")
                assert (event := await client.event()) is not None
                assert event.raw not in events
                await client.abort()
            assert not turn.is_cancelled
            await turn.finish()


async def test_a_stream_that_is_followed_too_is_cancelled_when_all_have_gone(redis: str) -> None:
    """It is published twice: for those that ask for the same, and under its name."""
    soon = (("x-gateway-resume", "0.05"),)
    async with Engine() as engine, two(engine, redis) as (one, other):
        async with (
            streaming(one.url, CHAT, HELLO_STREAM, soon) as first,
            streaming(other.url, CHAT, HELLO_STREAM) as second,
        ):
            turn = await engine.next_request()
            await turn.send("a")
            for client in (first, second):
                assert [await client.event() for _ in range(2)]
            await until(lambda: node(one).publishing + node(other).publishing == 2)
            await first.abort()
            await turn.send("b")
            assert await second.event()
            assert not turn.is_cancelled
            await second.abort()
            await turn.cancelled()
        assert engine.generations == 1


async def test_without_redis_a_stream_is_resumed_at_its_own_gateway() -> None:
    with tempfile.TemporaryDirectory(prefix="resume-") as home:  # not tmp_path: a Unix socket's path is short
        async with (
            bare_redis(Path(home)) as (redis, server),
            Engine() as engine,
            two(engine, redis) as (one, other),
            left(engine, one.url) as (turn, name, events),
        ):
            server.kill()
            await until(lambda: not node(one).live and not node(other).live)
            await turn.finish("c")
            assert (events + await resumed(one.url, name, 3))[-1] == DONE
            status, code, _ = await refused(other.url, f"/v1/streams/{name}")
            assert (status, code) == (503, "cache_unavailable")


async def test_what_redis_forgot_is_gone(redis: str) -> None:
    async with (
        Engine() as engine,
        two(engine, redis) as (one, other),
        client_of(redis) as client,
        left(engine, one.url) as (turn, name, _),
    ):
        await turn.finish("c")
        await published(one)
        for pattern, answer in (("*:log:*", (410, "stream_gone")), ("*:stream:*", (404, "stream_not_found"))):
            for key in await client.call(b"KEYS", pattern, timeout=5):
                await client.call(b"DEL", key, timeout=5)
            for key in await client.call(b"KEYS", b"*:facts:*", timeout=5):
                await client.call(b"DEL", key, timeout=5)
            assert (await refused(other.url, f"/v1/streams/{name}"))[:2] == answer
        assert len(await resumed(one.url, name, 3)) == 2


FOREIGN = {
    "facts that are a text": (b"facts", (b"SET", b"xx")),
    "facts that are empty": (b"facts", (b"SET", b"")),
    "facts that are a list": (b"facts", (b"RPUSH", b"x")),
    "no size": (b"facts", (b"HSET", b"n", b"nan")),
    "a size below 0": (b"facts", (b"HSET", b"n", b"-1")),
    "a size that Lua alone reads": (b"facts", (b"HSET", b"n", b"0x10")),
    "a size of nothing": (b"facts", (b"HSET", b"n", b"0")),
    "a size beyond all": (b"facts", (b"HSET", b"n", b"9" * 1000)),
    "another digest": (b"facts", (b"HSET", b"d", b"0" * 32)),
    "no digest": (b"facts", (b"HSET", b"d", b"\xff")),
    "no state": (b"facts", (b"HSET", b"s", b"\xff")),
    "no head": (b"facts", (b"HSET", b"h", b"\xff")),
    "a log that is a list": (b"log", (b"RPUSH", b"x")),
    "a log that is empty": (b"log", (b"SET", b"")),
    "a log with other bytes": (b"log", (b"SETRANGE", b"7", b"\xff")),
}


@pytest.mark.parametrize("running", [False, True], ids=["landed", "running"])
@pytest.mark.parametrize(("what", "change"), FOREIGN.values(), ids=FOREIGN)
async def test_a_stream_that_another_program_wrote_to_is_gone_at_once_and_no_other_one(
    redis: str, what: bytes, change: tuple[bytes, ...], running: bool
) -> None:
    """Its facts and its log are data. The gateway that made it still has it."""
    async with Engine() as engine, two(engine, redis) as (one, other), client_of(redis) as client:
        async with left(engine, one.url) as (turn, name, _):
            if not running:
                await turn.finish("c")
            await published(one)
            (key,) = await client.call(b"KEYS", b"*:%b:*" % what, timeout=5)
            command, *words = change
            if command in (b"SET", b"RPUSH"):
                await client.call(b"DEL", key, timeout=5)
            await client.call(command, key, *words, timeout=5)
            async with patience(2):
                assert (await refused(other.url, f"/v1/streams/{name}"))[:2] == (410, "stream_gone")
            if running:
                await turn.finish("c")
            assert len(await resumed(one.url, name, 3)) == 2
            await published(one)
        for app in (one, other):
            assert node(app).live
            assert node(app).availability.trouble is None
        async with left(engine, one.url) as (turn, name, _):
            await turn.finish("d")
            await published(one)
            assert len(await resumed(other.url, name, 3)) == 2


@pytest.mark.parametrize("junk", [b"", b"\xff", b"\x90", b"{}", b"\x98" + b"\xc0" * 8, b"x" * 100_000])
async def test_a_record_that_is_none_is_no_stream(redis: str, junk: bytes) -> None:
    async with (
        Engine() as engine,
        two(engine, redis) as (one, other),
        client_of(redis) as client,
        left(engine, one.url) as (turn, name, _),
    ):
        for key in await client.call(b"KEYS", b"*:stream:*", timeout=5):
            await client.call(b"SET", key, junk, timeout=5)
        assert (await refused(other.url, f"/v1/streams/{name}"))[:2] == (404, "stream_not_found")
        await turn.finish()


async def test_another_tenant_finds_nothing_at_another_gateway(redis: str) -> None:
    mine = (("Authorization", "Bearer a"),)
    async with Engine() as engine, two(engine, redis) as (one, other):
        async with left(engine, one.url, headers=GRACE + mine) as (turn, name, _):
            await turn.finish("c")
        assert (await refused(other.url, f"/v1/streams/{name}"))[:2] == (404, "stream_not_found")
        assert len(await resumed(other.url, name, 0, mine)) == 5


async def test_what_may_not_be_stored_does_not_go_to_redis(redis: str) -> None:
    async with Engine() as engine, two(engine, redis) as (one, other):
        headers = (*GRACE, ("Cache-Control", "no-store"))
        async with left(engine, one.url, headers=headers) as (turn, name, _):
            await turn.finish("c")
        assert (await refused(other.url, f"/v1/streams/{name}"))[0] == 404
        assert len(await resumed(one.url, name, 3)) == 2


@asynccontextmanager
async def cut_off(engine: Engine, redis: str, body: dict[str, Any], headers: Any) -> AsyncIterator[Any]:
    """A stream of two tokens whose gateway then loses Redis for ever: for the other one it is dead."""
    async with two(engine, redis) as (one, other), streaming(one.url, CHAT, body, headers) as client:
        turn = await engine.next_request()
        await turn.send("a", "b")
        first = [event.raw for event in [await client.event() for _ in range(3)] if event is not None]
        await published(one)
        await node(one).stop()
        await turn.send("c", "d")  # which the other gateway never gets
        first += [event.raw for event in [await client.event() for _ in range(2)] if event is not None]
        yield turn, other, name_of(client.head), first
        await turn.finish()


@pytest.mark.parametrize("headers", [GRACE, IDS], ids=["counted", "ids"])
async def test_a_lost_gateway_s_stream_is_continued_and_never_mixed(
    redis: str, headers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "SILENCE", 0.2)
    body = HELLO_STREAM | {"messages": [{"role": "user", "content": f"lost {headers}"}]}
    async with Engine() as engine, cut_off(engine, redis, body, headers) as (_, other, name, first):
        async with await Connection.open(other.url) as again:
            await again.request("GET", f"/v1/streams/{name}?after=1")
            assert (await again.read_head()).status == 200
            turn = await engine.next_request()
            await turn.send("a", "b", "c d")  # cut otherwise
            got = [event.raw for event in [await again.event() for _ in range(3)] if event is not None]
            assert got[:2] == first[1:3]
            # The client of the lost gateway has four events, of which the fourth is no longer the same.
            status, code, words = await refused(other.url, f"/v1/streams/{name}?after=4")
            assert (status, code) == (416, "stream_position_unknown")
            assert "continue after event 3, or" in words
            await turn.finish()
            got += await rest(again)
            assert got[-1].endswith(DONE)
        if headers is IDS:
            id = got[2].split(b"\n")[0].removeprefix(b"id: ").decode()
            assert id.startswith("4-")
            answer = await get(other.url, f"/v1/streams/{name}", [("Last-Event-ID", id)])
            assert answer.events() == got[3:]
        assert await resumed(other.url, name, 3) == got[2:]


async def test_a_lost_sampled_stream_ends_with_what_there_is(redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "SILENCE", 0.2)
    async with Engine() as engine, cut_off(engine, redis, SAMPLED, GRACE) as (_, other, name, first):
        events = await resumed(other.url, name, 1)
        assert events[:-1] == first[1:3]
        assert b"upstream_truncated" in events[-1]
        assert (await refused(other.url, f"/v1/streams/{name}?after=5"))[:2] == (416, "stream_position_unknown")


async def test_frames_that_were_taken_reach_the_client_before_the_stream_is_lost(
    redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_node, "SLICE", 1)
    async with (
        Engine() as engine,
        two(engine, redis) as (one, other),
        left(engine, one.url) as (turn, name, events),
    ):
        for n in range(50):
            await turn.send(f"{n} ")
        (publication,) = node(one)._published.values()
        await until(lambda: b'"49 "' in b"".join(publication.flight.log) and not publication.sending)
        asked = asyncio.ensure_future(get(other.url, f"/v1/streams/{name}?after=0"))
        await until(lambda: any(each.feeding for each in node(other)._followers.values()))
        (follower,) = node(other)._followers.values()
        node(other)._do(follower, "lost")
        *frames, error = (await asked).events()
        assert (frames[:3], len(frames)) == (events, 53)
        assert b"upstream_truncated" in error
        await turn.finish()


async def test_redis_keeps_a_stream_while_a_client_reads_it_anywhere(
    redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the last one at the gateway that generates it has left."""
    for name, seconds in (("LOOK", 0.01), ("RENEWED", 0.02), ("SLACK", 2.0)):
        monkeypatch.setattr(streams, name, seconds)
    extended: Counter[Node] = Counter()

    def extend(self: Node, *words: Any) -> None:
        extended[self] += 1
        really(self, *words)

    really = Node.extend
    monkeypatch.setattr(Node, "extend", extend)
    async with (
        Engine() as engine,
        two(engine, redis) as (one, other),
        client_of(redis) as client,
        streaming(one.url, CHAT, SAMPLED, (("x-gateway-resume", "0.2"),)) as first,
        await Connection.open(other.url) as reader,
    ):
        turn = await engine.next_request()
        await turn.send("a", "b")
        assert await first.event()
        name = name_of(first.head)
        await reader.request("GET", f"/v1/streams/{name}?after=0")
        assert await reader.event()
        await first.abort()  # not before: a busy machine takes longer than the 0.2 s for which it is kept
        async with patience(10):
            while await kept(one):
                await pause()
        already = extended[node(other)]
        await until(lambda: extended[node(other)] > already + 5)
        assert await lasts(client, b"*:stream:*", b"*:log:*", b"*:facts:*") > 1000
        await reader.abort()
        await turn.cancelled(20)
        async with patience(10):
            while await keys_of(client, *PLACES):
                await pause()
        assert (await refused(other.url, f"/v1/streams/{name}"))[:2] == (404, "stream_not_found")


async def test_a_stream_whose_renewal_raises_delays_no_other_ones(
    redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("LOOK", 0.01), ("RENEWED", 0.02)):
        monkeypatch.setattr(streams, name, seconds)
    looks: list[bytes] = []
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["message"]))

    def extend(self: Node, name: bytes, *words: Any) -> None:
        looks.append(name)
        if name == looks[0]:
            raise RuntimeError("planned")

    async with (
        Engine() as engine,
        two(engine, redis) as (one, _),
        left(engine, one.url) as (turn, *_),
        left(engine, one.url, body=HELLO_STREAM) as (other_turn, *_),
    ):
        looks.clear()
        monkeypatch.setattr(Node, "extend", extend)
        await until(lambda: len(counts := Counter(looks)) == 2 and min(counts.values()) > 4)
        monkeypatch.undo()
        await turn.finish()
        await other_turn.finish()
    assert set(told) == {"the renewal of a stream"}


async def test_a_client_that_leaves_soon_takes_no_time_from_another_one_of_the_same_generation(redis: str) -> None:
    async with (
        Engine() as engine,
        two(engine, redis) as (one, other),
        client_of(redis) as client,
        left(engine, one.url, body=HELLO_STREAM) as (turn, name, events),
    ):
        soon = (("x-gateway-resume", "0.001"),)
        for app in (one, other):
            async with streaming(app.url, CHAT, HELLO_STREAM, soon) as twin:
                assert await twin.event()
                await twin.abort()
        async with await Connection.open(other.url) as again:
            await again.request("GET", f"/v1/streams/{name}?after=2")
            assert (event := await again.event()) is not None
            assert event.raw == events[2]
            await turn.finish("c")
            assert (await rest(again))[-1] == DONE
        records = await client.call(b"KEYS", b"*:stream:*", timeout=5)
        assert max([await client.call(b"PTTL", key, timeout=5) for key in records]) > 30_000
        assert engine.generations == 1


async def test_a_pause_of_redis_cancels_nothing_that_is_read_elsewhere(tmp_path: Path) -> None:
    """While the last client of the gateway that generates it deletes its stream."""
    async with (
        bare_redis(tmp_path) as (redis, server),
        Engine() as engine,
        two(engine, redis, redis_timeout_ms=1000) as (one, other),
        left(engine, one.url) as (turn, name, _),
        await Connection.open(other.url) as reader,
    ):
        await reader.request("GET", f"/v1/streams/{name}?after=0")
        assert await reader.event()
        server.send_signal(signal.SIGSTOP)
        answer = await call(one.url, "DELETE", f"/v1/streams/{name}")
        server.send_signal(signal.SIGCONT)
        assert (answer.status, answer.json()["error"]["code"]) == (503, "cache_unavailable")
        async with patience(20):
            while (await call(one.url, "DELETE", f"/v1/streams/{name}")).status != 404:
                await pause()
        assert not turn.is_cancelled
        await turn.finish("c")
        assert (await rest(reader))[-1] == DONE
        assert engine.generations == 1


async def lasts(client: RedisClient, *patterns: bytes) -> int:
    """For how many ms Redis keeps the keys of these patterns at least; each has one."""
    keys = [key for pattern in patterns for key in await client.call(b"KEYS", pattern, timeout=5)]
    assert len(keys) >= len(patterns)
    times: list[int] = [await client.call(b"PTTL", key, timeout=5) for key in keys]
    return min(times)


@pytest.mark.parametrize("limit", ["deny", "tokens"])
async def test_a_request_that_a_gateway_would_refuse_or_change_is_not_sent_by_it_for_another_one(
    redis: str, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "SILENCE", 0.2)
    denied = tmp_path / "deny"
    denied.write_text("hello\n")
    strict: dict[str, Any] = {"deny_file": str(denied)} if limit == "deny" else {"max_tokens_cap": 9}
    shared: dict[str, Any] = {"redis": redis, "fleet": "auto"}
    async with Engine() as engine, gateway(engine, **shared) as one, gateway(engine, **shared, **strict) as other:
        await until(lambda: node(one).live and node(other).live)
        async with left(engine, one.url, body=HELLO_STREAM) as (turn, name, events):
            await published(one)
            await node(one).stop()
            *rest_of_it, error = await resumed(other.url, name, 1)
            assert rest_of_it == events[1:]
            assert b"upstream_truncated" in error
            assert engine.generations == 1
            await turn.finish()


async def keys_of(client: RedisClient, *patterns: bytes) -> int:
    """How many keys Redis has of these patterns."""
    return sum([len(await client.call(b"KEYS", pattern, timeout=5)) for pattern in patterns])


PLACES = (b"*:stream:*", b"*:log:*", b"*:facts:*", b"*flight:{*}")  # records, logs, their facts, claims


async def test_a_stream_that_failed_leaves_nothing_in_redis(redis: str) -> None:
    async def refuses(turn: Turn) -> None:
        await turn.respond(400, {"error": {"message": "no", "type": "BadRequestError", "code": 400}})

    async with Engine(refuses) as engine, two(engine, redis) as (one, _), client_of(redis) as client:
        for n in range(3):
            body = HELLO_STREAM | {"messages": [{"role": "user", "content": f"{n} " + "x" * 20_000}]}
            assert (await post_json(one.url, CHAT, body, GRACE)).status == 400
        async with patience(10):
            while await keys_of(client, *PLACES):
                await pause()


async def test_what_made_room_leaves_nothing_in_redis(redis: str) -> None:
    async with (
        Engine(paced_script("ab")) as engine,
        two(engine, redis, resume_streams_max=4) as (one, other),
        client_of(redis) as client,
    ):
        names = [name_of((await post_json(one.url, CHAT, SAMPLED, GRACE)).head) for _ in range(8)]
        async with patience(10):
            while await keys_of(client, b"*:stream:*", b"*:log:*", b"*:facts:*") > 3 * 2:
                await pause()
        assert (await refused(other.url, f"/v1/streams/{names[0]}"))[:2] == (404, "stream_not_found")
        assert (await resumed(other.url, names[-1], 0))[-1] == DONE


async def test_requests_in_redis_count_as_logs(redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MOST_LOGS", 50_000)
    async with Engine(paced_script("ab")) as engine, two(engine, redis) as (one, _), client_of(redis) as client:
        for n in range(8):
            body = HELLO_STREAM | {"messages": [{"role": "user", "content": f"{n} " + "x" * 20_000}]}
            assert name_of((await post_json(one.url, CHAT, body, GRACE)).head)
        await published(one)
        assert await keys_of(client, b"*:stream:*") == 3  # the third one goes beyond it


async def test_a_gateway_that_ends_leaves_its_streams_to_the_others(redis: str) -> None:
    """For the grace and not much longer."""
    async with (
        Engine(paced_script("ab")) as engine,
        gateway(engine, redis=redis, fleet="auto") as other,
        client_of(redis) as client,
    ):
        async with gateway(engine, redis=redis, fleet="auto") as one:
            await until(lambda: node(one).live and node(other).live)
            name = name_of((await post_json(one.url, CHAT, SAMPLED, GRACE)).head)
            await published(one)
        for pattern in (b"*:stream:*", b"*:log:*", b"*:facts:*"):
            (key,) = await client.call(b"KEYS", pattern, timeout=5)
            assert 0 < await client.call(b"PTTL", key, timeout=5) <= 45_000, "the grace, and what renewals need"
        assert (await resumed(other.url, name, 0))[-1] == DONE


@pytest.mark.parametrize("body", [HELLO_STREAM, SAMPLED], ids=["exact", "sampled"])
async def test_a_gateway_that_stops_leaves_its_running_streams_to_the_others(
    redis: str, body: dict[str, Any]
) -> None:
    """All that its client was sent, the last of it too; the client comes later, and waits for no silence."""
    tokens = [f"{n} " for n in range(50)]
    async with (
        Engine() as engine,
        gateway(engine, redis=redis, fleet="auto") as other,
        client_of(redis) as client,
        AsyncExitStack() as stack,
    ):
        one = await stack.enter_async_context(gateway(engine, redis=redis, fleet="auto", drain_timeout=0.0))
        await until(lambda: node(one).live and node(other).live)
        async with streaming(one.url, CHAT, body, GRACE) as cut:
            turn = await engine.next_request()
            for token in tokens:
                await turn.send(token)
            first = [event.raw for event in [await cut.event() for _ in range(51)] if event is not None]
            name = name_of(cut.head)
            await stack.aclose()
            with pytest.raises(IncompleteBody):  # no error, which a client would take for the end
                await rest(cut)
        began = asyncio.get_running_loop().time()
        asked = asyncio.ensure_future(get(other.url, f"/v1/streams/{name}?after=51"))
        if body is SAMPLED:
            (error,) = (await asked).events()
            assert b"upstream_truncated" in error
            assert await resumed(other.url, name, 0) == [*first, error]
        else:
            turn = await engine.next_request()
            assert asyncio.get_running_loop().time() - began < following.SILENCE
            for token in tokens:
                await turn.send(token)
            await turn.finish("c")
            events = (await asked).events()
            assert (b'"c"' in events[0], events[-1]) == (True, DONE)
            assert await resumed(other.url, name, 0) == [*first, *events]
        if body is SAMPLED:
            for pattern in PLACES:
                for key in await client.call(b"KEYS", pattern, timeout=5):
                    assert 0 < await client.call(b"PTTL", key, timeout=5) <= 45_000, key


@pytest.mark.parametrize("at", [0, 1], ids=["its own", "another"])
async def test_a_deleted_stream_is_cancelled_and_known_nowhere(redis: str, at: int) -> None:
    async with Engine() as engine, two(engine, redis) as apps, client_of(redis) as client:
        async with left(engine, apps[0].url) as (turn, name, _):
            path = f"/v1/streams/{name}"
            theirs = (("Authorization", "Bearer b"),)
            assert (await call(apps[at].url, "DELETE", path, headers=theirs)).status == 404
            answer = await call(apps[at].url, "DELETE", path)
            assert answer.status == 200
            assert answer.json() == {"id": name, "object": "stream", "deleted": True}
            await turn.cancelled()
        for app in apps:
            assert (await refused(app.url, path))[:2] == (404, "stream_not_found")
            assert (await call(app.url, "DELETE", path)).status == 404
        async with patience(10):
            while await keys_of(client, *PLACES):
                await pause()


async def test_a_deleted_stream_goes_on_for_those_that_read_it(redis: str) -> None:
    """At the gateway that made it and at one that follows it, which then keeps it no longer either."""
    async with Engine() as engine, two(engine, redis) as (one, other), left(engine, one.url) as (turn, name, _):
        path = f"/v1/streams/{name}"
        async with await Connection.open(one.url) as near, await Connection.open(other.url) as far:
            for reader in (near, far):
                await reader.request("GET", f"{path}?after=2")
                assert await reader.event()
            assert (await call(other.url, "DELETE", path)).status == 200
            async with patience(10):
                while await kept(one) or await kept(other):
                    await pause()
            await turn.send("c")
            for reader in (near, far):
                assert await reader.event()
            assert not turn.is_cancelled
            await near.abort()
            await far.abort()
            await turn.cancelled()
        assert (await refused(one.url, path))[0] == (await refused(other.url, path))[0] == 404


async def test_a_client_that_comes_back_elsewhere_takes_no_second_slot(redis: str) -> None:
    async with Engine() as engine, two(engine, redis, rate_limit_streams=1) as (one, other):
        async with left(engine, one.url) as (turn, name, events):
            assert (await post_json(other.url, CHAT, SAMPLED)).status == 429
            async with await Connection.open(other.url) as client:
                await client.request("GET", f"/v1/streams/{name}?after=3")
                assert (await client.read_head()).status == 200
                await turn.finish("c")
                assert (events + await rest(client))[-1] == DONE
        engine.auto(paced_script("ab"))
        async with patience(10):
            while (await post_json(other.url, CHAT, SAMPLED)).status != 200:
                await pause()


async def test_a_client_may_come_back_before_its_stream_is_known_in_redis(
    redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, known = [], Node.get

    async def late(self: Node, name: bytes) -> bytes | None:
        looks.append(name)
        return None if len(looks) == 1 else await known(self, name)

    monkeypatch.setattr(Node, "get", late)
    async with (
        Engine() as engine,
        two(engine, redis) as (one, other),
        left(engine, one.url) as (turn, name, events),
    ):
        await turn.finish("c")
        assert events + await resumed(other.url, name, 3) == await resumed(one.url, name, 0)
        assert len(looks) == 2

"""What is stored: how a stream is kept, what is taken back for sound, and what never reaches a client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from proxy.cache import PREFIX, Cache, Op, Stored, stream_views
from proxy.flight import Flight
from proxy.kept import land
from proxy.plan import Mode, Plan
from proxy.wire.openai import decode
from proxy.wire.sse import LAST_CHUNK, ChunkCheck, chunk
from tests.redis_server import look_up, redis_server

ONE, TWO, THREE = (chunk(b"data: %d\n\n" % n) for n in range(3))
STREAM = Stored("stream", 1.0, ONE + TWO, cut=len(ONE), tail=THREE)
CHUNKS = st.lists(st.binary(min_size=1, max_size=5).map(chunk), max_size=6)


@given(CHUNKS, CHUNKS, CHUNKS)
def test_both_views_of_a_stream_come_back_from_what_is_stored(
    same: list[bytes], rest: list[bytes], plain_rest: list[bytes]
) -> None:
    full, plain = same + rest, same + plain_rest
    body, cut, tail = stream_views(full, plain)
    assert body == b"".join(full)
    assert (body if cut is None else body[:cut] + tail) == b"".join(plain)
    stored = Stored("stream", 1.0, body, cut, tail)
    assert stored.sound(ChunkCheck()) is bool(body)


def test_a_stream_with_one_view_is_stored_without_a_cut() -> None:
    assert stream_views([ONE, TWO], [ONE, TWO]) == (ONE + TWO, None, b"")
    assert stream_views(same := [ONE], same) == (ONE, None, b"")


@pytest.mark.parametrize(
    "changes",
    [
        {"body": b""},
        {"body": ONE + TWO + b"x"},
        {"body": ONE + TWO[:-1]},
        {"body": ONE + TWO + LAST_CHUNK},
        {"body": LAST_CHUNK + b"HTTP/1.1 200 OK\r\n\r\n"},
        {"cut": len(ONE) - 1},
        {"cut": -1},
        {"cut": 10**9},
        {"cut": None},
        {"tail": THREE[1:]},
        {"tail": LAST_CHUNK},
        {"created": float("nan")},
        {"created": float("inf")},
        {"created": -1.0},
        {"content_type": "text/event-stream\r\nset-cookie: a=b"},
        {"prompt_tokens": -1},
        {"completion_tokens": -1},
        {"kind": "whole"},
        {"kind": "whole", "cut": None},
        {"kind": "whole", "cut": None, "tail": b"", "body": b""},
    ],
)
def test_what_could_harm_a_client_is_not_sound(changes: dict[str, Any]) -> None:
    assert STREAM.sound(ChunkCheck())
    assert Stored("whole", 1.0, b"{}").sound(ChunkCheck())
    assert not msgspec.structs.replace(STREAM, **changes).sound(ChunkCheck())


def test_a_cut_inside_a_chunk_is_not_sound_even_where_what_follows_looks_like_chunks() -> None:
    inner = chunk(b"a" + ONE)  # the content ends in a whole chunk
    assert not Stored("stream", 1.0, inner, cut=len(inner) - len(ONE) - 2, tail=TWO).sound(ChunkCheck())


@asynccontextmanager
async def cached(**changes: Any) -> AsyncIterator[tuple[Cache, list[Op], Redis]]:
    seen: list[Op] = []
    settings: dict[str, Any] = {"timeout": 10.0, "ttl": 60, "max_entry": 1 << 20, "max_pending": 1 << 20}
    async with redis_server() as path, Redis.from_url(f"unix://{path}") as other:
        cache = Cache(f"unix://{path}", record=seen.append, **(settings | changes))
        await cache.start()
        try:
            yield cache, seen, other
        finally:
            await cache.stop()


async def put(cache: Cache, key: bytes, stored: Stored, *, replace: bool = True) -> None:
    done = asyncio.Event()
    cache.store(key, stored, done.set, replace=replace)
    await done.wait()


async def test_what_is_stored_comes_back_as_it_was() -> None:
    async with cached() as (cache, _, _):
        whole = Stored("whole", 2.5, b"{}", prompt_tokens=1, completion_tokens=2)
        await put(cache, b"a", STREAM)
        await put(cache, b"b", whole)
        assert await look_up(cache, [b"a", b"b", b"c"]) == [STREAM, whole, None]


SOUND = msgspec.msgpack.encode(STREAM)


@pytest.mark.parametrize(
    "value",
    [b"", b"garbage", SOUND[:-1], SOUND + b"x", SOUND[1:], SOUND.replace(b"data", b"dat")],
    ids=["nothing", "text", "truncated", "longer", "beheaded", "damaged"],
)
async def test_garbage_is_a_miss_and_whatever_comes_next_replaces_it(value: bytes) -> None:
    async with cached() as (cache, seen, other):
        await other.set(PREFIX + b"k".hex().encode(), value)
        assert await look_up(cache, [b"k"]) == [None]
        await put(cache, b"k", STREAM, replace=False)
        assert await look_up(cache, [b"k"]) == [STREAM]
        assert seen == ["garbage", "store", "hit"]


@given(st.binary(max_size=80), st.integers(0, len(SOUND)))
def test_no_bytes_under_our_key_make_a_look_up_fail(noise: bytes, at: int) -> None:
    async def run() -> None:
        cache = Cache("unix:///none", timeout=1, ttl=1, max_entry=1, max_pending=1)
        for value in (noise, SOUND[:at] + noise, SOUND[:at] + noise + SOUND[at + len(noise) :]):
            stored = cache._decode(b"k", value)
            assert stored is None or stored.sound(ChunkCheck())

    asyncio.run(run())


async def test_another_kind_of_value_under_our_key_is_nothing_to_us() -> None:
    async with cached() as (cache, seen, other):
        await other.rpush(PREFIX + b"k".hex().encode(), "a")
        assert await look_up(cache, [b"k"]) == [None]
        assert seen == ["miss"]  # as MGET has it


async def test_replace_false_leaves_what_is_there() -> None:
    async with cached() as (cache, _, _):
        await put(cache, b"k", STREAM)
        await put(cache, b"k", Stored("whole", 1.0, b"{}"), replace=False)
        assert await look_up(cache, [b"k"]) == [STREAM]


async def test_more_than_may_wait_to_be_stored_is_left_out_and_settled_at_once() -> None:
    async with cached(max_pending=5000) as (cache, seen, _):
        settled: list[int] = []
        big = Stored("whole", 1.0, b"x" * 3000)
        for n in range(2):
            cache.store(b"%d" % n, big, lambda n=n: settled.append(n))  # type: ignore[misc]
        assert (seen, settled) == (["store_skipped"], [1])
        await put(cache, b"small", Stored("whole", 1.0, b"{}"))
        assert settled == [1, 0]
        await put(cache, b"1", big)
        assert [value is not None for value in await look_up(cache, [b"0", b"1"])] == [True, True]


async def test_stopping_settles_what_is_under_way_and_is_no_error() -> None:
    async with cached() as (cache, seen, other):
        await other.client_pause(60_000)
        settled: list[int] = []
        cache.store(b"k", STREAM, lambda: settled.append(1))
        found = look_up(cache, [b"k"])
        await cache.stop()
        assert (settled, await found, seen) == ([1], [None], [])
        assert cache.available


async def test_who_asked_may_leave_and_the_next_look_up_is_right() -> None:
    async with cached() as (cache, seen, _):
        await put(cache, b"k", STREAM)
        look_up(cache, [b"other"]).cancel()
        assert await look_up(cache, [b"k"]) == [STREAM]
        assert seen == ["store", "miss", "hit"]


@pytest.mark.parametrize(
    ("harm", "opens"),
    [
        (lambda other: other.execute_command("ACL", "SETUSER", "default", "-mget"), False),
        (lambda other: other.config_set("requirepass", "now there is one"), True),
    ],
    ids=["it lives and says no", "it wants a password now"],
)
async def test_a_refusal_opens_the_breaker_only_where_everything_would_be_refused(
    harm: Callable[[Redis], Any], opens: bool
) -> None:
    told: list[tuple[bool, str]] = []
    async with cached(on_breaker=lambda opened, why: told.append((opened, why))) as (cache, seen, other):
        await harm(other)
        assert await look_up(cache, [b"k"]) == [None]
        assert seen == ["error"]
        assert cache.available is not opens
        assert told == ([(True, "it refused the login (NOAUTH)")] if opens else [])


@pytest.mark.parametrize(("fingerprint", "lands"), [(b"vllm-0.32.0", True), (b"another", False)])
def test_a_long_stream_lands_as_a_stream_for_who_wants_a_body(fingerprint: bytes, lands: bool) -> None:
    frame = b"data: {}\n\n"
    body = chunk(frame) * 5000 + chunk(b'data: {"system_fingerprint":"%b"}\n\n' % fingerprint)
    ask = decode("chat", b'{"messages":[]}')
    flight = Flight(Plan("POST", "/", b"", Mode.WHOLE, "r", key=b"k", ask=ask), lambda: 0.0)
    assert land(flight, Stored("stream", 1.0, body)) == lands
    assert flight.ended == lands
    assert (flight.mode is Mode.STREAM) == lands

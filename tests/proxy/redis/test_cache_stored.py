"""What is stored: how a stream is kept, what is taken back for sound, and what never reaches a client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from proxy.flights import stored as kept
from proxy.flights.flight import Flight
from proxy.flights.spec import FlightSpec, Mode
from proxy.flights.stored import replay
from proxy.redis.cache import MAX_KNOWN, Cache, Op, Reader, Stored, stream_views
from proxy.redis.resp import WireError
from proxy.wire.openai import Endpoint, decode
from proxy.wire.sse import LAST_CHUNK, ChunkCheck, chunk, is_done, unchunks
from tests.kit.redis_server import look_up, redis_server

CHOICE = b'"index":0,"delta":{"content":"%b"},"finish_reason":%b'
ONE, *ENDS = (
    chunk(b'data: {"choices":[{%b}]%b}\n\n' % (CHOICE % (text, reason), more))
    for text, reason, more in ((b"Hi", b"null", b""), (b"", b'"stop"', b""), (b"", b'"stop"', b',"of":"both"'))
)
OVER = chunk(b"data: [DONE]\n\n")
USAGE = chunk(b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n')
TWO = ENDS[0] + USAGE + OVER
THREE = ENDS[1] + OVER
STREAM = Stored("stream", 1.0, ONE + TWO, cut=len(ONE), tail=THREE)
BODY = b'{"choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":"stop"}]}'
VECTOR = b'{"data":[{"index":0,"embedding":[0.5]}]}'
CHUNKS = st.lists(st.binary(min_size=1, max_size=5).map(chunk), max_size=6)


@given(CHUNKS, CHUNKS, CHUNKS)
def test_both_views_of_a_stream_come_back_from_what_is_stored(
    same: list[bytes], rest: list[bytes], plain_rest: list[bytes]
) -> None:
    full, plain = same + rest, same + plain_rest
    body, cut, tail = stream_views(full, plain)
    assert body == b"".join(full)
    assert (body if cut is None else body[:cut] + tail) == b"".join(plain)
    whole = Stored("stream", 1.0, *stream_views([*full, ENDS[0], OVER], [*plain, ENDS[0], OVER]))
    assert whole.sound(ChunkCheck())
    assert not Stored("stream", 1.0, body, cut, tail).sound(ChunkCheck())


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
        {"created": 1e11},
        {"content_type": "text/event-stream\r\nset-cookie: a=b"},
        {"prompt_tokens": -1},
        {"completion_tokens": -1},
        {"kind": "whole"},
        {"kind": "whole", "cut": None},
        {"kind": "whole", "cut": None, "tail": b"", "body": b""},
        {"kind": "whole", "cut": None, "tail": b""},
        {"prompt_tokens": 2**63},
        {"tail": OVER},
        {"tail": THREE + OVER},
        {"tail": OVER + THREE},
        {"tail": THREE + USAGE},
        {"tail": ENDS[1]},
        {"tail": THREE.replace(b"stop", b"abor")},
        {"tail": b""},
        {"tail": b"", "cut": None, "body": ONE + OVER},
        {"tail": b"", "cut": None, "body": OVER},
        {"tail": b"", "cut": None, "body": ONE + ENDS[0]},
        {"tail": b"", "cut": None, "body": b"0" + ONE + ENDS[0] + OVER},
        {"tail": b"", "cut": None, "body": ONE + ENDS[0] + OVER.replace(b"e\r", b"E\r")},
        {"tail": b"", "cut": None, "body": ONE + ENDS[0] + OVER.replace(b"e\r", b"e;a=b\r")},
    ],
)
def test_what_could_harm_a_client_is_not_sound(changes: dict[str, Any]) -> None:
    assert STREAM.sound(ChunkCheck())
    assert Stored("whole", 1.0, BODY).sound(ChunkCheck())
    assert Stored("whole", 1.0, VECTOR).sound(ChunkCheck())
    assert Stored("stream", 1.0, ONE + ENDS[0] + OVER).sound(ChunkCheck())
    assert msgspec.structs.replace(STREAM, created=0.0).sound(ChunkCheck())
    assert not msgspec.structs.replace(STREAM, **changes).sound(ChunkCheck())


def test_a_cut_inside_a_chunk_is_not_sound_even_where_what_follows_looks_like_chunks() -> None:
    inner = chunk(b"a" + ONE)  # the content ends in a whole chunk
    assert not Stored("stream", 1.0, inner, cut=len(inner) - len(ONE) - 2, tail=TWO).sound(ChunkCheck())


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"error":{"message":"no"}}',
        b'{"object":"error"}',
        b'{"choices":null}',
        b'{"choices":[]}',
        b'{"choices":{}}',
        BODY.replace(b"stop", b"abort"),
        BODY.replace(b'"stop"', b"null"),
        BODY.replace(b'"stop"', b"1"),
        BODY[:-1],
        BODY + b"x",
        BODY + BODY,
        BODY.replace(b'"Hi"', b"[" * 100_000),
        BODY.replace(b'"Hi"', b"NaN"),
        VECTOR.replace(b"[0.5]", b"null"),
        VECTOR.replace(b"[0.5]", b"[]"),
        VECTOR.replace(b"[0.5]", b'""'),
        VECTOR.replace(b"[0.5]", b"[null]"),
        ONE + ENDS[0] + OVER,
        b"\xff",
    ],
)
def test_a_stored_body_that_is_not_whole_is_not_sound(body: bytes) -> None:
    assert not Stored("whole", 1.0, body).sound(ChunkCheck())


def says(stored: Stored) -> list[object]:
    """What a client that asks for usage, and one that does not, would get."""
    if stored.kind == "whole":
        return [json.loads(stored.body)]
    plain = stored.body if stored.cut is None else stored.body[: stored.cut] + stored.tail
    return [unchunks(view) for view in (stored.body, plain)]


@given(
    st.sampled_from([STREAM, Stored("stream", 1.0, ONE + ENDS[0] + OVER), Stored("whole", 1.0, BODY)]),
    st.lists(
        st.tuples(
            st.integers(0, 600),
            st.integers(0, 3),
            st.one_of(
                st.binary(max_size=3), st.sampled_from([OVER, ONE, LAST_CHUNK, b"0", b"A", b"\r\n", b";a=b"])
            ),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_a_damaged_value_is_a_miss_or_a_stream_that_we_could_have_written(
    stored: Stored, damage: list[tuple[int, int, bytes]]
) -> None:
    value = msgspec.msgpack.encode(stored)
    for at, gone, instead in damage:
        at %= len(value)
        value = value[:at] + instead + value[at + gone :]
    cache = Cache("unix:///none", timeout=1, ttl=1, max_entry=1, max_pending=1)
    found = cache._decode(b"k", value)
    if found is None:
        return
    for view in says(found):
        if isinstance(view, list):
            assert [is_done(frame) for frame in view] == [False] * (len(view) - 1) + [True]
            assert any(b'"finish_reason":"stop"' in frame for frame in view)
        else:
            assert view["choices"][0]["finish_reason"] == "stop"  # type: ignore[index]


@asynccontextmanager
async def cached(**changes: Any) -> AsyncIterator[tuple[Cache, list[Op], Redis]]:
    seen: list[Op] = []
    settings: dict[str, Any] = {"timeout": 10.0, "ttl": 60, "max_entry": 1 << 20, "max_pending": 1 << 20}
    async with redis_server() as path, Redis.from_url(f"unix://{path}") as other:
        cache = Cache(f"unix://{path}", record=lambda op, count: seen.extend([op] * count), **(settings | changes))
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
        whole = Stored("whole", 2.5, BODY, prompt_tokens=1, completion_tokens=2)
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
        await other.set(b"gateway:" + b"k".hex().encode(), value)
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
        await other.rpush(b"gateway:" + b"k".hex().encode(), "a")
        assert await look_up(cache, [b"k"]) == [None]
        assert seen == ["miss"]  # as MGET has it


async def test_replace_false_leaves_what_is_there() -> None:
    async with cached() as (cache, _, _):
        await put(cache, b"k", STREAM)
        await put(cache, b"k", Stored("whole", 1.0, BODY), replace=False)
        assert await look_up(cache, [b"k"]) == [STREAM]


async def test_more_than_may_wait_to_be_stored_is_left_out_and_settled_at_once() -> None:
    async with cached(max_pending=5000) as (cache, seen, _):
        settled: list[int] = []
        big = Stored("whole", 1.0, BODY + b" " * 3000)
        for n in range(2):
            cache.store(b"%d" % n, big, lambda n=n: settled.append(n))  # type: ignore[misc]
        assert (seen, settled) == (["store_skipped"], [1])
        await put(cache, b"small", Stored("whole", 1.0, BODY))
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
    ("harm", "says"),
    [
        (lambda other: other.execute_command("ACL", "SETUSER", "default", "-mget"), "it refused (NOPERM mget): "),
        (
            lambda other: other.config_set("requirepass", "now there is one"),
            "it refused the login (NOAUTH): it requires a password; ",
        ),
    ],
    ids=["it lives and says no", "it wants a password now"],
)
async def test_a_refusal_of_a_look_up_opens_the_breaker(harm: Callable[[Redis], Any], says: str) -> None:
    told: list[WireError | None] = []
    async with cached(on_breaker=told.append) as (cache, seen, other):
        await harm(other)
        assert await look_up(cache, [b"k"]) == [None]
        assert seen == ["error"]
        assert not cache.available
        (trouble,) = told
        assert str(trouble).startswith(says)


def test_a_value_that_is_known_to_be_sound_is_known_byte_for_byte_and_within_a_bound() -> None:
    reader = Reader()
    value = msgspec.msgpack.encode(STREAM)
    assert reader.read(b"k", value) == STREAM
    assert reader.read(b"k", bytes(bytearray(value))) is reader.read(b"k", value)
    assert reader.read(b"k", value[:-1]) is None
    assert reader.read(b"other", value[:-1]) is None
    assert reader.read(b"k", value) == STREAM
    large = msgspec.msgpack.encode(Stored("whole", 1.0, BODY + b" " * (MAX_KNOWN // 10)))
    for n in range(40):
        assert reader.read(b"%d" % n, large) is not None
    assert reader._held == sum(len(value) for value, _ in reader._known.values()) <= MAX_KNOWN
    assert reader.read(b"huge", msgspec.msgpack.encode(Stored("whole", 1.0, BODY + b" " * MAX_KNOWN))) is not None
    assert b"huge" not in reader._known
    odds: list[Any] = [None, 5, "text", [], b"\xc1" * 100_000, b"\x91" * 100_000]
    for odd in odds:
        assert reader.read(b"k", odd) is None


def test_values_that_just_fit_are_all_known() -> None:
    reader = Reader()
    size = MAX_KNOWN // 8
    value = msgspec.msgpack.encode(Stored("whole", 1.0, BODY + b" " * size))
    value = msgspec.msgpack.encode(Stored("whole", 1.0, BODY + b" " * (2 * size - len(value))))
    assert len(value) == size
    for n in range(8):
        assert reader.read(b"%d" % n, value) is not None
    assert len(reader._known) == 8
    reader.read(b"one more", value)
    assert (len(reader._known), b"0" in reader._known) == (8, False)


@pytest.mark.parametrize(
    ("endpoint", "fields", "serves"),
    [
        ("chat", {"messages": []}, True),
        ("chat", {"messages": [], "n": 1}, True),
        ("chat", {"messages": [], "n": 2}, False),
        ("completions", {"prompt": "a"}, True),
        ("completions", {"prompt": ["a", "b"]}, False),
    ],
)
@pytest.mark.parametrize("stored", [STREAM, Stored("whole", 1.0, BODY)], ids=["stream", "body"])
async def test_an_entry_with_fewer_choices_than_a_request_asks_for_does_not_serve_it(
    endpoint: Endpoint, fields: dict[str, Any], serves: bool, stored: Stored
) -> None:
    mode = Mode.STREAM if stored.kind == "stream" else Mode.WHOLE
    api_request = decode(endpoint, json.dumps(fields).encode())
    flight = Flight(FlightSpec("POST", "/", b"", mode, "r", key=b"k", api_request=api_request))
    assert kept.replay(flight, stored) is serves
    assert flight.replace is not serves


@pytest.mark.parametrize("kind", ["stream", "whole"])
@pytest.mark.parametrize(("choices", "serves"), [(1, False), (2, True), (3, False)])
def test_an_entry_serves_as_many_choices_as_it_has(
    kind: Literal["stream", "whole"], choices: int, serves: bool
) -> None:
    ended = [{"index": n, "finish_reason": "stop"} for n in range(choices)]
    frames = b"".join(chunk(b"data: %b\n\n" % json.dumps({"choices": [one]}).encode()) for one in ended)
    stored = Stored(kind, 1.0, frames + OVER if kind == "stream" else json.dumps({"choices": ended}).encode())
    api_request = decode("chat", b'{"messages":[],"n":2}')
    mode = Mode.STREAM if kind == "stream" else Mode.WHOLE
    flight = Flight(FlightSpec("POST", "/", b"", mode, "r", key=b"k", api_request=api_request), lambda: 0.0)
    assert kept.replay(flight, stored) is serves


@pytest.mark.parametrize(("fingerprint", "lands"), [(b"vllm-0.32.0", True), (b"another", False)])
def test_a_long_stream_lands_as_a_stream_for_who_wants_a_body(fingerprint: bytes, lands: bool) -> None:
    frame = b"data: {}\n\n"
    body = chunk(frame) * 5000 + chunk(b'data: {"system_fingerprint":"%b"}\n\n' % fingerprint)
    api_request = decode("chat", b'{"messages":[]}')
    flight = Flight(FlightSpec("POST", "/", b"", Mode.WHOLE, "r", key=b"k", api_request=api_request), lambda: 0.0)
    assert replay(flight, Stored("stream", 1.0, body)) == lands
    assert flight.ended == lands
    assert (flight.mode is Mode.STREAM) == lands


@pytest.mark.parametrize(
    ("harm", "opens"),
    [
        (lambda other: other.execute_command("ACL", "SETUSER", "default", "-set"), False),
        (lambda other: other.config_set("requirepass", "now there is one"), True),
    ],
    ids=["it lives and says no", "it wants a password now"],
)
async def test_a_store_that_fails_is_an_error_and_settled_and_may_open_the_breaker(
    harm: Callable[[Redis], Any], opens: bool
) -> None:
    async with cached() as (cache, seen, other):
        await harm(other)
        await put(cache, b"k", STREAM)
        assert seen == ["error"]
        assert cache.available is not opens

"""One request over aiohttp, and every way in which it can go wrong: each of them one failure, in words."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from loadgen.client import Client
from loadgen.clock import Clock
from loadgen.exchange import Exchange
from loadgen.loop import new_loop
from loadgen.reading import finish
from loadgen.record import Kind, Record
from loadgen.shots import Shot
from loadgen.spec import Http
from loadgen.stand_in import OnePrompt
from tests.engine import full_backlog
from tests.loadgen.servers import (
    DONE,
    EVENT,
    GOOD,
    HEAD,
    LAST,
    QUICK,
    answering,
    asks,
    chunk,
    read_request,
    serving,
    whole,
)
from tests.running import until

PROMPT = OnePrompt("p", "chat", {"messages": [{"role": "user", "content": "hi"}]})
WHOLE = b'{"choices":[{"index":0,"message":{"content":"x"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'


def on_our_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Runs the test on the loop that the load generator runs on."""

    def run() -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test())  # type: ignore[arg-type]

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def sent(url: str, http: Http = QUICK, *, stream: bool = True, times: int = 1) -> list[Record]:
    """The records of as many requests, one after the other over one client."""
    records: list[Record] = []
    clock = Clock()
    client = Client(http, kernel=True)
    try:
        for number in range(times):
            ask = asks(url, stream=stream).make(Shot(number, PROMPT))
            records.append(finish(await client.send(ask), clock))
    finally:
        await client.close()
    return records


async def answered(answer: bytes, http: Http = QUICK, *, stream: bool = True, close: bool = False) -> Record:
    async with serving(answering(answer, close=close)) as url:
        return (await sent(url, http, stream=stream))[0]


@on_our_loop
async def test_a_good_stream_has_its_events_and_the_kernels_times() -> None:
    record = await answered(GOOD)
    assert record.failure is None, record.detail
    assert [event.kind for event in record.events] == [Kind.CONTENT, Kind.CONTENT, Kind.DONE]
    assert record.write_ns is not None
    assert record.sent_ns is not None
    assert record.head_ns is not None
    assert record.write_ns <= record.sent_ns <= record.head_ns
    assert record.connect_ns is not None
    if sys.platform.startswith("linux"):
        assert record.events[0].at_ns < record.events[0].user_ns


@on_our_loop
async def test_a_kept_connection_is_used_again_and_connecting_is_counted_once() -> None:
    async with serving(answering(GOOD)) as url:
        first, second, third = await sent(url, times=3)
    assert first.connect_ns is not None
    assert second.connect_ns is third.connect_ns is None
    assert [len(record.events) for record in (first, second, third)] == [3, 3, 3]
    assert second.head_ns is not None
    assert third.head_ns is not None
    assert second.head_ns < third.head_ns


@on_our_loop
async def test_without_keep_alive_every_request_connects() -> None:
    async with serving(answering(GOOD)) as url:
        records = await sent(url, msgspec.structs.replace(QUICK, keepalive=False), times=2)
    assert all(record.connect_ns is not None and record.failure is None for record in records)


@on_our_loop
async def test_a_whole_body_is_read_as_one() -> None:
    record = await answered(whole("200 OK", WHOLE, b"content-type: application/json"), stream=False)
    assert (record.failure, record.completion_tokens) == (None, 1)


@on_our_loop
async def test_headers_and_the_body_go_as_they_were_told() -> None:
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(GOOD)
        await writer.drain()

    async with serving(handle) as url:
        await sent(url, msgspec.structs.replace(QUICK, headers=(("Authorization", "Bearer k"), ("X-A", "b"))))
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1")
    assert b"Authorization: Bearer k" in head
    assert b"X-A: b" in head
    assert b"x-request-id: t-0a" in head
    assert b"Accept-Encoding: identity" in head
    assert msgspec.json.decode(body) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@on_our_loop
async def test_events_split_at_every_byte_are_whole_again() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for at in range(len(GOOD)):
            writer.write(GOOD[at : at + 1])
            await asyncio.sleep(0)

    async with serving(handle) as url:
        record = (await sent(url))[0]
    assert record.failure is None, record.detail
    assert len(record.events) == 3


# Failures


async def failing(answer: bytes, http: Http = QUICK, **more: Any) -> tuple[str | None, str]:
    record = await answered(answer, http, **more)
    return record.failure, record.detail


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@on_our_loop
async def test_a_server_that_is_not_there_refuses() -> None:
    record = (await sent(f"http://127.0.0.1:{unused_port()}"))[0]
    assert record.failure == "refused"
    assert "127.0.0.1" in record.detail
    assert (record.sent_ns, record.status, record.end_ns) == (None, None, None)


@on_our_loop
async def test_an_unknown_host_refuses_by_name() -> None:
    record = (await sent("http://no-such-host.invalid"))[0]
    assert (record.failure, record.detail) == ("refused", "unknown host no-such-host.invalid")


@on_our_loop
async def test_a_server_that_does_not_accept_times_out() -> None:
    with full_backlog() as url:
        record = (await sent(url, msgspec.structs.replace(QUICK, connect_timeout=0.05)))[0]
    assert (record.failure, record.detail) == ("timeout", "no connection within 0.05 s (--connect-timeout)")


@on_our_loop
async def test_plain_http_where_tls_is_spoken_is_refused_in_words() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with serving(handle) as url:
        record = (await sent(url.replace("http:", "https:")))[0]
    assert record.failure == "refused"
    assert record.detail.startswith("TLS:")


@on_our_loop
async def test_statuses_are_failures_with_the_servers_words() -> None:
    for status in ("401 Unauthorized", "404 Not Found", "429 Too Many Requests", "500 Oh", "503 Busy", "307 Gone"):
        failure, detail = await failing(whole(status, b'{"error":{"message":"so there"}}'))
        assert (failure, detail) == ("status", f"{status[:3]}: so there")


@on_our_loop
async def test_cuts_are_truncations_wherever_they_fall() -> None:
    for answer, events in (
        (b"", 0),
        (b"HTTP/1.1 200", 0),
        (HEAD, 0),
        (HEAD + chunk(EVENT), 1),
        (HEAD + chunk(EVENT) + b"ff\r\ndata: {", 1),
        (HEAD + chunk(EVENT) + chunk(DONE), 2),
    ):
        record = await answered(answer, close=True)
        assert record.failure == "truncated", (answer, record)
        assert len(record.events) == events, answer


@on_our_loop
async def test_a_reset_is_a_truncation_in_words() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + chunk(EVENT))
        await writer.drain()
        writer.transport.abort()

    async with serving(handle) as url:
        record = (await sent(url))[0]
    assert record.failure == "truncated"


@on_our_loop
async def test_a_stream_without_done_is_a_truncation_though_http_ended_well() -> None:
    assert (await failing(HEAD + chunk(EVENT) + LAST))[0] == "truncated"


@on_our_loop
async def test_an_error_frame_in_a_200_is_a_failure() -> None:
    frame = b'data: {"error":{"message":"engine died","code":500}}\n\n'
    assert await failing(HEAD + chunk(EVENT) + chunk(frame) + chunk(DONE) + LAST) == ("error_frame", "engine died")


@on_our_loop
async def test_what_is_not_http_is_garbage() -> None:
    failure, detail = await failing(b"SSH-2.0-OpenSSH_9\r\n\r\n", close=True)
    assert failure == "garbage"
    assert detail.startswith("not HTTP")


@on_our_loop
async def test_a_broken_chunk_is_a_failure_and_what_came_before_is_kept() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + chunk(EVENT))
        await writer.drain()
        await asyncio.sleep(0)
        writer.write(b"zz\r\nnot a size\r\n")
        await writer.drain()

    async with serving(handle) as url:
        record = (await sent(url))[0]
    assert record.failure in ("garbage", "truncated")


@on_our_loop
async def test_an_answer_without_end_is_given_up_at_its_bound() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD)
        while True:
            writer.write(chunk(EVENT * 100))
            await writer.drain()

    async with serving(handle) as url:
        record = (await sent(url, msgspec.structs.replace(QUICK, max_response_bytes=50_000)))[0]
    assert record.failure == "garbage"
    assert "larger than 50000 bytes" in record.detail


@on_our_loop
async def test_a_server_that_never_answers_times_out_by_the_requests_limit() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as url:
        record = (await sent(url, msgspec.structs.replace(QUICK, request_timeout=0.05)))[0]
    assert (record.failure, record.detail) == ("timeout", "not answered in full within 0.05 s (--request-timeout)")
    assert record.head_ns is None


@on_our_loop
async def test_silence_in_the_middle_is_ended_by_the_idle_limit() -> None:
    async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + chunk(EVENT))
        await reader.read()

    async with serving(stalls) as url:
        client = Client(msgspec.structs.replace(QUICK, idle_timeout=30.0), kernel=True)
        sending = asyncio.create_task(client.send(asks(url).make(Shot(0, PROMPT))))
        await until(lambda: any(exchange.size for exchange in client.open))
        client.sweep(time.monotonic_ns())
        await asyncio.sleep(0)
        assert not sending.done()
        client.sweep(time.monotonic_ns() + 31 * 10**9)
        record = finish(await sending, Clock())
        await client.close()
    assert (record.failure, record.detail) == ("timeout", "nothing came for 30 s (--idle-timeout)")
    assert len(record.events) == 1


@on_our_loop
async def test_a_cancelled_request_is_cancelled_and_keeps_what_it_had() -> None:
    async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + chunk(EVENT))
        await reader.read()

    async with serving(stalls) as url:
        client = Client(QUICK, kernel=True)
        sending: asyncio.Task[Exchange] = asyncio.create_task(client.send(asks(url).make(Shot(0, PROMPT))))
        await until(lambda: any(exchange.size for exchange in client.open))
        sending.cancel()
        record = finish(await sending, Clock())
        assert client.open == {}
        await client.close()
    assert (record.failure, len(record.events)) == ("cancelled", 1)


@on_our_loop
async def test_more_than_a_hundred_requests_at_once_all_get_a_connection() -> None:
    """aiohttp's pool holds 100 unless told; a load generator that forgets it measures its own queue."""
    waiting: list[asyncio.StreamWriter] = []
    all_there = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        waiting.append(writer)
        if len(waiting) == 150:
            all_there.set()
        await all_there.wait()
        writer.write(GOOD)
        await writer.drain()

    async with serving(handle) as url:
        client = Client(QUICK, kernel=True)
        make = asks(url)
        ended = await asyncio.gather(*(client.send(make.make(Shot(i, PROMPT))) for i in range(150)))
        await client.close()
    assert {finish(exchange, Clock()).failure for exchange in ended} == {None}

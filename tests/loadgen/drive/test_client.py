"""One request over aiohttp: what goes, what comes, whose clock."""

from __future__ import annotations

import asyncio
import ssl
import sys
from pathlib import Path

import msgspec
import pytest

from loadgen.drive.capture.client import Client
from loadgen.drive.capture.clock import Clock
from loadgen.drive.capture.decode import decode_exchange
from loadgen.drive.requests import ScheduledRequest
from loadgen.drive.self_error import judge_self_error, lag_of
from loadgen.record import Kind
from loadgen.spec import Limits
from loadgen.workload.model import Prompt
from tests.loadgen.kit.running import PROMPT, answered, on_our_loop, sent
from tests.loadgen.kit.servers import (
    GOOD,
    QUICK,
    answering,
    builder_for,
    read_request,
    serving,
    whole,
)

pytestmark = pytest.mark.usefixtures("stamping")

WHOLE = (
    b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":1,"completion_tokens":1}}'
)


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
async def test_a_kept_connection_that_the_server_was_closing_is_no_failure_and_is_counted() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(GOOD)
        await writer.drain()
        await read_request(reader)  # and closes without a word

    async with serving(handle) as url:
        records = await sent(url, times=3)
    assert [record.failure for record in records] == [None] * 3, records
    assert [record.resent for record in records] == [0, 1, 1]
    assert [record.connect_ns is not None for record in records] == [True] * 3


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


@on_our_loop
async def test_the_wait_for_a_server_that_does_not_read_is_the_sending_and_no_lateness() -> None:
    """The generator was called late, and TTFT alone was 51 ms where the client had waited for 2 s."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()
        asyncio.get_running_loop().call_later(0.1, transport.resume_reading)
        await read_request(reader)
        writer.write(GOOD)
        await writer.drain()

    long = Prompt("long", "chat", {"messages": [{"role": "user", "content": "word " * 1_600_000}]})
    clock = Clock()
    async with serving(handle) as url:
        client = Client(QUICK, kernel=True)
        request = builder_for(url).build(ScheduledRequest(0, long))
        clock.zero = clock.now()
        record = decode_exchange(await client.send(request), clock)
        await client.close()
    assert record.failure is None, record.detail
    lag = lag_of([record], [])
    assert lag.sending_ms["p50"] > 90
    assert lag.late_ms["p50"] < 90
    _, warnings = judge_self_error(lag, [record], Limits(), open_loop=True)
    assert "the server did not read its socket" in warnings[0]


@on_our_loop
async def test_tls_is_stamped_by_the_kernel_too() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).parent.parent / "kit/localhost.pem")
    async with serving(answering(GOOD), tls=context) as url:
        records = await sent(url, msgspec.structs.replace(QUICK, insecure=True), times=2)
        refused = (await sent(url))[0]
    assert [record.failure for record in records] == [None, None], records
    if sys.platform.startswith("linux"):
        assert all(record.sent_ns is not None and record.sent_ns > (record.write_ns or 0) for record in records)
        assert all(event.at_ns < event.user_ns for record in records for event in record.events)
    assert refused.failure == "refused"
    assert "--insecure accepts any certificate" in refused.detail


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
        make = builder_for(url)
        ended = await asyncio.gather(*(client.send(make.build(ScheduledRequest(i, PROMPT))) for i in range(150)))
        await client.close()
    assert {decode_exchange(exchange, Clock()).failure for exchange in ended} == {None}

"""Every way in which a request can go wrong: each of them one failure, in words."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from loadgen.drive.capture.client import Client
from loadgen.drive.capture.clock import Clock
from loadgen.drive.capture.decode import decode_exchange
from loadgen.drive.capture.exchange import Exchange
from loadgen.drive.requests import ScheduledRequest
from loadgen.spec import Http
from tests.kit.engine import full_backlog
from tests.kit.ports import free_port
from tests.kit.running import until
from tests.loadgen.kit.running import PROMPT, answered, on_our_loop, sent
from tests.loadgen.kit.servers import (
    DONE,
    EVENT,
    GOOD,
    HEAD,
    LAST,
    QUICK,
    answering,
    builder_for,
    chunk,
    read_request,
    serving,
    whole,
)


async def failing(answer: bytes, http: Http = QUICK, **more: Any) -> tuple[str | None, str]:
    record = await answered(answer, http, **more)
    return record.failure, record.detail


@on_our_loop
async def test_a_server_that_is_not_there_refuses() -> None:
    record = (await sent(f"http://127.0.0.1:{free_port()}"))[0]
    assert record.failure == "refused"
    assert "127.0.0.1" in record.detail
    assert (record.sent_ns, record.status, record.end_ns) == (None, None, None)
    assert record.resent == 0, "it was tried four times, as if a kept connection had been closed"


@on_our_loop
async def test_a_server_that_went_between_two_requests_is_asked_once_more() -> None:
    """The kept connection is closed and a new one refused: one more try, and not as many as for closed ones."""
    clock, client = Clock(), Client(QUICK, kernel=True)
    try:
        async with serving(answering(GOOD, close=True)) as url:
            first = await client.send(builder_for(url).build(ScheduledRequest(0, PROMPT)))
        second = await client.send(builder_for(url).build(ScheduledRequest(1, PROMPT)))
    finally:
        await client.close()
    records = [decode_exchange(exchange, clock) for exchange in (first, second)]
    assert [record.failure for record in records] == [None, "refused"]
    assert [record.resent for record in records] in ([0, 0], [0, 1])  # whether the close was read before


@on_our_loop
async def test_an_unknown_host_refuses_by_name() -> None:
    record = (await sent("http://no-such-host.invalid"))[0]
    assert (record.failure, record.detail) == ("refused", "unknown host no-such-host.invalid")


@on_our_loop
async def test_a_server_that_does_not_accept_times_out() -> None:
    with full_backlog() as url:
        record = (await sent(url, msgspec.structs.replace(QUICK, connect_timeout=0.05)))[0]
    assert (record.failure, record.detail) == ("timeout", "no connection within 0.05 s (--connect-timeout)")
    assert record.resent == 0, "it took four times the limit"


@on_our_loop
async def test_plain_http_where_tls_is_spoken_is_refused_in_words() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with serving(handle) as url:
        record = (await sent(url.replace("http:", "https:")))[0]
    assert record.failure == "refused"
    assert record.detail.endswith("does not speak TLS; give http:// instead of https://")


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
    assert record.failure == "garbage"
    assert "not HTTP: Invalid character in chunk size" in record.detail


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
    assert (record.failure, record.detail) == ("timeout", "no complete response within 0.05 s (--request-timeout)")
    assert record.head_ns is None


@on_our_loop
async def test_silence_in_the_middle_is_ended_by_the_idle_limit() -> None:
    async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + chunk(EVENT))
        await reader.read()

    async with serving(stalls) as url:
        client = Client(msgspec.structs.replace(QUICK, idle_timeout=30.0), kernel=True)
        sending = asyncio.create_task(client.send(builder_for(url).build(ScheduledRequest(0, PROMPT))))
        await until(lambda: any(exchange.size for exchange in client.open))
        client.sweep(time.monotonic_ns())
        await asyncio.sleep(0)
        assert not sending.done()
        client.sweep(time.monotonic_ns() + 31 * 10**9)
        record = decode_exchange(await sending, Clock())
        await client.close()
    assert (record.failure, record.detail) == ("timeout", "no data for 30 s (--idle-timeout)")
    assert len(record.events) == 1


@on_our_loop
async def test_a_cancelled_request_is_cancelled_and_keeps_what_it_had() -> None:
    async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + chunk(EVENT))
        await reader.read()

    async with serving(stalls) as url:
        client = Client(QUICK, kernel=True)
        sending: asyncio.Task[Exchange] = asyncio.create_task(
            client.send(builder_for(url).build(ScheduledRequest(0, PROMPT)))
        )
        await until(lambda: any(exchange.size for exchange in client.open))
        sending.cancel()
        record = decode_exchange(await sending, Clock())
        assert client.open == {}
        await client.close()
    assert (record.failure, len(record.events)) == ("cancelled", 1)

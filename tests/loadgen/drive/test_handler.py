"""aiohttp's private side that the stamps hang on. These fail when aiohttp changes."""

from __future__ import annotations

import asyncio
import inspect

import aiohttp
import msgspec
import pytest
from aiohttp import TCPConnector
from aiohttp.client_proto import ResponseHandler

from loadgen.drive.capture.client import Client
from loadgen.drive.capture.handler import TimestampedHandler
from loadgen.spec import Http
from tests.loadgen.kit.running import on_our_loop, sent
from tests.loadgen.kit.servers import (
    DONE,
    EVENT,
    FINAL,
    GOOD,
    QUICK,
    answering,
    read_request,
    serving,
    whole,
)

STREAM = EVENT + FINAL + DONE
WHOLE = b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}'


@on_our_loop
async def test_the_connector_makes_its_protocols_where_we_think_it_does() -> None:
    client = Client(Http(), kernel=True)
    connector = client._session.connector
    assert isinstance(connector, TCPConnector)
    assert isinstance(connector._factory(), TimestampedHandler)
    await client.close()


def test_the_protocols_methods_that_are_overridden_still_exist() -> None:
    for name in ("set_response_params", "data_received", "connection_made", "connection_lost"):
        assert callable(getattr(ResponseHandler, name)), name
    assert list(inspect.signature(ResponseHandler.pause_reading).parameters) == ["self"]
    assert list(inspect.signature(ResponseHandler.resume_reading).parameters) == ["self", "resume_parser"]
    source = inspect.getsource(aiohttp.ClientSession._request)
    assert source.index("set_response_params(") < source.index("req.send(conn)")


@on_our_loop
async def test_each_read_of_the_body_is_seen_once_with_a_stamp() -> None:
    async with serving(answering(GOOD)) as url:
        for record in await sent(url, times=5):
            assert record.failure is None
            assert record.bytes_in == 57 + 80 + 14 == 151
            assert record.events[-1].at_ns > 0


@pytest.mark.parametrize("who", ["the server", "--no-keepalive"])
@pytest.mark.parametrize(
    ("answer", "body", "stream"),
    [
        (GOOD, STREAM, True),
        (whole("200 OK", STREAM, b"content-type: text/event-stream"), STREAM, True),
        (whole("200 OK", WHOLE), WHOLE, False),
    ],
    ids=["chunked", "content-length", "JSON"],
)
def test_the_last_bytes_on_a_connection_that_closes_are_kept(
    answer: bytes, body: bytes, stream: bool, who: str
) -> None:
    """A complete response was `truncated`, or `garbage`."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    closes = b"\r\nconnection: close" if who == "the server" else b""
    http = msgspec.structs.replace(QUICK, keepalive=who == "the server")

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for piece in (head + closes + b"\r\n\r\n", rest[:40], rest[40:]):
            writer.write(piece)
            for _ in range(5):  # turns of the loop, in which each piece is read by itself
                await asyncio.sleep(0)

    async def test() -> None:
        async with serving(handle) as url:
            for record in await sent(url, http, stream=stream, times=3):
                assert (record.failure, record.bytes_in) == (None, len(body)), record.detail

    on_our_loop(test)()

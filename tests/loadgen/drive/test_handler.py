"""aiohttp's private side that the stamps hang on. These fail when aiohttp changes."""

from __future__ import annotations

import inspect

import aiohttp
from aiohttp import TCPConnector
from aiohttp.client_proto import ResponseHandler

from loadgen.drive.capture.client import Client
from loadgen.drive.capture.handler import TimestampedHandler
from loadgen.spec import Http
from tests.loadgen.kit.running import on_our_loop, sent
from tests.loadgen.kit.servers import GOOD, answering, serving


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

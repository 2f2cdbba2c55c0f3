"""Which connections are kept after an answer, and one whose handler raised."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.server.listener.request import Request
from tests.kit.clock import virtual
from tests.kit.wire_end import client, hello, turns
from tests.proxy.server.listener.test_listener_connection import GET, POST


@virtual
async def test_a_client_that_waited_for_a_100_and_whose_body_was_read_is_kept() -> None:
    async def reads(request: Request) -> bool:
        await request.content.read()
        return await hello(request)

    async with client(reads) as (handler, wire):
        handler.data_received(POST % (5, b"expect: 100-continue\r\n") + b"hello")
        await turns()
        assert (wire.eof, wire.closed) == (False, False)
        handler.data_received(GET)
        await turns()
        assert wire.written.count(b" 200 OK") == 2


@virtual
async def test_a_handler_that_raises_is_logged_and_its_connection_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(request: Request) -> bool:
        raise ZeroDivisionError

    told: list[Any] = []
    async with client(fails) as (handler, wire):
        monkeypatch.setattr(type(handler), "log_exception", lambda self, *given: told.append(given))
        handler.data_received(GET)
        await turns()
        assert told == [("the handler failed",)]
        assert (wire.closed, bytes(wire.written)) == (True, b"")

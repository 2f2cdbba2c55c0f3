"""What a client connection knows between two reads: the end of the latest request's body, and what is paused."""

from __future__ import annotations

import pytest

from tests.kit.clock import virtual
from tests.kit.wire_end import client, turns
from tests.proxy.server.listener.test_listener_connection import GET, POST

CHUNKED = b"POST /one HTTP/1.1\r\nHost: g\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("before", [0, 1, 2, 3])
@virtual
async def test_of_several_requests_in_one_read_the_latest_one_s_body_is_expected(before: int) -> None:
    async with client() as (handler, _):
        handler.data_received(GET * before + POST % (5, b"") + b"he")
        assert (handler._left, handler._chunks) == (3, None)
        assert handler._body is handler._messages[before][1]
        await turns()
    async with client() as (handler, _):
        handler.data_received(POST % (3, b"") + b"abc" + GET * before + CHUNKED)
        assert handler._left == 0
        assert handler._chunks is not None
        assert handler._body is handler._messages[before + 1][1]
        handler.data_received(b"no chunk\r\n\r\n")
        assert handler._body.exception() is not None
        await turns()


@virtual
async def test_a_parser_goes_on_with_what_it_has_unless_it_is_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[bytes] = []
    async with client() as (handler, wire):
        handler.data_received(POST % (5, b""))
        with monkeypatch.context() as patched:
            patched.setattr(handler, "data_received", reads.append)
            for given, count in (((), 1), ((True,), 2), ((False,), 2)):
                handler.pause_reading()
                assert wire.paused
                handler.resume_reading(*given)
                assert (reads, wire.paused) == ([b""] * count, False)
        await turns()


@virtual
async def test_what_is_not_paused_is_not_resumed() -> None:
    async with client() as (handler, wire):
        wire.paused = True
        handler.resume_reading()
        assert wire.paused

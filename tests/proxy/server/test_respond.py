"""The last step's pure parts: a response's head, and taking off the chunks for HTTP/1.0."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
import uvloop
from aiohttp import HttpVersion11
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.server.listener.request import Request
from proxy.server.respond import SocketPipe, dechunk, error_headers, wait_writable, write, write_head
from proxy.wire.sse import LAST_CHUNK, chunk
from tests.kit.clock import virtual


@given(frames=st.lists(st.binary(min_size=1, max_size=40), max_size=6), ended=st.booleans())
def test_taking_off_the_chunks_gives_what_was_put_into_them(frames: list[bytes], ended: bool) -> None:
    assert dechunk(b"".join(map(chunk, frames)) + (LAST_CHUNK if ended else b"")) == b"".join(frames)


GUARDS = b"x-content-type-options: nosniff\r\ncross-origin-resource-policy: same-origin\r\n"


def test_a_head_is_a_status_line_its_headers_in_order_and_a_date() -> None:
    head = write_head(200, [("b", "1"), ("a", "2"), ("b", "3")], keep_alive=True)
    assert head.startswith(b"HTTP/1.1 200 OK\r\nb: 1\r\na: 2\r\nb: 3\r\ndate: ")
    assert head.endswith(b" GMT\r\n" + GUARDS + b"\r\n")


def test_a_date_of_the_engine_is_kept() -> None:
    head = write_head(204, [("date", "x")], keep_alive=True)
    assert head == b"HTTP/1.1 204 No Content\r\ndate: x\r\n" + GUARDS + b"\r\n"


@pytest.mark.parametrize(("keep_alive", "closes"), [(True, False), (False, True)])
def test_a_connection_that_is_not_kept_says_so(keep_alive: bool, closes: bool) -> None:
    assert (b"connection: close\r\n" in write_head(200, [], keep_alive=keep_alive)) is closes


def test_a_status_without_a_name_still_has_a_line() -> None:
    assert write_head(599, [("date", "x")], keep_alive=True).startswith(b"HTTP/1.1 599 Unknown\r\n")


@pytest.mark.parametrize("bad", ["a\r\nevil: 1", "a\nb", "a\rb"])
def test_a_line_break_never_reaches_the_head(bad: str) -> None:
    for header in ((bad, "x"), ("x", bad)):
        with pytest.raises(AssertionError):
            write_head(200, [header], keep_alive=True)


@pytest.mark.parametrize("bad", ["a\r\nevil: 1", "a\nb", "a\rb"])
def test_a_line_break_of_an_engine_never_reaches_the_head(bad: str) -> None:
    for header in ((bad, "x"), ("x", bad)):
        for _ in range(2):
            with pytest.raises(AssertionError):
                write_head(200, [], keep_alive=True, passed=(header,))


def test_an_engine_s_headers_come_first_with_their_date_and_their_status() -> None:
    passed = (("server", "é→"), ("date", "x"))
    for status, line in ((200, b"200 OK"), (404, b"404 Not Found"), (200, b"200 OK")):
        head = write_head(status, [("a", "1")], keep_alive=True, passed=passed)
        assert head == b"HTTP/1.1 " + line + b"\r\nserver: \xe9?\r\ndate: x\r\na: 1\r\n" + GUARDS + b"\r\n"


def test_a_letter_that_no_header_can_hold_is_replaced() -> None:
    assert b"x: ?\xe9\r\n" in write_head(200, [("x", "→é")], keep_alive=True)


@pytest.mark.parametrize(("retry_after", "told"), [(None, []), (3, [("retry-after", "3")])])
def test_an_error_says_when_to_come_again_where_it_knows(
    retry_after: int | None, told: list[tuple[str, str]]
) -> None:
    error = GatewayError(Code.QUEUE_FULL, "full", retry_after=retry_after)
    assert error_headers(error) == [("content-type", "application/json"), *told]


@pytest.mark.parametrize("loop_of", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_client_that_has_left_is_not_written_to_and_nobody_else_hears_of_it(
    loop_of: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """uvloop's `write` raises once the socket is closed: in the middle of serving all readers of a Flight."""

    async def leaves() -> None:
        made: asyncio.Future[asyncio.Transport] = asyncio.get_running_loop().create_future()
        gone = asyncio.Event()

        class Peer(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                made.set_result(cast(asyncio.Transport, transport))

            def connection_lost(self, exc: Exception | None) -> None:
                gone.set()

        server = await asyncio.get_running_loop().create_server(Peer, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        request = SimpleNamespace(transport=await made, protocol=SimpleNamespace(count=lambda stream: None))
        pipe = SocketPipe(cast(Request, request), b"head")
        writer.close()
        await gone.wait()
        await asyncio.sleep(0)
        assert pipe.write(chunk(b"late"))
        assert pipe.sent == 0
        server.close()
        await server.wait_closed()

    with asyncio.Runner(loop_factory=loop_of) as runner:
        runner.run(leaves())


class Slow:
    """A connection whose client takes `every` seconds for each of the `bytes` that wait for it."""

    write_paused = True
    written = 10

    def __init__(self, size: int, every: float) -> None:
        self.size, self.every = size, every
        self.emptied = asyncio.Event()
        self.request = cast(Request, SimpleNamespace(protocol=self, transport=self, writer=self))

    def get_write_buffer_size(self) -> int:
        return self.size

    async def drain(self) -> None:
        await self.emptied.wait()

    async def takes(self) -> None:
        while self.size:
            await asyncio.sleep(self.every)
            self.size -= 1
        self.emptied.set()


@pytest.mark.parametrize(
    ("size", "every", "stall", "after"),
    [(3, 4.0, 5.0, 12.0), (3, 6.0, 5.0, None), (1, 1000.0, 0.0, 1000.0), (10, 0.5, 5.0, 5.0)],
    ids=["slow", "stalled", "no limit", "just in time"],
)
@virtual
async def test_a_client_may_take_its_time_as_long_as_it_takes_something(
    size: int, every: float, stall: float, after: float | None
) -> None:
    slow, loop = Slow(size, every), asyncio.get_running_loop()
    takes = asyncio.create_task(slow.takes())
    if after is None:
        with pytest.raises(TimeoutError):
            await wait_writable(slow.request, stall)
        assert loop.time() == pytest.approx(5.0)
    else:
        await wait_writable(slow.request, stall)
        assert loop.time() == pytest.approx(after)
    takes.cancel()


@pytest.mark.parametrize("status", [200, 204, 304, 303])
def test_an_answer_that_can_have_no_body_has_no_length_either(status: int) -> None:
    written: list[bytes] = []
    protocol = SimpleNamespace(transport=True, send=written.append, write_paused=False)
    request = SimpleNamespace(protocol=protocol, keep_alive=True, method="GET", version=HttpVersion11)
    sent, left = write(cast(Request, request), status, [("etag", "x")], b"body")
    none = status in (204, 304)
    assert (b"content-length: 4\r\n" in written[0], written[0].endswith(b"body")) == (not none, not none)
    assert (sent.status, left, sent.bytes) == (status, None, len(written[0]))


def test_to_a_client_that_has_left_nothing_is_begun() -> None:
    gone = cast(Request, SimpleNamespace(transport=None, keep_alive=True, protocol=None, method="GET"))
    with pytest.raises(ConnectionResetError, match="the client has left"):
        SocketPipe(gone, b"head")
    with pytest.raises(ConnectionResetError, match="the client has left"):
        write(gone, 200, [], b"body")

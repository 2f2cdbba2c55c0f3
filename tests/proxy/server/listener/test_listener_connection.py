"""One client connection by itself: what is handled at once, what waits, when it ends, and what it says then."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from aiohttp import web

from proxy.access.client_ip import UNIX, TrustedProxies
from proxy.errors import Code, GatewayError
from proxy.server.listener import listener as doors
from proxy.server.listener.listener import AT_ONCE, HEARD_SECONDS, SLICE_BYTES, ClientConnection
from proxy.server.listener.request import Request
from proxy.server.listener.timeouts import Times
from tests.kit.clock import virtual
from tests.kit.wire_end import client, connected, door_of, hello, turns

GET = b"GET /one HTTP/1.1\r\nHost: g\r\n\r\n"
POST = b"POST /one HTTP/1.1\r\nHost: g\r\ncontent-length: %d\r\n%b\r\n"


def sized(size: int) -> bytes:
    """A request of so many bytes in all."""
    head = b"POST /one HTTP/1.1\r\nHost: g\r\ncontent-length: %d\r\n\r\n"
    body = size - len(head % size)
    return (head % body) + b"x" * body


def test_a_slice_is_a_part_of_a_turn_and_a_turn_less_than_what_pauses_the_reading() -> None:
    assert 0 < doors.AT_ONCE < doors.SLICE_BYTES < doors.TURN_BYTES < doors.READ_BYTES < 64 * 1024


@virtual
async def test_a_connection_begins_with_nothing_known_of_it() -> None:
    async with client() as (handler, _):
        known = (
            "write_paused",
            "leaving",
            "stalled",
            "evicted",
            "_opened_with_proxy",
            "_sliced",
            "asked",
            "asks",
            "closing",
        )
        assert [name for name in known if getattr(handler, name)] == []
        assert (handler.written, handler.source, handler.opening, handler._late, handler._left) == (
            0,
            "",
            None,
            b"",
            0,
        )


@virtual
async def test_whether_the_client_lags_is_known_and_waited_for() -> None:
    async with client() as (handler, _):
        handler.pause_writing()
        assert (handler.write_paused, handler.writing_paused) == (True, True)
        handler.resume_writing()
        assert (handler.write_paused, handler.writing_paused) == (False, False)


@virtual
async def test_a_small_read_is_handled_at_once_and_a_larger_one_in_a_later_turn() -> None:
    async with client() as (handler, wire):
        handler.data_received(sized(AT_ONCE))
        assert (handler.asked, wire.paused) == (True, False)
    async with client() as (handler, wire):
        handler.data_received(sized(AT_ONCE + 1))
        assert (handler.asked, wire.paused, len(handler._late)) == (False, True, AT_ONCE + 1)
        handler.data_received(GET)  # small, and not before what came before it
        assert len(handler._late) == AT_ONCE + 1 + len(GET)
        await turns()
        assert (handler._request_count, wire.paused, handler._late) == (2, False, b"")
        assert bytes(wire.written).count(b"/one") == 2


@virtual
async def test_what_is_read_late_is_handled_a_slice_at_a_time() -> None:
    async with client() as (handler, wire):
        handler.data_received(sized(2 * SLICE_BYTES + 1))
        assert handler.deliver() == SLICE_BYTES
        assert (len(handler._late), handler._sliced) == (SLICE_BYTES + 1, False)
        assert (handler.deliver(), handler.deliver(), handler.deliver()) == (SLICE_BYTES, 1, 0)
        assert not wire.paused


@pytest.mark.parametrize("flag", ["_reading_paused", "_buffer_paused"])
@virtual
async def test_what_comes_while_reading_is_paused_waits_for_its_end(flag: str) -> None:
    async with client() as (handler, wire):
        listener = cast(doors.Listener, handler._manager)
        setattr(handler, flag, True)
        handler.data_received(GET)
        assert (handler._late, wire.paused, handler.asked) == (GET, True, False)
        handler.data_received(sized(AT_ONCE + 1))
        assert not listener.reading._waiting
        await turns()
        assert not handler.asked
        assert handler.deliver() == SLICE_BYTES if len(handler._late) > SLICE_BYTES else len(handler._late)
        assert (wire.paused, handler.asked) == (True, False)
        setattr(handler, flag, False)
        handler._resume_transport_reading()
        assert wire.paused  # what is late comes first
        await turns()
        assert (wire.paused, handler._request_count) == (False, 2)


@virtual
async def test_a_fault_in_what_one_client_sent_ends_its_connection_alone() -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with client() as (handler, wire):
        handler._late = GET
        handler._parser = cast(Any, "no parser")
        assert handler.deliver() == len(GET)
        assert (wire.aborted, handler._sliced) == (True, False)
        assert isinstance(told[0]["exception"], AttributeError)
        assert "client" in told[0]["message"]
        handler._late = GET
        await turns()
        assert handler.deliver() == 0  # it is gone


@virtual
async def test_a_proxy_protocol_head_is_named_as_one_at_the_begin_of_a_connection_alone() -> None:
    for before, named in ((b"", True), (GET, False)):
        for head in (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n\r\n", b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\r\n\r\n"):
            async with client() as (handler, wire):
                handler.data_received(before)
                await turns()
                handler.data_received(head)
                await turns()
                assert (b"trusted_proxies" in wire.written) is named
                assert handler._opened_with_proxy is named


MOST = 300


def head_of(size: int) -> bytes:
    """A head whose line and fields are so many bytes."""
    start = b"GET /one HTTP/1.1\r\nHost: g\r\nx: "
    return start + b"y" * (size - len(start) - 2) + b"\r\n\r\n"


@pytest.mark.parametrize("step", [1000, 100, 7])
@pytest.mark.parametrize("over", [0, 1])
@virtual
async def test_a_head_may_be_as_large_as_is_allowed_and_no_byte_larger(step: int, over: int) -> None:
    async with client(max_head=MOST) as (handler, wire):
        for _ in range(2):
            head = head_of(MOST - 2 + over * 3) if step < 1000 else head_of(MOST + over)
            for at in range(0, len(head), step):
                handler.data_received(head[at : at + step])
            await turns()
            if over:
                break
            assert handler._head == 0
        assert (b" 431 " in wire.written) is bool(over)
        assert wire.written.count(b" 200 OK") == (0 if over else 2)


@virtual
async def test_a_head_without_an_end_is_refused_at_the_first_byte_too_many() -> None:
    async with client(max_head=MOST) as (handler, wire):
        await turns()
        handler.data_received(head_of(MOST)[:200])
        assert handler._head == 200
        handler.data_received(head_of(MOST)[200:-2])
        assert (handler._head, handler.asks) == (MOST, False)
        handler.data_received(b"z")
        await turns()
        assert b" 431 " in wire.written


@virtual
async def test_the_bound_of_a_head_is_for_the_request_that_has_it() -> None:
    async with client(max_head=MOST) as (handler, wire):
        handler.data_received(head_of(200) * 3)
        await turns(20)
        assert wire.written.count(b" 200 OK") == 3
        handler.data_received(POST % (2000, b"") + b"x" * 2000)  # together over it
        await turns(20)
        assert wire.written.count(b" 200 OK") == 4
        head = POST % (2000, b"")
        for piece in (head[:-5], head[-5:] + b"x" * 1000, *[b"x" * 100] * 10, head_of(MOST - 2)):
            handler.data_received(piece)
            await turns(5)
        assert wire.written.count(b" 200 OK") == 6


@virtual
async def test_without_other_bounds_a_head_has_128_fields_and_64_kib() -> None:
    for count, status in ((127, b" 200 "), (129, b" 431 ")):
        async with client() as (handler, wire):
            fields = b"".join(b"x-%d: y\r\n" % n for n in range(count - 1))
            handler.data_received(b"GET /one HTTP/1.1\r\nHost: g\r\n" + fields + b"\r\n")
            await turns()
            assert status in wire.written
    async with client() as (handler, _):
        assert handler.max_head == 65_536


@virtual
async def test_a_body_that_cannot_be_read_is_told_to_who_waits_for_it() -> None:
    told: list[str] = []

    async def reads(request: Request) -> bool:
        try:
            await request.content.read()
        except web.RequestPayloadError:
            told.append("unreadable")
        return False

    async with client(reads) as (handler, _):
        handler.data_received(b"POST /one HTTP/1.1\r\nHost: g\r\ntransfer-encoding: chunked\r\n\r\n")
        await turns()
        handler.data_received(b"no chunk\r\n\r\n")
        await turns()
        assert told == ["unreadable"]


OFFER = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
BODIES = {
    "none": b"\r\n",
    "length": b"Content-Length: 6\r\n\r\na\r\n\r\nb",
    "chunks": b"Transfer-Encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n1;x\r\ny\r\n0\r\nx: y\r\n\r\n",
}


@pytest.mark.parametrize("body", BODIES)
@virtual
async def test_where_each_request_ends_is_known_however_its_bytes_come(body: str) -> None:
    asks = [b"POST /%d HTTP/1.1\r\nHost: g\r\n%b%b" % (n, OFFER if n % 3 else b"", BODIES[body]) for n in range(5)]
    head = asks[0].index(b"\r\n\r\n")
    sent = b"".join(asks)
    for cuts in ([], [1], [7], [head + 1], [head + 2], [head + 3], [head + 4], [len(asks[0]) - 1], [len(asks[0])]):
        async with client() as (handler, wire):
            step = cuts[0] if cuts and cuts[0] < 10 else len(sent)
            pieces = [sent[: cuts[0]], sent[cuts[0] :]] if cuts and step == len(sent) else []
            for piece in pieces or [sent[at : at + step] for at in range(0, len(sent), step)]:
                handler.data_received(piece)
                await turns(1)
            await turns(20)
            answers = [line for line in bytes(wire.written).split(b"\r\n\r\n") if line[:1] == b"/"]
            assert [answer[:2] for answer in answers] == [b"/%d" % n for n in range(5)], cuts
            assert (handler._left, handler._chunks) == (0, None)


@virtual
async def test_a_body_that_is_whole_is_read_though_no_request_follows_it() -> None:
    bodies: list[bytes] = []

    async def reads(request: Request) -> bool:
        bodies.append(await request.content.read())
        return await hello(request)

    async with client(reads) as (handler, wire):
        handler.data_received(POST % (5, b"") + b"hello" + b"no request\r\n\r\n")
        await turns()
        assert bodies == [b"hello"]
        assert b" 400 " in wire.written


# -- the PROXY protocol


@virtual
async def test_only_who_is_trusted_opens_with_the_proxy_protocol() -> None:
    for peer, trusted, opening in (
        (("10.1.2.3", 5), ("10.0.0.0/8",), b""),
        (("10.1.2.3", 5), ("::1",), None),
        ("", ("unix",), b""),
        ((), ("unix",), b""),
    ):
        listener = door_of(proxies=TrustedProxies(trusted))
        handler, _ = connected(listener, peer)
        assert handler.opening == opening
        await listener.shutdown(0)


@virtual
async def test_an_opening_in_pieces_is_put_together_and_a_bad_one_is_told_once() -> None:
    line = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
    async with client(proxies=TrustedProxies(("10.0.0.0/8",))) as (handler, wire):
        for at in range(0, len(line), 7):
            assert handler.source == ""
            handler.data_received(line[at : at + 7])
        assert (handler.source, handler.opening, handler.asked) == ("192.0.2.1", None, False)
        handler.data_received(GET)
        await turns()
        assert b"/one" in wire.written
    told: list[tuple[str, str]] = []
    async with client(
        proxies=TrustedProxies(("10.0.0.0/8",)), on_unreadable=lambda peer, why: told.append((peer, why))
    ) as (handler, wire):
        handler.data_received(b"PROX")
        handler.data_received(GET)
        assert (handler.opening, wire.closed, wire.written.count(b" 400 ")) == (b"", True, 1)
        handler.data_received(GET)
        await turns()
        assert not handler.asked
        assert handler._dropped == len(GET)
    (only,) = told
    assert only[0] == "10.1.2.3"
    assert only[1].startswith("From a trusted proxy with proxy_protocol on: ")


# -- one request after the other


@virtual
async def test_while_a_request_is_answered_it_is_known_and_after_it_forgotten() -> None:
    seen: list[tuple[object, ...]] = []

    async def looks(request: Request) -> bool:
        mine = cast(ClientConnection, request.protocol)
        seen.append((mine._waiter, mine.asks, listener.busy, cast(object, mine._current_request) is request))
        return await hello(request)

    listener = door_of(looks)
    handler, _ = connected(listener)
    await turns()
    assert handler._waiter is not None
    handler.data_received(GET)
    assert handler.asks
    await turns()
    assert seen == [(None, True, 1, True)]
    assert (handler.asks, listener.busy, handler._current_request) == (False, 0, None)
    await listener.shutdown(0)


@virtual
async def test_a_body_that_is_not_read_is_taken_unless_the_client_may_wait_for_a_100() -> None:
    for more, kept in ((b"", True), (b"expect: 100-continue\r\n", False)):
        async with client() as (handler, wire):
            handler.data_received(POST % (5, more))
            await turns()
            assert b"/one" in wire.written
            assert wire.eof is not kept
            handler.data_received(b"hello" + GET)
            await turns()
            assert wire.written.count(b" 200 OK") == (2 if kept else 1)


@virtual
async def test_who_is_answered_for_the_last_time_is_closed_after_it() -> None:
    for name in ("leaving", "_close"):
        async with client() as (handler, wire):
            handler.data_received(GET)
            setattr(handler, name, True)
            await turns()
            assert (b"/one" in wire.written, wire.closed) == (True, True)


@virtual
async def test_a_connect_that_is_answered_is_the_last() -> None:
    async with client() as (handler, wire):
        handler.data_received(b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n")
        await turns()
        assert (wire.closed, wire.written.count(b" 200 OK")) == (True, 1)


@virtual
async def test_an_idle_connection_is_kept_for_its_time_after_its_last_request() -> None:
    loop = asyncio.get_running_loop()
    async with client() as (handler, wire):
        for at in (0.0, 50.0, 100.0):
            await asyncio.sleep(at - loop.time())
            handler.data_received(GET)
            await turns()
            assert handler.idle_since == pytest.approx(at)
        await asyncio.sleep(100.0 + Times().idle - 1 - loop.time())
        assert not wire.closed
        await asyncio.sleep(1.1)
        assert wire.closed


@virtual
async def test_a_handler_that_runs_out_of_time_has_its_connection_cut() -> None:
    async def late(request: Request) -> bool:
        raise TimeoutError

    async with client(late) as (handler, wire):
        handler.data_received(GET)
        await turns()
        assert (wire.aborted, bytes(wire.written)) == (True, b"")
        handler.abort()  # there is nothing left to cut


# -- to be heard


@virtual
async def test_who_is_refused_and_sends_on_is_read_for_a_while_and_no_longer() -> None:
    loop = asyncio.get_running_loop()
    async with client(lingering=7.5) as (handler, wire):
        handler.data_received(b"no request\r\n\r\n")
        await turns()
        assert (wire.eof, wire.closed, handler._close, wire.paused) == (True, False, True, False)
        while not wire.closed:  # it sends for ever
            handler.data_received(GET)
            await asyncio.sleep(0.4)
        assert loop.time() == pytest.approx(8.0, abs=0.5)
        assert handler._dropped >= 18 * len(GET)


@virtual
async def test_who_is_refused_and_sends_no_more_is_closed_soon() -> None:
    loop = asyncio.get_running_loop()
    async with client() as (handler, wire):
        wire.takes_eof = False  # TLS
        handler._late = b"x"
        handler.data_received(b"")
        handler._late = b""
        handler.data_received(b"no request\r\n\r\n")
        await asyncio.sleep(HEARD_SECONDS * 1.5)
        handler.data_received(b"y")  # in the second look's time
        await asyncio.sleep(HEARD_SECONDS)
        assert wire.closed
        assert not wire.eof
        assert loop.time() < 4 * HEARD_SECONDS


@virtual
async def test_who_has_left_is_not_waited_for_to_be_heard() -> None:
    loop = asyncio.get_running_loop()
    async with client() as (handler, wire):
        wire.closed = True
        await handler._linger()
        assert (loop.time(), wire.eof) == (0.0, False)
        handler.transport = None
        await handler._linger()
        assert loop.time() == 0.0
        handler._tell(GatewayError(Code.QUEUE_FULL, "full"))
        assert handler.written == 0


@virtual
async def test_what_a_client_is_told_is_counted_and_logged_by_its_address() -> None:
    for peer, name in ((("10.1.2.3", 5), "10.1.2.3"), ("", UNIX), (None, UNIX)):
        told: list[tuple[str, str]] = []
        listener = door_of(on_unreadable=lambda peer, why, told=told: told.append((peer, why)))
        handler, wire = connected(listener, peer)
        handler._tell(GatewayError(Code.QUEUE_FULL, "full"))
        assert told == [(name, "full")]
        assert handler.written == len(wire.written) > 0
        await listener.shutdown(0)

"""Heads that a client repeats: the parser reads them twice, and what handlers see of the others is the same."""

from __future__ import annotations

import re
from typing import Any

import pytest
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion11
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from proxy.server.listener.known_heads import KNOWN_BYTES, MAX_KNOWN, KnownHeads
from proxy.server.listener.listener import ClientConnection
from proxy.server.listener.request import Request
from proxy.wire.http import Target
from tests.kit.clock import virtual
from tests.kit.wire_end import client, connected, door_of, hello, turns

HEAD = b"POST //v1/a%%20b?q=[1] HTTP/1.1\r\nHost: G:80\r\nX-A: b\r\nContent-Length: %d\r\nX-C:  d \r\n\r\n"


class Seen:
    """A handler that keeps what it gets, and counts the messages that aiohttp's parser has read."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.facts: list[tuple[Any, ...]] = []

    async def __call__(self, request: Request) -> bool:
        self.requests.append(request)
        headers = [*request.headers.items()]
        self.facts.append(
            (
                *(request.method, request.path, request.raw_path, request.host, request.version),
                *(request.keep_alive, request.raw_headers, headers, request.headers.getall("content-length", [])),
                *(request.body, request.content_length, request.body_exists, await request.content.read()),
            )
        )
        return await hello(request)


def parsed(handler: ClientConnection, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The pieces that go to the parser from now on."""
    pieces: list[bytes] = []
    feed = handler._feed

    def fed(data: bytes) -> None:
        pieces.append(data)
        feed(data)

    monkeypatch.setattr(type(handler), "_feed", lambda self, data: fed(data))
    return pieces


def sent(head: bytes, body: bytes) -> bytes:
    return head % len(body) + body


@pytest.mark.parametrize("name", [b"Content-Length", b"content-length"])
@virtual
async def test_a_head_is_read_by_the_parser_twice_and_by_its_bytes_afterwards(
    monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    seen = Seen()
    head = HEAD.replace(b"Content-Length", name)
    bodies = [b"ab", b"cd", b"ef", b"g" * 1234, b"h"]
    async with client(seen) as (handler, wire):
        pieces = parsed(handler, monkeypatch)
        for body in bodies:
            handler.data_received(sent(head, body))
            await turns()
        assert pieces == [sent(head, body) for body in bodies[:2]]
        assert wire.written.count(b" 200 OK") == len(bodies)
    monkeypatch.undo()
    anew = Seen()
    for body in bodies:
        async with client(anew) as (handler, _):  # of a listener that knows nothing
            handler.data_received(sent(head, body))
            await turns()
    assert seen.facts == anew.facts


@virtual
async def test_another_connection_of_the_listener_knows_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = door_of()
    handlers = [connected(listener)[0] for _ in range(2)]
    for handler in (handlers[0], handlers[0]):
        handler.data_received(sent(HEAD, b"ab"))
        await turns()
    pieces = parsed(handlers[1], monkeypatch)
    handlers[1].data_received(sent(HEAD, b"cde"))
    await turns()
    assert pieces == []
    await listener.shutdown(0.01)
    await turns()


DATE = re.compile(rb"date: [^\r]*\r\n")  # the clock is that of the system
OTHERS = {
    "another path": HEAD.replace(b"/a", b"/b") % 2 + b"ab",
    "another value": HEAD.replace(b"X-A: b", b"X-A: c") % 2 + b"ab",
    "the length elsewhere": b"POST //v1/a%20b?q=[1] HTTP/1.1\r\nContent-Length: 2\r\nHost: G:80\r\nX-A: b\r\n"
    b"X-C:  d \r\n\r\nab",
    "a body that is not complete": HEAD % 3 + b"ab",
    "two requests": sent(HEAD, b"ab") * 2,
    "no body": HEAD % 0,
    "signed": HEAD.replace(b"%d", b"+2") % () + b"ab",
    "no number": HEAD.replace(b"%d", b"2 ") % () + b"ab",
    "two numbers": HEAD.replace(b"%d", b"2,2") % () + b"ab",
    "two lengths": HEAD.replace(b"X-A", b"Content-Length: 2\r\nX-A") % 2 + b"ab",
    "chunks": HEAD.replace(b"X-A", b"Transfer-Encoding: chunked\r\nX-A") % 2 + b"ab",
    "sixteen digits": HEAD % 10**15 + b"ab",
    "a zero before it": HEAD.replace(b"%d", b"0" + b"%d") % 2 + b"ab",
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
@virtual
async def test_what_differs_goes_to_the_parser(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    answers = []
    for times in (0, 2):
        seen = Seen()
        async with client(seen) as (handler, wire):
            for _ in range(times):
                handler.data_received(sent(HEAD, b"ab"))
                await turns()
            before = len(wire.written)
            pieces = parsed(handler, monkeypatch)
            handler.data_received(data)
            await turns()
            assert b"".join(pieces) == data
            answers.append((DATE.sub(b"", wire.written[before:]), seen.facts[times:]))
            monkeypatch.undo()
    assert answers[0] == answers[1]


NEVER = {
    "the last": HEAD.replace(b"X-A: b", b"Connection: close"),
    "of HTTP/1.0": HEAD.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"X-A: b", b"Connection: keep-alive"),
    "that waits for a 100": HEAD.replace(b"X-A: b", b"Expect: 100-continue"),
    "with an upgrade": HEAD.replace(b"X-A: b", b"Connection: upgrade\r\nUpgrade: h2c"),
    "of a GET": HEAD.replace(b"POST", b"GET"),
    "with a tab before the length": HEAD.replace(b"X-A: b", b"Content-Length:\t2").replace(
        b"Content-Length: %d", b"X-B: c%d"
    ),
    "that is long": HEAD.replace(b"X-A: b", b"X-A: " + b"b" * KNOWN_BYTES),
}


@pytest.mark.parametrize("head", NEVER.values(), ids=NEVER)
@virtual
async def test_heads_that_are_not_kept(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    async with client() as (handler, wire):
        pieces = parsed(handler, monkeypatch)
        for _ in range(4):
            handler.data_received(sent(head, b"ab"))
            await turns()
            if wire.closed:
                break
        assert b"".join(pieces) == sent(head, b"ab") * (1 if wire.closed else 4)


@virtual
async def test_a_head_with_an_id_of_its_own_displaces_none() -> None:
    listener = door_of()
    handler, _ = connected(listener)
    for n in range(9):
        handler.data_received(sent(HEAD.replace(b"X-A: b", b"X-Request-Id: %d" % n), b"ab"))
        await turns()
    assert len(listener._heads) == 0
    await listener.shutdown(0.01)
    await turns()


@virtual
async def test_the_number_of_heads_is_bounded_and_the_oldest_goes() -> None:
    listener = door_of()
    handler, _ = connected(listener)
    for n in range(MAX_KNOWN + 1):
        for _ in range(2):
            handler.data_received(sent(HEAD.replace(b"X-A: b", b"X-A: %d" % n), b"ab"))
            await turns(3)
    heads = listener._heads
    assert len(heads) == MAX_KNOWN
    known = [heads.read(sent(HEAD.replace(b"X-A: b", b"X-A: %d" % n), b"ab"), handler, None) for n in (0, 1)]
    assert [type(each) for each in known] == [bytes, Request]
    await listener.shutdown(0.01)
    await turns()


@virtual
async def test_a_head_that_may_be_over_the_limit_is_left_to_the_parser() -> None:
    least = len(HEAD % 1) - 4 + 32
    assert KnownHeads(least - 1).read(sent(HEAD, b"a"), None, None) == b""
    assert KnownHeads(least).read(sent(HEAD, b"a"), None, None) != b""


@virtual
async def test_a_known_request_waits_for_the_answer_before_it_and_is_the_last_of_a_gateway_that_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = Seen()
    async with client(seen) as (handler, wire):
        for _ in range(2):
            handler.data_received(sent(HEAD, b"ab"))
            await turns()
        handler.data_received(sent(HEAD, b"one"))
        handler.data_received(sent(HEAD, b"two"))
        handler.data_received(sent(HEAD, b"three")[:-2])
        handler.data_received(b"ee")
        await turns(9)
        assert [request.body for request in seen.requests[2:4]] == [b"one", b"two"]
        assert seen.facts[4][-1] == b"three"
        monkeypatch.setattr(handler._manager, "leaving", True)
        handler.data_received(sent(HEAD, b"four"))
        await turns(9)
        assert seen.requests[5].keep_alive is False
        assert wire.closed


def test_a_head_whose_lines_were_read_in_another_way_is_not_kept() -> None:
    """As where a parser ends lines at a line feed alone: the length that is found is one of the body, then."""
    url = URL("/x")
    one, two = (b"Host", b"h"), (b"content-length", b"60")
    headers = CIMultiDictProxy(CIMultiDict([("Host", "h"), ("content-length", "60")]))
    message = RawRequestMessage(
        "POST", "/x", HttpVersion11, headers, (one, two), False, None, False, False, url
    )  # fmt: skip
    data = b"POST /x HTTP/1.1\nHost: h\ncontent-length: 60\n\nx\r\nContent-Length: 2\r\n\r\nab"
    heads = KnownHeads(65536)
    key = heads.read(data, None, None)
    assert isinstance(key, bytes)
    assert key
    heads.keep(key, message, Target("/x", "/x"), "h")
    assert len(heads) == 0
    plain = heads.read(b"POST /x HTTP/1.1\r\nHost: h\r\ncontent-length: 2\r\n\r\nab", None, None)
    assert isinstance(plain, bytes)
    heads.keep(plain, message, Target("/x", "/x"), "h")
    assert len(heads) == 1

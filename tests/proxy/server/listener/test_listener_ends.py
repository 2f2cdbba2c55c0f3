"""When a client connection ends: its times, who makes way, what the door waits for, and that nothing is left."""

from __future__ import annotations

import asyncio
import gzip
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.server.listener.listener import AT_ONCE, ClientConnection
from proxy.server.listener.request import Request
from proxy.server.listener.timeouts import Times
from tests.kit.clock import virtual
from tests.kit.wire_end import client, connected, door_of, hello, turns
from tests.proxy.server.listener.test_listener_connection import GET, sized

# -- its time


@virtual
async def test_a_head_that_does_not_come_is_told_where_a_part_of_it_came() -> None:
    for part in (b"", b"GET /o"):
        async with client(times=Times(head=4.0)) as (handler, wire):
            handler.data_received(part)
            await asyncio.sleep(3.9)
            assert not wire.is_closing()
            await asyncio.sleep(1.1)
            assert wire.closed
            assert (b"within 4 s" in wire.written) is bool(part)
            assert not handler.stalled


@virtual
async def test_a_head_that_began_while_another_was_answered_has_its_time_from_then_on() -> None:
    go = asyncio.Event()

    async def slow(request: Request) -> bool:
        await go.wait()
        return await hello(request)

    async with client(slow, times=Times(head=4.0)) as (handler, wire):
        handler.data_received(GET)
        await turns()
        handler.data_received(b"GET /tw")
        await asyncio.sleep(20.0)
        assert not wire.is_closing()
        go.set()
        await asyncio.sleep(3.0)
        assert not wire.is_closing()
        await asyncio.sleep(3.0)
        assert wire.closed


@virtual
async def test_a_client_that_takes_nothing_is_cut_and_one_that_takes_something_is_not() -> None:
    for takes, cut in ((0, True), (5, False)):
        async with client(times=Times(head=100.0, stall=4.0)) as (handler, wire):
            handler.data_received(GET)
            await turns()
            handler.count(SimpleNamespace(sent=10_000))
            wire.unread = 10_000
            for _ in range(12):
                await asyncio.sleep(0.5)
                wire.unread -= takes
            assert (handler.stalled, wire.aborted) == (cut, cut)


@virtual
async def test_the_bytes_of_streams_and_of_other_answers_add_up_and_a_closed_connection_keeps_no_stream() -> None:
    async with client() as (handler, wire):
        first, second = SimpleNamespace(sent=0), SimpleNamespace(sent=0)
        handler.count(first)
        first.sent += 5
        handler.send(b"abc")
        handler.count(second)
        second.sent += 7
        assert (handler.written, bytes(wire.written)) == (15, b"abc")
        handler.forget()
        second.sent += 1
        assert handler.written == 15


@virtual
async def test_a_connection_that_closes_is_cut_in_its_time_though_its_client_takes_bytes() -> None:
    async with client(times=Times(head=100.0, closing=4.0)) as (handler, wire):
        handler.count(SimpleNamespace(sent=10_000))
        wire.unread = 10_000
        wire.close()
        for _ in range(12):
            await asyncio.sleep(0.5)
            wire.unread -= 5
        assert wire.aborted
        handler.look(wire, 1e9, Times())  # it is gone: nothing to look at


# -- making way


@virtual
async def test_who_makes_way_is_closed_with_what_it_has_not_taken() -> None:
    for unread, closed, aborted in ((0, False, False), (5, False, True), (0, True, True)):
        async with client() as (handler, wire):
            wire.unread, wire.closed = unread, closed
            handler.make_way()
            assert (handler.evicted, handler.closing, wire.aborted) == (True, True, aborted)
            assert wire.closed


@virtual
async def test_one_connection_too_many_is_told_the_limit_and_when_to_come_again() -> None:
    refused: list[int] = []
    listener = door_of(max_connections=0, on_refused=lambda: refused.append(1))
    _, wire = connected(listener)
    assert b"has 0 connections already" in wire.written
    assert b"retry-after: 1\r\n" in wire.written
    assert (wire.closed, refused) == (True, [1])
    gone = cast(ClientConnection, listener())
    gone.refuse_full()  # without a transport: it has left
    assert refused == [1]
    await turns()
    await listener.shutdown(0)


# -- the door


@virtual
async def test_the_end_waits_for_requests_under_way_and_no_longer_than_it_may() -> None:
    loop = asyncio.get_running_loop()

    async def slow(request: Request) -> bool:
        await asyncio.sleep(10.0)
        return await hello(request)

    for seconds, waited in ((0.0, 0.0), (4.0, 4.0), (60.0, 10.0)):
        began = loop.time()
        listener = door_of(slow)
        (asked, wire), (idle, other) = connected(listener), connected(listener)
        asked.data_received(GET)
        await turns()
        await listener.finish(seconds)
        assert loop.time() - began == pytest.approx(waited)
        assert (asked.leaving, idle.leaving, other.closed) == (True, False, False)
        await turns()
        assert wire.closed is (seconds == 60.0)
        await listener.shutdown(0)
        await listener.finish(4.0)  # nobody is left


@virtual
async def test_one_timer_looks_at_all_connections_as_long_as_there_are_any() -> None:
    listener = door_of(times=Times(head=4.0))
    assert vars(listener)["_sweeper"] is None
    connected(listener)
    first = listener._sweeper
    connected(listener)
    assert listener._sweeper is first is not None
    await asyncio.sleep(30.0)
    assert (listener.connections, listener._sweeper) == ([], None)
    connected(listener)
    assert listener._sweeper is not None
    await listener.shutdown(0)
    assert vars(listener)["_sweeper"] is None


@virtual
async def test_a_connection_that_cannot_be_looked_after_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    listener = door_of()
    error = RuntimeError("the limit")

    def fails(newest: object) -> bool:
        raise error

    monkeypatch.setattr(listener.limit, "admit", fails)
    _, wire = connected(listener)
    assert wire.aborted
    assert told == [error]
    await turns()
    await listener.shutdown(0)


@virtual
async def test_what_is_gone_is_in_no_list_and_waits_for_no_turn() -> None:
    listener = door_of()
    handler, _ = connected(listener)
    handler.data_received(sized(AT_ONCE + 1))
    assert list(listener.reading._waiting) == [handler]
    handler.connection_lost(None)
    assert (list(listener.reading._waiting), handler.closing) == ([], True)
    assert handler.times is ClientConnection.times
    await turns()
    assert listener.connections == []
    await listener.shutdown(0)


@virtual
async def test_the_limit_s_timer_ends_with_the_door() -> None:
    listener = door_of(max_connections=1)
    for _ in range(3):
        connected(listener)
    assert listener.limit._timer is not None
    await listener.shutdown(0)
    assert vars(listener.limit)["_timer"] is None
    await turns()


@virtual
async def test_a_body_is_taken_as_it_is_sent() -> None:
    body = gzip.compress(b"hello")
    bodies: list[bytes] = []

    async def reads(request: Request) -> bool:
        bodies.append(await request.content.read())
        return await hello(request)

    async with client(reads) as (handler, _):
        head = b"POST /one HTTP/1.1\r\nHost: g\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n"
        handler.data_received(head % len(body) + body)
        await turns()
        assert bodies == [body]

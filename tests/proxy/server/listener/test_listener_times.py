"""Clients that are slow or silent, over loopback: closed in their time, with their bytes, whatever they do."""

from __future__ import annotations

import asyncio
import hashlib
import math
import socket
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from proxy.access.client_ip import TrustedProxies
from proxy.flights.flight import SLICE_BYTES
from proxy.server import respond
from proxy.server.listener.listener import SLICE_BYTES as READ_SLICE
from proxy.server.listener.listener import TURN_BYTES, ClientConnection, Listener
from proxy.server.listener.request import Request
from proxy.server.listener.timeouts import Times
from tests.kit.client import Connection, get, request_bytes
from tests.kit.patience import patience
from tests.kit.running import until
from tests.proxy.server.listener.test_listener import error_of, faults, hello, serving

SOON = Times(head=0.4, stall=0.1, closing=0.1)
BIG = b"x" * (8 * 1024 * 1024)


async def small(url: str, data: bytes) -> socket.socket:
    """A connection that has sent this and will read nothing."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    host, _, port = url.removeprefix("http://").rpartition(":")
    await loop.sock_connect(sock, (host, int(port)))
    await loop.sock_sendall(sock, data)
    return sock


@pytest.mark.parametrize("part", [b"", b"G", b"GET /one HT", b"GET /one HTTP/1.1\r\nHost: localhost\r\nx: y"])
@pytest.mark.parametrize("kept", [False, True])
async def test_a_head_that_never_ends_is_closed_at_its_time(part: bytes, kept: bool) -> None:
    told: list[str] = []
    async with (
        serving(times=SOON, on_unreadable=lambda peer, why: told.append(why)) as (url, listener),
        await Connection.open(url) as client,
    ):
        if kept:
            await client.send(request_bytes("GET", "/one"))
            assert (await client.read()).body == b"/one"
        await client.send(part)
        if kept and not part:
            return  # an idle connection is kept
        if part:
            assert error_of(await client.read()) == (408, "head_timeout")
        assert await client.at_eof()
        await until(lambda: not listener.connections)
        assert len(told) == bool(part)


async def test_a_proxy_opening_that_never_comes_is_closed_as_a_head_is() -> None:
    async with serving(times=SOON, proxies=TrustedProxies(("127.0.0.1",))) as (url, listener):
        for part in (b"", b"PROXY TCP4 1"):
            async with await Connection.open(url) as client:
                await client.send(part)
                if part:
                    assert error_of(await client.read()) == (408, "head_timeout")
                assert await client.at_eof()
        await until(lambda: not listener.connections)


async def whole(request: Request) -> bool:
    """Answers with a large body, all of it in the buffer at once, as the worst handler would."""
    transport = request.transport
    assert transport is not None
    transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BIG) + BIG)
    return request.path != "/close"


async def waits(request: Request) -> bool:
    await whole(request)
    await asyncio.get_running_loop().create_future()
    return True


async def stalls(request: Request) -> bool:
    await whole(request)
    raise TimeoutError


@pytest.mark.parametrize(
    ("handler", "sent"),
    [
        (whole, request_bytes("GET", "/")),  # between two requests
        (whole, request_bytes("GET", "/close")),  # while it closes
        (whole, b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 10\r\n\r\n"),  # while its body is waited for
        (whole, request_bytes("GET", "/") + b"no request\r\n\r\n"),  # while it is told that
        (waits, request_bytes("GET", "/")),  # in mid-answer
        (stalls, request_bytes("GET", "/")),
    ],
    ids=["idle", "closing", "rest", "refused", "answering", "timeout"],
)
async def test_a_client_that_takes_nothing_is_closed_with_its_bytes_whatever_it_is_doing(
    handler: Callable[[Request], Awaitable[bool]], sent: bytes
) -> None:
    times = Times(head=0.1, stall=0.1)
    async with serving(handler, times=times) as (url, listener):
        sock = await small(url, sent)
        await until(lambda: bool(listener.connections))
        async with patience(10):
            await until(lambda: not listener.connections)
        sock.close()


async def test_a_client_that_takes_slowly_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test looks in the sweep's place, by a clock of its own: this process may pause longer than the limit."""
    monkeypatch.setattr(Listener, "_sweep", lambda listener: None)
    async with serving(whole) as (url, listener):
        loop = asyncio.get_running_loop()
        sock = await small(url, request_bytes("GET", "/close"))
        await until(lambda: any(each.get_write_buffer_size() for each in connections(listener).values()))
        ((connection, transport),) = connections(listener).items()
        # Else the kernel's buffer may grow until it takes all of it at once.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        now, got, taken = 0.0, 0, -math.inf
        connection.watch(now)
        for _ in range(5):  # 3 s, a part taken in each 0.6 s of them
            while connection.written - transport.get_write_buffer_size() <= taken:
                got += len(await loop.sock_recv(sock, 4096))
            taken = connection.written - transport.get_write_buffer_size()
            now += 0.6
            assert transport.get_write_buffer_size()
            connection.look(transport, now, Times(head=5, stall=1.0))
            assert not connection.stalled
        while data := await loop.sock_recv(sock, 1 << 20):
            got += len(data)
        assert got > len(BIG)
        sock.close()


def connections(listener: Listener) -> dict[ClientConnection, asyncio.Transport]:
    return cast(dict[ClientConnection, asyncio.Transport], listener._connections)


async def test_silent_connections_make_room_for_one_that_asks() -> None:
    refused: list[int] = []
    async with serving(max_connections=4, on_refused=lambda: refused.append(1)) as (url, listener):
        silent = [await Connection.open(url) for _ in range(4)]
        await until(lambda: len(listener.connections) == 4)
        await until(lambda: all(listener._loop.time() - one.idle_since > 0.005 for one in handlers(listener)))
        await silent[3].send(request_bytes("GET", "/kept"))
        await silent[3].read()
        for _ in range(6):
            assert (await get(url, "/one")).body == b"/one"
        assert await silent[0].at_eof()
        await silent[3].send(request_bytes("GET", "/kept"))
        assert (await silent[3].read()).body == b"/kept"  # the one that was silent for longest went first
        for one in silent:
            await one.close()
    assert refused == []


def handlers(listener: Listener) -> list[ClientConnection]:
    return [one for one in listener.connections if isinstance(one, ClientConnection)]


async def test_a_request_under_way_is_never_closed_for_another() -> None:
    go = asyncio.Event()

    async def slow(request: Request) -> bool:
        await go.wait()
        return await hello(request)

    async with serving(slow, max_connections=2) as (url, listener):
        first, second = await Connection.open(url), await Connection.open(url)
        for one in (first, second):
            await one.request("GET", "/one")
        await until(lambda: listener.busy == 2)
        async with await Connection.open(url) as third:
            assert error_of(await third.read()) == (503, "queue_full")
        go.set()
        for one in (first, second):
            assert (await one.read()).body == b"/one"
            await one.close()


async def test_the_fault_of_one_connection_s_clock_is_not_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, words: faults.append(words["exception"]))
    async with serving(times=SOON) as (url, listener):
        async with await Connection.open(url) as bad:
            await until(lambda: bool(listener.connections))
            monkeypatch.setattr(handlers(listener)[0], "times", None)
            async with await Connection.open(url) as silent:
                assert await silent.at_eof()
        assert bad is not None
    assert faults
    assert all(isinstance(fault, AttributeError) for fault in faults)


async def digest(request: Request) -> bool:
    """Answers with the body that came."""
    body = hashlib.sha256()
    while piece := await request.content.readany():
        body.update(piece)
    sent, _ = respond.write(request, 200, (), body.hexdigest().encode())
    return sent.keep_alive


@pytest.mark.parametrize("step", [None, 6000, 100_000])
@pytest.mark.parametrize("size", [1, 7, 5000, 200_000])
async def test_bodies_of_many_clients_are_taken_in_bounded_turns_and_arrive_whole(
    size: int, step: int | None
) -> None:
    body = bytes(range(256)) * 400
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in chunks) + b"0\r\n\r\n"
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    wanted = hashlib.sha256(body).hexdigest().encode()
    async with serving(digest) as (url, listener):
        clients = [await Connection.open(url) for _ in range(4)]
        for _ in range(2):  # the connection serves on
            await asyncio.gather(*(client.send(head + chunked, step=step) for client in clients))
            assert [(await client.read()).body for client in clients] == [wanted] * 4
        assert listener.reading.most <= TURN_BYTES + READ_SLICE
        for client in clients:
            await client.close()


@pytest.mark.parametrize("late", [False, True])
async def test_a_client_whose_connection_s_task_raised_is_closed_at_once(
    monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    error = RuntimeError("the task of a connection")

    async def fails(self: ClientConnection) -> None:
        if late:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        raise error

    monkeypatch.setattr(ClientConnection, "start", fails)
    async with serving() as (url, listener), await Connection.open(url) as client:
        await client.request("GET", "/one")
        assert await client.at_eof()
        await until(lambda: not listener.connections)
    assert faults == [error]


async def test_a_client_that_leaves_while_its_bytes_wait_is_gone() -> None:
    async with faults() as found, serving(digest) as (url, listener):
        for _ in range(20):
            async with await Connection.open(url) as client:
                await client.send(b"POST / HTTP/1.1\r\nHost: g\r\ncontent-length: 900000\r\n\r\n" + b"x" * 300_000)
                await client.abort()
        await until(lambda: not listener.connections)
    assert found == []


def test_a_body_in_pieces_is_written_in_slices_without_a_copy() -> None:
    piece = bytes(200_000)
    found = list(respond.slices([b"a", b"b" * 60_000, piece, b"c"]))
    assert b"".join(bytes(one) for one in found) == b"a" + b"b" * 60_000 + piece + b"c"
    assert max(map(len, found)) <= SLICE_BYTES
    assert [one.obj is piece for one in found if isinstance(one, memoryview)] == [True] * 4

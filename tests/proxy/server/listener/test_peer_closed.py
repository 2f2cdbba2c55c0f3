"""What the other end of a socket has closed, while its bytes lie unread."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator

import pytest

from proxy.server.listener.peer_closed import peer_closed
from proxy.server.listener.request import Request
from proxy.server.listener.timeouts import Times
from tests.kit.client import Connection
from tests.kit.engine_turn import PATIENCE
from tests.kit.patience import patience
from tests.proxy.server.listener.test_listener import serving

Pair = tuple[socket.socket, socket.socket]
POST = b"POST /one HTTP/1.1\r\nHost: g\r\ncontent-length: 1000000\r\n\r\n"


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Our end, which has bytes to read, and the client's."""
    if request.param == "unix":
        ours, client = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            ours = server.accept()[0]
    with ours, client:
        client.sendall(b"unread")
        yield ours, client


def test_an_open_peer_has_closed_nothing_however_many_bytes_wait(pair: Pair) -> None:
    assert peer_closed(pair[0]) is None


def test_a_peer_that_sends_no_more_has_closed_a_half(pair: Pair) -> None:
    ours, client = pair
    client.shutdown(socket.SHUT_WR)
    assert peer_closed(ours) == "half"
    assert ours.recv(100) == b"unread"


def test_a_peer_that_has_left_has_closed_and_its_bytes_are_still_there(pair: Pair) -> None:
    ours, client = pair
    client.close()
    assert peer_closed(ours) == ("whole" if ours.family == socket.AF_UNIX else "half")  # TCP does not say more
    assert ours.recv(100) == b"unread"


def test_a_reset_is_the_end_of_both_halves(pair: Pair) -> None:
    ours, client = pair
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert peer_closed(ours) == "whole"


def test_a_socket_that_is_gone_here_says_nothing() -> None:
    closed = socket.socket()
    closed.close()
    assert (peer_closed(closed), peer_closed(None)) == (None, None)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_behind_a_body_that_nobody_reads_ends_its_request(reset: bool) -> None:
    begun, left = asyncio.Event(), asyncio.Event()

    async def busy(request: Request) -> bool:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return True

    async with serving(busy, times=Times(head=0.2)) as (url, _), await Connection.open(url) as client:
        await client.send(POST + b"x" * 100_000)
        await begun.wait()
        if reset:
            await client.abort()
        else:
            client.writer.transport.abort()
        async with patience(PATIENCE):
            await left.wait()

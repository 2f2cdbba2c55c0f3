"""Owns one client connection of the door without a socket: what it is sent, told and has written, in virtual time.
Must not know what a test checks.
Called by tests of the door's parts that time or a socket's buffer would hide."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from proxy.server import respond
from proxy.server.listener.listener import ClientConnection, Listener
from proxy.server.listener.request import Request


class WireEnd(asyncio.Transport):
    """The transport of a connection: keeps what is written, `unread` bytes of which the client has not taken."""

    def __init__(self, protocol: ClientConnection, peer: object = ("10.1.2.3", 5)) -> None:
        super().__init__()
        self.protocol = protocol
        self.peer = peer
        self.written = bytearray()
        self.unread = 0
        self.paused = self.eof = self.aborted = self.closed = False
        self.takes_eof = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.peer if name == "peername" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unread

    def can_write_eof(self) -> bool:
        return self.takes_eof

    def write_eof(self) -> None:
        self.eof = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_reading(self) -> bool:
        return not (self.paused or self.closed)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if not self.unread:
                asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        if not self.aborted:
            self.closed = self.aborted = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


Reply = Callable[[Request], Awaitable[bool]]


async def hello(request: Request) -> bool:
    """Answers with its path, and leaves the body where it is."""
    sent, _ = respond.write(request, 200, (), request.path.encode())
    return sent.keep_alive


def door_of(handler: Reply = hello, **changes: Any) -> Listener:
    return Listener(handler, **({"max_connections": 10, "max_header": 8190} | changes))


def connected(listener: Listener, peer: object = ("10.1.2.3", 5)) -> tuple[ClientConnection, WireEnd]:
    """A connection that has just been accepted."""
    handler = cast(ClientConnection, listener())
    wire = WireEnd(handler, peer)
    handler.connection_made(wire)
    return handler, wire


@asynccontextmanager
async def client(handler: Reply = hello, **changes: Any) -> AsyncIterator[tuple[ClientConnection, WireEnd]]:
    """One connection of a door; at the end the door is closed, and nothing of it is left."""
    listener = door_of(handler, **changes)
    try:
        yield connected(listener)
    finally:
        await listener.shutdown(0.01)
        await turns()
    assert listener.connections == []


async def turns(count: int = 5) -> None:
    """Turns of the loop, in which no time passes."""
    for _ in range(count):
        await asyncio.sleep(0)

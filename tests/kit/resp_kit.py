"""Owns a connection to Redis without a socket: what it writes is kept, what it reads a test hands it.
Must not know what a test checks.
Called by the tests of `proxy/redis/resp.py`, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

from proxy.redis.resp import Bounds, Login, RespConnection

HELLO_REPLY = b"%1\r\n$5\r\nproto\r\n:3\r\n"
BOUNDS = Bounds(connect=5.0, pending=1000, reply=1000)


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.aborted
        self.written.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True


class Opened:
    """A Wire on a Transport, and what its callbacks were told."""

    def __init__(self, login: Login | None = None, bounds: Bounds = BOUNDS, *, greeted: bool = True) -> None:
        self.pushes: list[Any] = []
        self.losses: list[RespConnection] = []
        self.replies: list[Any] = []
        self.transport = Transport()
        self.wire = RespConnection(
            asyncio.get_running_loop(),
            login or Login(),
            bounds,
            on_push=self.pushes.append,
            on_lost=self.losses.append,
        )
        if greeted:
            self.wire.connection_made(self.transport)
            self.wire.data_received(HELLO_REPLY)
            self.transport.written.clear()

    def ask(self, *command: bytes, timeout: float = 1.0) -> None:
        self.wire.send(command or (b"GET", b"k"), timeout, self.replies.append)

    def reply(self, data: bytes) -> None:
        self.wire.data_received(data)

"""Owns a connection to an engine over a transport in memory, whose loop runs callbacks when the test says so.
Must not know what a test checks.
Called by the tests of one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from proxy.errors import GatewayError
from proxy.upstream.http.connection import Connection
from proxy.upstream.http.read_budget import ReadBudget
from proxy.wire import chunk

HI = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n"


class Handle:
    """A callback that is due, until it is cancelled."""

    def __init__(self, delay: float, call: Callable[[], object]) -> None:
        self.delay, self.call, self.cancelled = delay, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """Callbacks and timers that run when the test says so."""

    def __init__(self) -> None:
        self.handles: list[Handle] = []

    def call_soon(self, call: Callable[..., object], *arguments: object) -> Handle:
        return self.call_later(0.0, call, *arguments)

    def call_later(self, delay: float, call: Callable[..., object], *arguments: object) -> Handle:
        self.handles.append(Handle(delay, lambda: call(*arguments)))
        return self.handles[-1]

    def run(self, delay: float = 0.0) -> None:
        """All that is due, once."""
        due = [handle for handle in self.handles if handle.delay <= delay and not handle.cancelled]
        self.handles = [handle for handle in self.handles if handle not in due]
        for handle in due:
            handle.call()


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.closing = ""
        self.paused = False

    def write(self, data: Any) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return bool(self.closing)

    def close(self) -> None:
        self.closing = self.closing or "closed"

    def abort(self) -> None:
        self.closing = "aborted"

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Pool:
    """A pool that notes what it is told."""

    def __init__(self, size: int) -> None:
        self.fake = Loop()
        self.loop = cast(asyncio.AbstractEventLoop, self.fake)
        self.reading = ReadBudget(self.loop, size)
        self.told: list[str] = []
        self.breaks = False

    def release(self, connection: Connection) -> None:
        self.told.append("release")
        if self.breaks:
            raise ZeroDivisionError

    def discard(self, connection: Connection) -> None:
        self.told.append("discard")


class Noting:
    """A receiver that notes what it is given, and raises where it is told to."""

    def __init__(self, breaks: str = "") -> None:
        self.breaks = breaks
        self.got: list[Any] = []
        self.said: list[str] = []  # the words of errors
        self.then: Callable[[], None] = lambda: None

    def _note(self, what: str, told: Any) -> None:
        self.got.append(told)
        self.then()
        if what in self.breaks.split():
            raise ZeroDivisionError

    def head(self, status: int, headers: list[tuple[str, str]], known: object = None) -> None:
        self._note("head", status)

    def body(self, data: bytes, wired: bytes = b"") -> None:
        assert wired in (b"", chunk(data)), "another chunk than that of its data"
        self._note("body", data)

    def end(self) -> None:
        self._note("end", "end")

    def lost(self, error: GatewayError) -> None:
        self.said.append(error.message)
        self._note("lost", error.code)


class Line:
    """A connection, its transport and its pool."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.pool = Pool(size)
        self.transport = Transport()
        self.connection = Connection(self.pool)
        self.connection.connection_made(self.transport)
        self.faults: list[str] = []

    def ask(self, request: bytes = b"GET / HTTP/1.1\r\n\r\n", breaks: str = "") -> Noting:
        taker = Noting(breaks)
        self.connection.send(request, taker)
        return taker

    def read(self, *reads: bytes) -> None:
        for data in reads:
            self.connection.data_received(data)

"""One server-sent event stream of the page: its head, its events joined into one write per event loop
iteration."""

from __future__ import annotations

import asyncio
from typing import Final, cast

from proxy.server.listener.listener import ClientConnection
from proxy.server.listener.request import Request
from proxy.server.respond import Headers, Sent, wait_writable, write_head
from proxy.wire import LAST_CHUNK, chunk

MAX_PENDING: Final = 256 * 1024  # bytes of one event loop iteration after which writers wait

_HEAD: Final = (
    ("content-type", "text/event-stream"),
    ("cache-control", "no-store"),
    ("x-accel-buffering", "no"),
    ("transfer-encoding", "chunked"),
)


class EventStream:
    """Events to one client. All events of one event loop iteration go out in one write."""

    def __init__(self, request: Request, headers: Headers, stall: float) -> None:
        """`stall`: seconds that bytes may stay unread. Raises ConnectionResetError where the client has left."""
        if request.transport is None:
            raise ConnectionResetError("the client has left")
        self._request = request
        self._transport = request.transport
        self._protocol = cast(ClientConnection, request.protocol)
        self._loop = asyncio.get_running_loop()
        self._stall = stall
        self._pending: list[bytes] = []
        self._size = 0
        self._due: asyncio.Handle | None = None
        self._draining = asyncio.Lock()  # aiohttp has one waiter: it is not to be cancelled by one of many
        self.sent = 0  # bytes
        cast(ClientConnection, request.protocol).count(self)
        head = write_head(200, [*_HEAD, *headers], keep_alive=request.keep_alive)
        self._write(head)

    @property
    def write_paused(self) -> bool:
        """Backpressure: call `wait_writable` before the next `put`."""
        return self._protocol.write_paused or self._size > MAX_PENDING

    def put(self, json: bytes) -> None:
        """Queue one event for the end of this event loop iteration."""
        self._pending += (b"data: ", json, b"\n\n")
        self._size += len(json)
        if self._due is None:
            self._due = self._loop.call_soon(self._flush)

    async def wait_writable(self) -> None:
        """Wait until the client has taken what was written. Raises TimeoutError."""
        self._flush()
        async with self._draining:
            await wait_writable(self._request, self._stall)

    def end(self) -> Sent:
        """Write the end of the stream."""
        self._flush()
        self._write(LAST_CHUNK)
        return Sent(200, self._request.keep_alive, self.sent)

    def _flush(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._pending:
            data = chunk(b"".join(self._pending))
            self._pending.clear()
            self._size = 0
            self._write(data)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)
            self.sent += len(data)

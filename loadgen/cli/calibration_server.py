"""The server of known schedule: it writes into each event the CLOCK_MONOTONIC time at which it sent it. A process
of its own, so that its work does not delay the generator. It prints its port and ends when stdin closes."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import Final, cast

import msgspec
import uvloop

HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
EVENT: Final = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}],"sent_ns":%d}\n\n'
FINISH: Final = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE: Final = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d}}\n\n'
DONE: Final = b"data: [DONE]\n\n"
_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Schedule(msgspec.Struct):
    """The schedule that a request's body asks for, in milliseconds."""

    max_tokens: int = 1
    ttft_ms: float = 0.0
    itl_ms: float = 0.0


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class ServerConnection(asyncio.Protocol):
    """One connection, one request at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        size = int(length.group(1)) if length else 0
        if not end or len(body) < size:
            return
        self._buffer = body[size:]
        schedule = msgspec.json.decode(body[:size] or b"{}", type=Schedule)
        self._left = schedule.max_tokens
        self._schedule = schedule
        self._next = self._loop.time() + schedule.ttft_ms / 1e3
        self._started = False
        if schedule.ttft_ms:
            self._timer = self._loop.call_at(self._next, self._send)
        else:
            self._send()

    def _send(self) -> None:
        """Send one event, dated as late as possible; the last one includes the end of the stream."""
        self._left -= 1
        before = b"" if self._started else HEAD
        after = b""
        self._started = True
        if not self._left:
            usage = USAGE % self._schedule.max_tokens
            after = chunk(FINISH) + chunk(usage) + chunk(DONE) + b"0\r\n\r\n"
        self.transport.write(before + chunk(EVENT % time.monotonic_ns()) + after)
        if self._left:
            self._next += self._schedule.itl_ms / 1e3
            self._timer = self._loop.call_at(self._next, self._send)


async def serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(ServerConnection, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(serve())

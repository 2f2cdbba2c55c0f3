"""The chaos client: one request on a kept connection, parsed strictly, ended in the way it is told to. Whatever
the gateway does, a request ends within the bound."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from contextlib import suppress
from typing import Final

from ops.chaos.verdict import Answer
from ops.chaos.wire import Ask

LIMIT: Final = 1 << 20
STALE: Final = 0.1  # seconds in which a kept connection turns out to be closed
MAX_BYTES: Final = 1 << 26  # bytes kept of one answer


class Garbled(Exception):
    """The response is not HTTP/1.1."""


class Client:
    """A client with one connection at a time."""

    def __init__(self, host: str, port: int, *, bound: float) -> None:
        self._host, self._port, self._bound = host, port, bound
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, ask: Ask, *, leave_after: float | None = None, reset: bool = False) -> Answer:
        """The answer, complete or not. `leave_after`: seconds after which the connection is closed (or reset)."""
        lines = [
            f"POST {ask.path} HTTP/1.1",
            f"host: {self._host}:{self._port}",
            "content-type: application/json",
            *([f"x-request-id: {ask.request_id}"] if ask.request_id else []),
        ]
        return await self.send(lines, ask.body(), leave_after=leave_after, reset=reset)

    async def send(
        self, lines: list[str], body: bytes, *, leave_after: float | None = None, reset: bool = False
    ) -> Answer:
        """The same for any request."""
        head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode("latin-1")
        answer = Answer()
        try:
            async with asyncio.timeout(self._bound if leave_after is None else leave_after):
                await self._exchange(head + body, answer)
        except TimeoutError:
            answer.end = "hung" if leave_after is None else "left"
            self.close(reset=reset)
        except Garbled:
            answer.end = "garbled"
            self.close()
        except (OSError, EOFError):
            answer.end = "cut"
            self.close()
        return answer

    async def _exchange(self, request: bytes, answer: Answer) -> None:
        kept = self._streams is not None and not self._streams[0].at_eof()
        if not kept:
            self.close()
            self._streams = await asyncio.open_connection(self._host, self._port, limit=LIMIT)
        assert self._streams is not None
        reader, writer = self._streams
        sent = time.monotonic()
        try:
            writer.write(request)
            await writer.drain()
            await self._head(reader, answer)
        except (OSError, EOFError):
            if not kept or answer.status or time.monotonic() > sent + STALE:
                raise
            self.close()  # closed while idle: every client retries then
            await self._exchange(request, answer)
            return
        await self._body(reader, answer)
        answer.end = "whole"
        if "close" in answer.headers.get("connection", "").lower():
            self.close()

    async def _head(self, reader: asyncio.StreamReader, answer: Answer) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                raise Garbled from None
            first, *rest = head.decode("latin-1").split("\r\n")
            parts = first.split(" ")
            if parts[0] != "HTTP/1.1" or not parts[1].isdigit():
                raise Garbled
            if int(parts[1]) >= 200:
                break
        answer.headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)
        }
        answer.status = int(parts[1])

    async def _body(self, reader: asyncio.StreamReader, answer: Answer) -> None:
        if answer.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := _size(await reader.readline()):
                await self._bytes(reader, answer, size)
                if await reader.readexactly(2) != b"\r\n":
                    raise Garbled
            if await reader.readline() != b"\r\n":
                raise Garbled
        elif "content-length" in answer.headers:
            await self._bytes(reader, answer, int(answer.headers["content-length"]))
        else:
            raise Garbled

    async def _bytes(self, reader: asyncio.StreamReader, answer: Answer, size: int) -> None:
        if size + len(answer.body) > MAX_BYTES:
            raise Garbled
        while size:
            data = await reader.read(size)
            if not data:
                raise EOFError
            answer.body += data
            size -= len(data)

    def close(self, *, reset: bool = False) -> None:
        if self._streams is not None:
            writer = self._streams[1]
            self._streams = None
            with suppress(OSError):
                if reset:
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()


def _size(line: bytes) -> int:
    if not line.endswith(b"\r\n"):
        raise EOFError
    try:
        return int(line[:-2], 16)
    except ValueError:
        raise Garbled from None

"""Owns a server of raw bytes: it sends what a test says, when it says so, and closes how it is told.
Must not know HTTP beyond where a request ends, nor the proxy.
Called by the tests of faults, for our upstream and for the reference alike."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from types import TracebackType
from typing import Self

from tests.kit.engine_turn import PATIENCE
from tests.kit.patience import patience


class Peer:
    """One accepted connection, from the engine's side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """One whole request: its head, and its body by its length."""
        async with patience(PATIENCE):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            return head + await self._reader.readexactly(length)

    async def head(self) -> bytes:
        """A request's head alone; its body is left where it is."""
        async with patience(PATIENCE):
            return await self._reader.readuntil(b"\r\n\r\n")

    async def send(self, data: bytes, step: int = 0) -> None:
        """All at once, or `step` bytes at a time, each a segment of its own as far as the kernel allows. A client
        that has had enough before the end is no fault of the server's."""
        with contextlib.suppress(ConnectionError):
            for at in range(0, len(data), step or max(1, len(data))):
                self.writer.write(data[at : at + (step or len(data))])
                await self.writer.drain()
                await asyncio.sleep(0)

    def half_close(self) -> None:
        """FIN; what the client still sends is taken."""
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """RST instead of FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> bytes:
        """Until the client has closed: what it sent before."""
        async with patience(PATIENCE):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""


class RawServer:
    """Listens on loopback (or a Unix socket) and hands out its connections as they come."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", path: str = "") -> None:
        self.accepted = 0
        self._tls, self._host, self._path = tls, host, path
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0

    @property
    def url(self) -> str:
        if self._path:
            return f"unix://{self._path}"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http{'s' if self._tls else ''}://{host}:{self.port}"

    async def __aenter__(self) -> Self:
        if self._path:
            self._server = await asyncio.start_unix_server(self._accept, self._path)
        else:
            self._server = await asyncio.start_server(self._accept, self._host, 0, ssl=self._tls)
            self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.append(writer)
        self._peers.put_nowait(Peer(reader, writer))

    async def peer(self) -> Peer:
        """The next connection that was made."""
        async with patience(PATIENCE):
            return await self._peers.get()

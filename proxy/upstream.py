"""Owns the client side: the pool of connections to one engine, kept alive, and how a request is written.
Must not know flights, SSE or sharing.
Called by the scheduler (exchanges) and by backends (polls). Foreign errors become GatewayErrors here."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from proxy.connection import Connection, unreachable
from proxy.errors import Code, GatewayError

IDLE_SECONDS: Final = 4.0  # vLLM's server (uvicorn) closes an idle connection after 5
MAX_IDLE: Final = 256  # connections kept for reuse
MAX_POLL: Final = 4 * 1024 * 1024  # bytes of a polled answer

HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""RFC 9110 7.6.1: these concern one connection and are never forwarded."""


class Pool:
    """The connections to one engine. LIFO: the freshest is the least likely to have gone stale."""

    def __init__(
        self,
        url: str,
        *,
        connect_timeout: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        parts = urlsplit(url)
        self.url = url
        self.loop = loop
        self.base = parts.path.rstrip("/")
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._authority = parts.netloc.rpartition("@")[2]
        self._connect_timeout = connect_timeout
        self._idle: list[Connection] = []
        self._live: set[Connection] = set()

    def __repr__(self) -> str:
        return f"<Pool {self.url} open={len(self._live)} idle={len(self._idle)}>"

    def __len__(self) -> int:
        return len(self._live)

    def take(self) -> Connection | None:
        """A kept connection, if one is fresh enough; stale ones are closed."""
        now = self.loop.time()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and now - connection.idle_since < IDLE_SECONDS:
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        """A new connection. Raises GatewayError 502 or 504."""
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self),
                    self.host,
                    self.port,
                    ssl=self._ssl,
                )
        except TimeoutError:
            raise GatewayError(
                Code.UPSTREAM_CONNECT_TIMEOUT,
                f"The engine did not take the connection within {self._connect_timeout:g} s.",
            ) from None
        except OSError as e:  # refused, unreachable, no such host, TLS
            raise unreachable(e.strerror or type(e).__name__) from None
        self._live.add(connection)
        return connection

    def give(self, connection: Connection) -> None:
        """Take a connection back for the next exchange."""
        if len(self._idle) >= MAX_IDLE:
            connection.abort()
            return
        connection.resume()
        connection.idle_since = self.loop.time()
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        self._live.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def request(self, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
        """One request's bytes. A header that could smuggle another line is refused."""
        lines = [f"{method} {self.base}{path} HTTP/1.1", f"Host: {self._authority}"]
        lines.extend(f"{name}: {value}" for name, value in headers)
        if body or method not in ("GET", "HEAD", "DELETE", "OPTIONS"):
            lines.append(f"Content-Length: {len(body)}")
        if any("\r" in line or "\n" in line or "\0" in line for line in lines):
            raise GatewayError(Code.INVALID_HEADER, "A header or the path has a line break in it.")
        return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body

    async def get(self, path: str) -> tuple[int, bytes]:
        """A small GET of our own, for polls: (status, body). Raises GatewayError."""
        for connection in (self.take(), None):
            fresh = connection is None
            connection = connection or await self.connect()
            answer = _Answer(self.loop)
            connection.send(self.request("GET", path, (("Accept", "application/json"),), b""), answer)
            try:
                return await answer.done
            except GatewayError:
                if fresh or connection.received:
                    raise
            finally:
                if not answer.complete:
                    connection.abort()
        raise AssertionError("unreachable")

    def close(self) -> None:
        for connection in tuple(self._live):
            connection.abort()
        self._idle.clear()


class _Answer:
    """Receives one small answer whole."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.done: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self.complete = False
        self._status = 0
        self._body = bytearray()

    def head(self, status: int, headers: list[tuple[str, str]]) -> None:
        self._status = status

    def body(self, data: bytes) -> None:
        if len(self._body) + len(data) <= MAX_POLL:
            self._body += data
        else:
            self.lost(GatewayError(Code.UPSTREAM_TOO_LARGE, f"The engine's answer is over {MAX_POLL} bytes."))

    def end(self) -> None:
        self.complete = True
        if not self.done.done():
            self.done.set_result((self._status, bytes(self._body)))

    def lost(self, error: GatewayError) -> None:
        if not self.done.done():
            self.done.set_exception(error)

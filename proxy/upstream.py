"""Owns the client side: connections to one engine, an `asyncio.Protocol` of our own, kept alive and pooled.
Must not know flights, SSE or sharing: bytes go to a Receiver as they arrive, no task wakes for them.
Called by the scheduler (exchanges) and by backends (polls). Foreign errors become GatewayErrors here."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Final, Protocol
from urllib.parse import urlsplit

import httptools

from proxy.errors import Code, GatewayError

MAX_HEAD: Final = 64 * 1024  # bytes of status line and headers an engine may send
IDLE_SECONDS: Final = 4.0  # vLLM's server (uvicorn) closes an idle connection after 5
DRAIN_SECONDS: Final = 1.0  # for the end of a message whose receiver is already content
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


class Receiver(Protocol):
    """Takes one answer. Exactly one of `end` and `lost` is called, last. None of these may raise."""

    def head(self, status: int, headers: list[tuple[str, str]]) -> None: ...
    def body(self, data: bytes) -> None: ...
    def end(self) -> None: ...
    def lost(self, error: GatewayError) -> None: ...


class _Drain:
    """Receives the rest of an answer that is already complete for its reader."""

    def head(self, status: int, headers: list[tuple[str, str]]) -> None:
        pass

    def body(self, data: bytes) -> None:
        pass

    def end(self) -> None:
        pass

    def lost(self, error: GatewayError) -> None:
        pass


class Connection(asyncio.Protocol):
    """One connection to an engine, one exchange at a time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: list[tuple[str, str]] = []
        self._head_bytes = 0
        self._in_body = False
        self._until_close = False
        self.idle_since = 0.0
        self.received = False  # any byte of the present answer

    # -- for the scheduler ------------------------------------------------------------------------

    def send(self, request: bytes, receiver: Receiver) -> None:
        """Start an exchange on a connection that has none."""
        transport = self._transport
        self._receiver = receiver
        self._reset()
        self.received = False
        if transport is None or transport.is_closing():
            self._pool.loop.call_soon(self._lose, "the connection was already closed")
            return
        transport.write(request)

    def detach(self) -> None:
        """The receiver has all it wants; keep the connection if the message ends by itself soon."""
        if self._receiver is not None:
            drain = self._receiver = _Drain()
            self._pool.loop.call_later(DRAIN_SECONDS, self._abort_if, drain)

    def abort(self) -> None:
        """Close at once: the engine sees it and stops generating."""
        self._receiver = None
        if self._transport is not None:
            self._transport.abort()

    def throttle(self, hold: bool) -> None:
        """Hold back an engine whose only reader lags, or let it go on."""
        if self._transport is not None and not self._transport.is_closing():
            if hold:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def _abort_if(self, receiver: Receiver) -> None:
        if self._receiver is receiver:
            self.abort()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers = []
        self._head_bytes = 0
        self._in_body = self._until_close = False

    # -- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None or self._parser is None:
            self.abort()  # nobody asked: whatever this is, it must not be taken for the next answer
            return
        self.received = True
        if not self._in_body:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD + len(data):
                self._break(Code.UPSTREAM_PROTOCOL, f"its answer's head is larger than {MAX_HEAD} bytes")
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._break(Code.UPSTREAM_PROTOCOL, "it wants to switch protocols")
        except httptools.HttpParserError as e:
            self._break(Code.UPSTREAM_PROTOCOL, f"it does not speak HTTP/1.1 as it should ({e})")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._pool.forget(self)
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        if self._until_close and exc is None:
            receiver.end()
        elif self._in_body:
            receiver.lost(GatewayError(Code.UPSTREAM_TRUNCATED, "The engine closed the connection in mid-answer."))
        else:
            receiver.lost(_unreachable("it closed the connection before it answered"))

    # -- httptools callbacks ----------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is None or self._receiver is None:
            return
        status = parser.get_status_code()
        if status < 200:
            return
        self._in_body = True
        names = {name for name, _ in self._headers}
        self._until_close = (
            "content-length" not in names and "transfer-encoding" not in names and status not in (204, 304)
        )
        self._receiver.head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver.body(data)

    def on_message_complete(self) -> None:
        parser, receiver = self._parser, self._receiver
        if parser is None or receiver is None:
            return
        if not self._in_body:  # 1xx: the answer itself is still to come
            self._headers = []
            return
        keep = parser.should_keep_alive() and not self._until_close
        self._receiver = self._parser = None
        if keep:
            self._pool.give(self)
        elif self._transport is not None:
            self._transport.close()
        receiver.end()

    def _break(self, code: Code, why: str) -> None:
        receiver = self._receiver
        self.abort()
        if receiver is not None:
            receiver.lost(GatewayError(code, f"The engine's answer cannot be read: {why}."))

    def _lose(self, why: str) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.lost(_unreachable(why))


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
            raise _unreachable(e.strerror or type(e).__name__) from None
        self._live.add(connection)
        return connection

    def give(self, connection: Connection) -> None:
        """Take a connection back for the next exchange."""
        if len(self._idle) >= MAX_IDLE:
            connection.abort()
            return
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


def _unreachable(why: str) -> GatewayError:
    return GatewayError(Code.UPSTREAM_UNREACHABLE, f"The engine could not be reached: {why}.")

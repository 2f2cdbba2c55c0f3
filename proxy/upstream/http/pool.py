"""The pool of connections to one engine, and how a request is written. Foreign errors become GatewayErrors
here."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Final

from proxy.errors import Code, GatewayError
from proxy.upstream.http.connection import Connection
from proxy.upstream.http.dial import address_of, dial, tls_context
from proxy.upstream.http.read_budget import ReadBudget
from proxy.upstream.http.response import KnownHead
from proxy.upstream.pulse import Pulse

IDLE_SECONDS: Final = 4.0  # vLLM's server (uvicorn) closes an idle connection after 5
MAX_IDLE: Final = 256  # idle connections, unless more may be in use
KEPT: Final = 16  # request lines
KEPT_LENGTH: Final = 64  # characters of a path whose request line is kept
MAX_POLL: Final = 4 * 1024 * 1024  # bytes of a response to a poll

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
    """The connections to one engine. LIFO: the most recently used one is the least likely to be stale.

    At most one connection for each lease and each poll, and `max_idle` idle ones. `max_idle` should be as large as
    the number of leases: else a burst's connections are closed on release and opened again for the next burst.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout: float,
        loop: asyncio.AbstractEventLoop,
        tls: ssl.SSLContext | None = None,
        max_idle: int = MAX_IDLE,
        api_key: str = "",
        pulse: Pulse | None = None,
        reading: ReadBudget | None = None,
    ) -> None:
        """`reading`: one budget shared by all pools."""
        self.url = url
        self.loop = loop
        self.reading = reading if reading is not None else ReadBudget(loop)
        self.address = address_of(url)
        self._tls = tls or (tls_context() if self.address.tls else None)
        self._connect_timeout = connect_timeout
        self._max_idle = max_idle
        self._closed = False
        self._pulse = pulse or Pulse(loop)  # not started: it notices no pause
        self._show(api_key)
        self._idle: dict[Connection, None] = {}  # a stack with removal in O(1)
        self._live: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Pool {self.url} open={len(self._live)} idle={len(self._idle)}>"

    def __len__(self) -> int:
        return len(self._live)

    def renew(self, tls: ssl.SSLContext | None, api_key: str) -> None:
        """Use this context and key for connections and requests from now on."""
        if self.address.tls and tls is not None:
            self._tls = tls
        self._show(api_key)

    def _show(self, api_key: str) -> None:
        shown = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = f" HTTP/1.1\r\nHost: {self.address.authority}\r\n{shown}"
        self._begun: dict[tuple[str, str], bytes] = {}  # by method and path: request line and fixed headers

    def take(self) -> Connection | None:
        """An idle connection, if one is fresh enough; stale ones are closed."""
        stale = self.loop.time() - IDLE_SECONDS
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.fresh(stale):
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        """A new connection. Raises GatewayError 502, 503 or 504."""
        connection = await self._pulse.patiently(self._dial, _timed_out)
        self._live.add(connection)
        return connection

    async def _dial(self) -> Connection:
        return await dial(
            self.address, lambda: Connection(self), loop=self.loop, tls=self._tls, timeout=self._connect_timeout
        )

    def release(self, connection: Connection) -> None:
        """Return a connection for the next exchange."""
        if self._closed or len(self._idle) >= self._max_idle:
            connection.abort()
            return
        connection.rest(self.loop.time())
        self._idle[connection] = None
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(IDLE_SECONDS, self._sweep)

    def discard(self, connection: Connection) -> None:
        self._live.discard(connection)
        self._idle.pop(connection, None)

    def _sweep(self) -> None:
        """Close connections that have been idle for too long."""
        self._sweeper = None
        now = self.loop.time()
        while self._idle:
            oldest = next(iter(self._idle))
            wait = oldest.idle_since + IDLE_SECONDS - now
            if wait > 0:
                self._sweeper = self.loop.call_later(wait, self._sweep)
                return
            del self._idle[oldest]
            oldest.abort()

    def request(self, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
        """The bytes of a request. Raises GatewayError 400 for a header that contains a line break."""
        begin = self._begun.get((method, path)) or self._begin(method, path)
        lines = []
        for name, value in headers:  # a comprehension would be a Python call more
            lines.append(f"{name}: {value}")
        text = " ".join(lines)
        if "\n" in text or "\r" in text or "\0" in text:
            raise _broken_line()
        if body or method not in ("GET", "HEAD", "DELETE", "OPTIONS"):
            lines.append(f"Content-Length: {len(body)}")
        lines.append("\r\n")
        return b"%b%b%b" % (begin, "\r\n".join(lines).encode("utf-8", "surrogateescape"), body)

    def _begin(self, method: str, path: str) -> bytes:
        """Request line and fixed headers. Raises GatewayError 400 as `request`."""
        text, count = f"{method} {self.address.base}{path}{self._head}", self._head.count("\n")
        breaks = text.count("\r") != count or text.count("\n") != count
        if breaks or "\0" in text or " " in path or " " in method:
            raise _broken_line()
        begin = text.encode("utf-8", "surrogateescape")
        if len(path) <= KEPT_LENGTH:
            if len(self._begun) >= KEPT:
                self._begun.clear()
            self._begun[method, path] = begin
        return begin

    async def get(self, path: str, *, fresh: bool = False) -> tuple[int, bytes]:
        """A small GET by the gateway itself: (status, body). Raises GatewayError."""
        return await self.ask("GET", path, fresh=fresh)

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, fresh: bool = False, name: str = ""
    ) -> tuple[int, bytes]:
        """A small request by the gateway itself: (status, body). `fresh`: over a new connection; `name`: its
        X-Request-Id, for the engine's log. Raises GatewayError."""
        headers = [("Accept", "application/json")]
        if name:
            headers.append(("X-Request-Id", name))
        if body:
            headers.append(("Content-Type", "application/json"))
        for connection in (None if fresh else self.take(), None):
            fresh = connection is None
            connection = connection or await self.connect()
            answer = _Answer(self.loop)
            connection.send(self.request(method, path, headers, body), answer)
            try:
                return await answer.done
            except GatewayError:
                if fresh or connection.received:
                    raise
            finally:
                if not answer.complete:
                    connection.abort()
        raise AssertionError("unreachable")

    def drop_idle(self) -> None:
        """Close all idle connections."""
        while self._idle:
            connection, _ = self._idle.popitem()
            connection.abort()

    def close(self) -> None:
        """Close all connections, in use or not, and keep none from now on."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in tuple(self._live):
            connection.abort()
        self._idle.clear()


def _timed_out(error: Exception) -> bool:
    return isinstance(error, GatewayError) and error.code is Code.UPSTREAM_CONNECT_TIMEOUT


class _Answer:
    """Receives one small response."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.done: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self.complete = False
        self._status = 0
        self._body = bytearray()

    def head(self, status: int, headers: list[tuple[str, str]], known: KnownHead | None = None) -> None:
        self._status = status

    def body(self, data: bytes, wired: bytes = b"") -> None:
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


def _broken_line() -> GatewayError:
    return GatewayError(Code.INVALID_HEADER, "A header or the path contains a line break, or the path a space.")

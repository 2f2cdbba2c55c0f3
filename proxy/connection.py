"""Owns one connection to an engine: an `asyncio.Protocol` of our own that speaks HTTP/1.1 as a client.
Must not know flights, SSE or sharing: bytes go to a Receiver as they arrive, no task wakes for them.
Called by the pool in upstream and by the scheduler (one exchange at a time)."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

import httptools

from proxy.errors import Code, GatewayError

MAX_HEAD: Final = 64 * 1024  # bytes of status line and headers an engine may send
DRAIN_SECONDS: Final = 1.0  # for the end of a message whose receiver is already content


class Receiver(Protocol):
    """Takes one answer. Exactly one of `end` and `lost` is called, last. None of these may raise."""

    def head(self, status: int, headers: list[tuple[str, str]]) -> None: ...
    def body(self, data: bytes) -> None: ...
    def end(self) -> None: ...
    def lost(self, error: GatewayError) -> None: ...


class Owner(Protocol):
    """Who keeps the connection between exchanges."""

    loop: asyncio.AbstractEventLoop

    def give(self, connection: Connection) -> None: ...
    def forget(self, connection: Connection) -> None: ...


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

    def __init__(self, pool: Owner) -> None:
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

    def release(self, receiver: Receiver, *, content: bool) -> None:
        """The receiver is through. If it has all it wanted the connection is kept, should the message end by
        itself soon; else it is closed. A connection that serves the next exchange already is left alone."""
        if self._receiver is not receiver:
            return
        if not content:
            self.abort()
            return
        drain = self._receiver = _Drain()
        self._pool.loop.call_later(DRAIN_SECONDS, self._abort_if, drain)

    def abort(self) -> None:
        """Close at once: the engine sees it and stops generating."""
        self._receiver = None
        if self._transport is not None:
            self._transport.abort()

    def throttle(self, receiver: Receiver, hold: bool) -> None:
        """Hold back an engine whose only reader lags, or let it go on."""
        if self._receiver is receiver and self._transport is not None and not self._transport.is_closing():
            if hold:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def resume(self) -> None:
        if self.usable and self._transport is not None:
            self._transport.resume_reading()  # without effect where it was not held

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
            receiver.lost(unreachable("it closed the connection before it answered"))

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
            receiver.lost(unreachable(why))


def unreachable(why: str) -> GatewayError:
    return GatewayError(Code.UPSTREAM_UNREACHABLE, f"The engine could not be reached: {why}.")

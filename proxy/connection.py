"""Owns one connection to an engine: an `asyncio.Protocol` of our own that speaks HTTP/1.1 as a client.
Must not know flights, SSE or sharing: bytes go to a Receiver as they arrive, no task wakes for them.
Called by the pool in upstream and by the scheduler (one exchange at a time)."""

from __future__ import annotations

import asyncio
import select
from enum import Enum
from typing import Final, Protocol

import httptools

from proxy.errors import Code, GatewayError

MAX_HEAD: Final = 64 * 1024  # bytes of status line and headers, interim answers' included
MAX_HEADERS: Final = 128  # header fields of one answer; aiohttp's client has the same bound
MAX_OVERHEAD: Final = 64 * 1024  # bytes of a chunked body, in one run, that are extension or trailer and no body
DRAIN_SECONDS: Final = 1.0  # for the end of a message whose receiver is already content

_END_OF_HEAD: Final = b"\r\n\r\n"
_H: Final = ord("H")


class Receiver(Protocol):
    """Takes one answer. Exactly one of `end` and `lost` is called, last. None of these may raise.

    `body` is called once for each read that had any body in it, however many chunks those bytes came in.
    """

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

    __slots__ = ()

    def head(self, status: int, headers: list[tuple[str, str]]) -> None:
        pass

    def body(self, data: bytes) -> None:
        pass

    def end(self) -> None:
        pass

    def lost(self, error: GatewayError) -> None:
        pass


class Framing(Enum):
    """What the next bytes are, and so what ends the answer (RFC 9112 6.3)."""

    HEAD = "head"
    NONE = "no body"
    LENGTH = "content-length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"


class Refused(Exception):
    """An answer whose framing is not beyond doubt. The text says why."""


class Connection(asyncio.Protocol):
    """One connection to an engine, one exchange at a time.

    The law of reuse: it is kept only if the answer ended where its own framing said, nothing came after it, the
    request had gone out whole, and neither side had said `close`. Whatever is in doubt closes it: the next
    exchange on it might be another client's.
    """

    __slots__ = (
        "_bodiless",
        "_drain_timer",
        "_end",
        "_framing",
        "_head_bytes",
        "_head_done",
        "_headers",
        "_keep",
        "_left",
        "_overhead",
        "_parser",
        "_pieces",
        "_poll",
        "_pool",
        "_receiver",
        "_surplus",
        "_tail",
        "_transport",
        "idle_since",
        "on_body",
        "received",
    )

    def __init__(self, pool: Owner) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._receiver: Receiver | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._drain_timer: asyncio.TimerHandle | None = None
        self._pieces: list[bytes] = []
        # httptools calls this for each chunk: a C function, no frame of Python. The read's pieces go on together.
        self.on_body = self._pieces.append
        self.idle_since = 0.0
        self.received = False  # any byte of the present answer
        self._begin(b"")

    def __repr__(self) -> str:
        if not self.usable:
            state = "closed"
        elif self._receiver is None:
            state = "idle"
        elif isinstance(self._receiver, _Drain):
            state = f"draining {self._framing.value}"
        else:
            state = self._framing.value if self.received else "waiting"
        return f"<Connection {state}>"

    # -- for the scheduler ------------------------------------------------------------------------

    def send(self, request: bytes, receiver: Receiver) -> None:
        """Start an exchange on a connection that has none."""
        transport = self._transport
        self._receiver = receiver
        self._begin(request)
        self.received = False
        if transport is None or transport.is_closing():
            self._pool.loop.call_soon(self._lose, receiver)
            return
        self._parser = httptools.HttpResponseParser(self)
        transport.write(request)

    def release(self, receiver: Receiver, *, content: bool) -> None:
        """The receiver is through. If it has all it wanted the connection is kept, should the message end by
        itself soon; else it is closed. A connection that serves the next exchange already is left alone."""
        if self._receiver is not receiver:
            return
        if not content or self._framing is Framing.UNTIL_CLOSE or not self.usable:
            self.abort()
            return
        drain = self._receiver = _Drain()
        self._drain_timer = self._pool.loop.call_later(DRAIN_SECONDS, self._abort_if, drain)
        self.resume()

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

    # -- for the pool -----------------------------------------------------------------------------

    def resume(self) -> None:
        if self.usable and self._transport is not None:
            self._transport.resume_reading()  # without effect where it was not held

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def quiet(self) -> bool:
        """Whether nothing has come in that the loop has not read yet: on an idle connection that is its end, or
        what nobody asked for. Costs a system call."""
        return self._poll is None or not self._poll.poll(0)

    # -- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        socket = transport.get_extra_info("socket")
        if socket is not None:
            self._poll = select.poll()
            self._poll.register(socket.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:
            self._drop()  # nobody asked: whatever this is, it must not be taken for the next answer
            return
        self.received = True
        framing = self._framing
        if framing is Framing.CHUNKED:
            self._read_chunks(data, receiver)
        elif framing is Framing.LENGTH:
            self._read_counted(data, receiver)
        elif framing is Framing.HEAD:
            self._read_head(data, receiver)
        else:
            receiver.body(data)

    def eof_received(self) -> bool:
        if self._receiver is None:
            self._drop()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        framing, receiver = self._framing, self._receiver
        self._transport = self._parser = self._poll = self._receiver = None
        self._no_drain()
        self._pool.forget(self)
        if receiver is None:
            return
        if framing is Framing.HEAD:
            receiver.lost(unreachable(f"it closed the connection before it answered{_detail(exc)}"))
        elif framing is Framing.UNTIL_CLOSE and exc is None:
            receiver.end()
        else:
            message = f"The engine closed the connection in mid-answer{_detail(exc)}."
            receiver.lost(GatewayError(Code.UPSTREAM_TRUNCATED, message))

    # -- the head ---------------------------------------------------------------------------------

    def _begin(self, request: bytes) -> None:
        self._framing = Framing.HEAD
        self._bodiless = request.startswith(b"HEAD ")
        self._headers: list[tuple[str, str]] = []
        self._head_bytes = 0
        self._head_done = False
        self._tail = b""  # the last bytes of the head so far, where its end may begin
        self._keep = False
        self._left = 0  # bytes of a counted body to come
        self._overhead = 0
        self._end = -1  # how many pieces of this read belong to the answer, once it has ended
        self._surplus = False

    def _read_head(self, data: bytes, receiver: Receiver) -> None:
        """Heads are cut off exactly where they end, so that all that follows is known to be body or surplus."""
        while data:
            if not self._tail and data[0] != _H:  # the parser also takes RTSP, ICE and line breaks before
                self._refuse("it does not start as HTTP/1.1 does")
                return
            whole = self._tail + data
            end = whole.find(_END_OF_HEAD)
            cut = len(data) if end < 0 else end + len(_END_OF_HEAD) - len(self._tail)
            self._head_bytes += cut
            if self._head_bytes > MAX_HEAD:
                self._refuse(f"its head is larger than {MAX_HEAD} bytes")
                return
            try:
                self._parse(data if cut == len(data) else data[:cut])
                if end < 0:
                    self._tail = whole[1 - len(_END_OF_HEAD) :]
                    return
                status = self._understand()
            except Refused as e:
                self._refuse(str(e))
                return
            self._tail, data = b"", data[cut:]
            if status >= 200:
                self._answer(status, data, receiver)
                return
            self._headers, self._head_done = [], False  # an interim answer: the answer itself is still to come

    def _parse(self, data: bytes) -> None:
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise Refused("it wants to switch protocols") from None
        except httptools.HttpParserError as e:
            raise Refused(f"it does not speak HTTP/1.1 as it should ({e})") from None

    def _understand(self) -> int:
        """The status of a head that is complete; from it and its fields, what ends the answer and whether the
        connection may be kept. Raises Refused where two readers could understand it differently."""
        parser, headers = self._parser, self._headers
        assert parser is not None
        version, status = parser.get_http_version(), parser.get_status_code()
        if not self._head_done or version not in ("1.1", "1.0"):
            raise Refused(f"it answers as HTTP/{version}")
        if not 100 <= status <= 999 or status == 101:
            raise Refused(f"it answers with status {status:03}")
        if len(headers) > MAX_HEADERS:
            raise Refused(f"it has more than {MAX_HEADERS} headers")
        length: int | None = None
        chunked = False
        keep, close = version == "1.1", False
        for name, value in headers:
            if name == "content-length":
                length = int(value)  # digits, and only once: the parser has seen to it
            elif name == "transfer-encoding":
                if chunked or value.lower() != "chunked" or version == "1.0":
                    raise Refused(f"it is sent with a transfer encoding that is not just chunked ({value[:40]!r})")
                chunked = True
            elif name == "connection":
                tokens = {token.strip().lower() for token in value.split(",")}
                keep, close = keep or "keep-alive" in tokens, close or "close" in tokens
        if status < 200:
            if chunked or length is not None:
                raise Refused("an interim answer claims to have a body")
            return status
        if self._bodiless or status == 304:
            self._framing = Framing.NONE
        elif status == 204:
            self._framing = Framing.NONE
            close = close or chunked or bool(length)  # a body that must not be: it may come none the less
        elif chunked:
            self._framing = Framing.CHUNKED
        elif length is not None:
            self._framing, self._left = (Framing.LENGTH, length) if length else (Framing.NONE, 0)
        else:
            self._framing, close = Framing.UNTIL_CLOSE, True
        self._keep = keep and not close
        return status

    def _answer(self, status: int, data: bytes, receiver: Receiver) -> None:
        receiver.head(status, self._headers)
        if self._receiver is not receiver:
            return
        if self._framing is Framing.NONE:
            self._finish(receiver, clean=not data)
        elif data:
            self.data_received(data)

    # -- the body ---------------------------------------------------------------------------------

    def _read_counted(self, data: bytes, receiver: Receiver) -> None:
        left = self._left = self._left - len(data)
        receiver.body(data if left >= 0 else data[:left])
        if left <= 0 and self._receiver is receiver:
            self._finish(receiver, clean=left == 0)

    def _read_chunks(self, data: bytes, receiver: Receiver) -> None:
        pieces, fault = self._pieces, ""
        try:
            self._parse(data)
        except Refused as e:
            fault = str(e)
        if self._surplus:
            del pieces[self._end :]  # of another answer, which nobody asked for
        if pieces:
            self._overhead = 0
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            receiver.body(body)
            if self._receiver is not receiver:
                return
        else:
            self._overhead += len(data)
            if self._overhead > MAX_OVERHEAD:
                fault = fault or f"over {MAX_OVERHEAD} bytes of its chunks are no body"
        if self._end >= 0:
            self._finish(receiver, clean=not (fault or self._surplus))
        elif fault:
            self._refuse(fault)

    # -- httptools callbacks ----------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._framing is Framing.HEAD:  # else a trailer: not forwarded, and may not pass for a header
            self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1").rstrip(" \t")))

    def on_headers_complete(self) -> None:
        self._head_done = True

    def on_message_complete(self) -> None:
        if self._framing is Framing.CHUNKED and self._end < 0:
            self._end = len(self._pieces)

    def on_message_begin(self) -> None:
        self._surplus = self._end >= 0

    # -- ends -------------------------------------------------------------------------------------

    def _finish(self, receiver: Receiver, *, clean: bool) -> None:
        transport = self._transport
        self._receiver = self._parser = None
        self._no_drain()
        if transport is not None:
            sent = not transport.get_write_buffer_size()
            if self._keep and clean and sent and not transport.is_closing():
                self._pool.give(self)
            elif clean and sent:
                transport.close()
            else:
                transport.abort()  # an engine that reads no more would hold up a close for ever
        receiver.end()

    def _refuse(self, why: str) -> None:
        receiver = self._receiver
        self.abort()
        if receiver is not None:
            message = f"The engine's answer cannot be read: {why}."
            receiver.lost(GatewayError(Code.UPSTREAM_PROTOCOL, message))

    def _drop(self) -> None:
        """Out of the pool now, not only once the loop has closed it."""
        self._pool.forget(self)
        self.abort()

    def _no_drain(self) -> None:
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None

    def _abort_if(self, receiver: Receiver) -> None:
        if self._receiver is receiver:
            self.abort()

    def _lose(self, receiver: Receiver) -> None:
        if self._receiver is receiver:
            self._receiver = None
            receiver.lost(unreachable("the connection was already closed"))


def unreachable(why: str) -> GatewayError:
    return GatewayError(Code.UPSTREAM_UNREACHABLE, f"The engine could not be reached: {why}.")


def _detail(exc: Exception | None) -> str:
    """What the system or TLS said of a connection's end, as ` (…)`."""
    text = str(getattr(exc, "strerror", None) or exc or "")
    return f" ({text})" if text else ""

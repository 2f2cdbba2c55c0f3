"""The listener: aiohttp's server with OpenAI's error bodies, and bounds on heads, connections and times. A client
that leaves (disconnects) cancels the handler of its request, here and nowhere else: at once while its connection
is read, within a second (`Times.every`) while reading is paused.

This module and `request.py` are the only ones that use private names of aiohttp. `ClientConnection.start`
replaces `RequestHandler.start`, which makes a task, a response object and two event loop iterations more for
each request (9 µs of 40); `ClientConnection._feed` gives bytes to the parser in place of
`RequestHandler.data_received`, unless `known_heads.py` knows the head; the connection's reading, closing and
timeouts reach into the same state. What it relies on: `_messages`, `_max_msg_queue_size`, `_waiter`, `_parser`,
`_task_handler`, `_handler_waiter`, `_current_request` and its `_cancel`, `_request_in_progress`,
`_request_count`, `_manager`, `_loop`; `_close`, `_force_close`, `_upgraded`, `_message_tail`; the `_keepalive`
and `_lingering` names; `_reading_paused`, `_buffer_paused` and their methods; `_drain_helper`; `_ErrInfo`; and
of a StreamReader `_eof`, `_exception`, `_size`, `_buffer` and `_buffer_offset`.
`tests/proxy/server/listener/test_listener.py` checks that each name exists, pins the sources of the replaced
methods by their hashes, and says what to compare when aiohttp changes.

To leave them, write the server's half of what `proxy/upstream/http/` is on the client's side: an
asyncio.Protocol with httptools' request parser that queues heads, feeds one body at a time with flow control,
and calls the same `Handler` with a `Request` of its own. uvicorn's `httptools_impl.py` does this in 577 lines.
The handlers use of a request: method, path, raw_path, headers, raw_headers, version, host, remote, content,
content_length, body, body_exists, keep_alive, transport, protocol and task. `Listener`, timeouts, the
connection limit, the PROXY protocol and head reading stay as they are. Reason enough: a release of aiohttp that
changes `start`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, Protocol, cast

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from proxy.access import UNIX, ClientRequest, Origins, TrustedProxies
from proxy.errors import Code, GatewayError
from proxy.server.listener.connection_limit import ConnectionLimit, Evictable
from proxy.server.listener.head import read_head
from proxy.server.listener.known_heads import KnownHeads
from proxy.server.listener.peer_closed import peer_closed
from proxy.server.listener.proxy_protocol import V2, parse_proxy_header
from proxy.server.listener.request import Request, head_bytes, read_request
from proxy.server.listener.timeouts import Over, Times, Watched
from proxy.server.listener.unreadable import HeadTooLarge, OtherProtocol, error_for, final_response
from proxy.telemetry import raised, unawaited
from proxy.upstream.http import ReadBudget
from proxy.wire.http import ChunkEnds, Target

LINGERING_SECONDS = 10.0  # for discarding the rest of an unread body
HEARD_SECONDS = 1.0  # a client that still sends has read its error once nothing came for so long

TURN_BYTES = 16 * 1024
"""Bytes of uploads handled in one event-loop iteration for all clients: 30 ms where each byte is a chunk."""
SLICE_BYTES = 8 * 1024  # handled at a time for one client
READ_BYTES = 32 * 1024
"""aiohttp pauses reading when its buffer of a body holds twice as many bytes, or a sixteenth as many chunks."""
AT_ONCE = 4 * 1024  # bytes; a smaller read is handled at once: nearly every request

BLANK = b"\r\n\r\n"
PROTOCOL_BYTES = len(b" RTSP/1.0")  # at the end of a request line

Handler = Callable[[Request], Awaitable[bool]]
"""Answers a request completely. True: the connection may be kept. It is cancelled where the client leaves."""


class Counted(Protocol):
    """A writer that counts its bytes itself: a stream's bytes cost no call each to count."""

    @property
    def sent(self) -> int:
        """Bytes given to the transport."""


class ClientConnection(RequestHandler):
    """One client connection. A request that aiohttp's parser refuses gets an error in OpenAI's format."""

    write_paused = False  # backpressure: the client is a slow reader
    leaving = False  # the answer under way is the last (aiohttp's `close` would drop the rest of its body)
    max_head = 0  # bytes
    heads = KnownHeads(0)  # of all connections of its listener
    stalled = False  # closed because the client read nothing for too long
    evicted = False  # closed in favour of a new connection
    times = Watched(0.0)
    source = ""  # the client's address in the PROXY protocol header
    opening: bytes | None = None  # the part of that header that has come; None: none is expected
    _payload: StreamReader | None = None  # the body of the latest request
    _written = 0  # bytes given to the transport, but for those that `_stream` counts
    _stream: Counted | None = None  # the latest answer that is a stream
    _opened_with_proxy = False  # an untrusted peer sent a PROXY protocol header
    _head = 0  # bytes of an incomplete head
    _late = b""  # bytes read but not handled yet: reading is paused until they are
    _fed = b""  # the last bytes of an incomplete head that were given to the parser
    _line: bytes | None = b""  # the end of an incomplete request line; None: it is complete, its head is not
    _key = b""  # by which the head of the next request would be known
    _last_key = 0  # the hash of that of the latest request
    _body: StreamReader = EMPTY_PAYLOAD  # of the latest request that was parsed
    _left = 0  # bytes to come of a body with Content-Length
    _chunks: ChunkEnds | None = None  # of a chunked body
    _dropped = 0  # bytes discarded after the last answer
    _sliced = False  # a slice of `_late` is being handled

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # As attributes of the instance they are read in a twentieth of the time: each is read once a request.
        self._late, self.opening, self._head, self._sliced = self._late, self.opening, self._head, self._sliced
        self._body, self._fed, self._left, self._chunks = self._body, self._fed, self._left, self._chunks
        self._key, self._last_key, self._line = self._key, self._last_key, self._line
        self.leaving, self.write_paused, self._payload = self.leaving, self.write_paused, self._payload
        super().connection_made(transport)
        assert self._task_handler is not None
        abort = cast(asyncio.Transport, transport).abort
        self._task_handler.add_done_callback(partial(unawaited, "a connection", abort))

    async def drain(self) -> None:
        """Wait until the transport takes more. Raises ConnectionError where the client leaves meanwhile."""
        if self.write_paused and self.transport is not None:
            await self._drain_helper()

    def send(self, data: bytes | memoryview) -> None:
        """Write to the transport, which is there."""
        self._written += len(data)
        self.transport.write(data)  # type: ignore[union-attr]

    def count(self, stream: Counted) -> None:
        """Count what this stream writes to the transport, by its own count."""
        self._written, self._stream = self.written, stream

    @property
    def written(self) -> int:
        """Bytes given to the transport; less its write buffer, what the client has read."""
        return self._written + (self._stream.sent if self._stream is not None else 0)

    def pause_writing(self) -> None:
        self.write_paused = True
        super().pause_writing()

    def resume_writing(self) -> None:
        self.write_paused = False
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._close or self._force_close:
            self._dropped += len(data)
            return
        if data and (self._late or data[AT_ONCE : AT_ONCE + 1]) and not self._sliced:
            self._late += data
            self._pause_transport_reading()
            if not (self._reading_paused or self._buffer_paused):
                cast(Listener, self._manager).reading.wait(self)
            return
        if self.opening is not None:
            data = self._open(data)
        payload, messages = self._payload, self._messages
        known = len(messages)
        if not (known or self._fed or self._left or self._chunks or self._upgraded) and not (
            self._reading_paused or self._buffer_paused
        ):
            request = self.heads.read(data, self, self._task_handler)
            if isinstance(request, Request):
                self._request_count += 1
                self._body = EMPTY_PAYLOAD
                messages.append((request, EMPTY_PAYLOAD))  # type: ignore[arg-type]  # `start` reads it
                if self._waiter is not None and not self._waiter.done():
                    self._waiter.set_result(None)
                return
            self._key = request
        if payload is None and not self._request_count and data[:6] in (b"PROXY ", V2[:6]):
            self._opened_with_proxy = True
        size = len(data)
        self._feed(data)
        if (
            not known
            and (self._head or not messages or size > self.max_head)
            and (payload is None or payload.is_eof())
        ):
            self._bound(size)

    def _feed(self, data: bytes) -> None:
        """Give the parser each request by itself. It drops the bytes after a request with an Upgrade header, or
        takes them for the other protocol (no upgrade is accepted here, RFC 9110 7.8); and it loses the requests
        before a malformed one in the same bytes. In place of `RequestHandler.data_received`, a call less for each
        head and each body."""
        parser, messages = self._parser, self._messages
        assert parser is not None
        while True:
            if data and (self._reading_paused or self._buffer_paused):
                self._late = data + self._late
                self._pause_transport_reading()
                return
            chunks = self._chunks
            if self._left:
                size = min(self._left, len(data))
                self._left -= size
            elif chunks is not None:
                size = chunks.take(data)
                self._chunks = None if chunks.over else chunks
            else:
                fed = self._fed
                whole = fed + data if fed else data
                end = whole.find(BLANK)
                size = len(data) if end < 0 else end + 4 - len(fed)
                if end < 0 or fed:
                    self._fed = whole[-3:] if end < 0 else b""
                if self._line is not None and not self._upgraded and self._is_other_protocol(data[:size]):
                    self._request_count += 1
                    messages.append((_ErrInfo(400, OtherProtocol("not HTTP"), ""), EMPTY_PAYLOAD))
                    if self._waiter is not None and not self._waiter.done():
                        self._waiter.set_result(None)
                    return
                if end >= 0:
                    self._line = b""
            piece, data = (data, b"") if size == len(data) else (data[:size], data[size:])
            if self._upgraded:
                super().data_received(piece)  # after a CONNECT: aiohttp keeps a bounded part of it
                if not data:
                    return
                continue
            try:
                parsed, upgraded, tail = parser.feed_data(piece)
            except HttpProcessingError as e:
                parsed, upgraded, tail = [(_ErrInfo(400, e, e.message), EMPTY_PAYLOAD)], False, b""
            message = None
            for message, body in parsed:  # one at most
                self._request_count += 1
                messages.append((message, body))
                if len(messages) >= self._max_msg_queue_size and not self._buffer_paused:
                    self._pause_reading_for_buffer()
                if self._waiter is not None and not self._waiter.done():
                    self._waiter.set_result(None)
                if isinstance(message, _ErrInfo):
                    if not self._body.is_eof():
                        # aiohttp reports it to the next request only: this body's reader would wait for ever.
                        self._body.set_exception(RequestPayloadError("The body's chunks cannot be read."))
                    return  # no request begins after it
                self._body = body
                self._left = int(message.headers.get("content-length") or 0)
                self._chunks = ChunkEnds() if message.chunked else None
            if upgraded:
                if message is not None and message.method == "CONNECT":
                    self._upgraded, self._message_tail = True, tail
                else:
                    parser.set_upgraded(False)
            if not data:
                return

    def _is_other_protocol(self, data: bytes) -> bool:
        """Whether these bytes of a head end its request line with RTSP or ICE: aiohttp's parser accepts both, and
        does not say so."""
        line = self._line + data if self._line else data.lstrip(b"\r\n")
        stop = line.find(b"\r")
        if stop < 0:
            self._line = line[-PROTOCOL_BYTES:]
            return False
        self._line = None
        version = line[max(0, stop - PROTOCOL_BYTES) : stop]
        return b" RTSP/" in version or b" ICE/" in version

    def deliver(self) -> int:
        """Handle a slice of the bytes read. Returns its size."""
        data, self._late = self._late[:SLICE_BYTES], self._late[SLICE_BYTES:]
        if self._manager is None:
            return 0  # the client has left
        self._sliced = True
        try:
            self.data_received(data)
        except Exception as e:  # noqa: BLE001 - the slice is one of many clients': only this connection ends
            self._loop.call_exception_handler({"message": "what a client sent", "exception": e})
            self.abort()
        finally:
            self._sliced = False
        if not (self._reading_paused or self._buffer_paused):
            self._resume_transport_reading()
        return len(data)

    def resume_reading(self, resume_parser: bool = True) -> None:
        if self._reading_paused:  # else it is called for each chunk that is taken, 10 µs each, for nothing
            super().resume_reading(resume_parser)

    def _resume_transport_reading(self) -> None:
        if self._late and self._manager is not None:
            cast(Listener, self._manager).reading.wait(self)
        else:
            super()._resume_transport_reading()

    def _bound(self, size: int) -> None:
        """Bound the size of a head. aiohttp bounds each line of it, and their number."""
        messages = self._messages
        head = self._head + size
        most = self.max_head
        if head <= most:
            self._head = 0 if messages else head
            return
        self._head = 0
        if messages:
            first = messages[0][0]
            if isinstance(first, _ErrInfo) or head_bytes(first) <= most:
                return  # the bytes after it are its body, or the next request
            messages.clear()
        error = _ErrInfo(
            status=Code.HEADERS_TOO_LARGE.status, exc=HeadTooLarge("The head is too large."), message=""
        )
        messages.append((error, EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _open(self, data: bytes) -> bytes:
        """The bytes after the PROXY protocol header; none while it is incomplete, or if it is malformed."""
        data = cast(bytes, self.opening) + data
        try:
            header = parse_proxy_header(data)
        except ValueError as e:
            self.opening = b""
            self._close = True  # what follows is dropped
            if self.transport is not None:
                error = GatewayError(Code.INVALID_VALUE, f"From a trusted proxy with proxy_protocol on: {e}.")
                self._tell(error)
                self.transport.close()
            return b""
        if header is None:
            self.opening = data
            return b""
        self.opening, self.source = None, header.source
        return data[header.length :]

    async def start(self) -> None:
        loop = self._loop
        manager = cast(Listener, self._manager)
        handler = manager.handler
        messages: deque[tuple[Any, StreamReader]] = cast(Any, self._messages)
        while True:  # a client that leaves cancels it, at any `await`
            if not messages:
                self._waiter = loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            message, payload = messages.popleft()
            self._payload = payload
            manager.requests_count += 1
            request: Request
            if isinstance(message, Request):  # its head is known
                request = message
            else:
                assert self._parser is not None
                self._parser.message_consumed()
                if self._buffer_paused and len(messages) <= self._msg_queue_resume_size:
                    self._resume_reading_if_drained()
                try:
                    if isinstance(message, _ErrInfo):  # aiohttp's parser refused it
                        raise error_for(message.exc, self.max_head, proxied=self._opened_with_proxy)
                    target, host = read_head(message)
                except GatewayError as e:
                    self._tell(e, None if isinstance(message, _ErrInfo) else message.headers.get("origin"))
                    await self._linger()
                    break
                self._learn(message, target, host)
                # No local name for the task: a traceback would keep it, and what its frames hold, in a cycle.
                request = read_request(message, payload, self, self._task_handler, target, host)
            if manager.leaving:
                request.closes()
            self._current_request = request  # type: ignore[assignment]  # aiohttp calls its `_cancel` only
            self._request_in_progress = True
            try:
                keep = await handler(request)
            except TimeoutError:
                self.abort()
                break
            except ConnectionError:
                break  # the client has left, or must see that its answer is incomplete
            except Exception:  # noqa: BLE001 - the handler maps its errors itself: this is a fault of that mapping
                self.log_exception("the handler failed")
                break
            finally:
                self._current_request = None
                self._request_in_progress = False
                request.end()
                if self._handler_waiter is not None:
                    self._handler_waiter.set_result(None)
            if payload is not EMPTY_PAYLOAD and not payload._eof:
                # A client that waited for a 100 may or may not send its body now.
                keep = keep and "expect" not in request.headers and await self._rest(payload)
                if not keep:
                    await self._linger()
                    break
            self._keepalive = keep = keep and not self._upgraded
            if not keep or self._close or self.leaving or self._force_close:
                break
            self._next_keepalive_close_time = close = loop.time() + self._keepalive_timeout
            if self._keepalive_handle is None:
                self._keepalive_handle = loop.call_at(close, self._process_keepalive)
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    def _learn(self, message: RawRequestMessage, target: Target, host: str) -> None:
        """Keep a head that comes the second time in a row: those with an id of their own are not worth it."""
        key, self._key = self._key, b""
        last, self._last_key = self._last_key, hash(key)
        if key and last == self._last_key:
            self.heads.keep(key, message, target, host)

    def abort(self) -> None:
        """Close at once; unread bytes are dropped. `close` would wait until the client has read them."""
        if self.transport is not None:
            self.transport.abort()

    @property
    def asks(self) -> bool:
        """Whether a request is under way, or has come."""
        return self._request_in_progress or bool(self._messages)

    @property
    def idle_since(self) -> float:
        """When it was accepted, or its latest request ended."""
        return self._next_keepalive_close_time - self._keepalive_timeout

    def look(self, transport: asyncio.Transport, now: float, times: Times) -> None:
        """Close the connection where a timeout has passed: of a head, or of a slow reader. And where its client
        has left while reading is paused, behind unread requests or an unread body: a read would not tell."""
        if self._manager is None:
            return  # closed
        if self._request_in_progress and not transport.is_reading():
            self._end_where_closed(transport)
        unread = transport.get_write_buffer_size()
        over: Over | None = self.times.look(
            now,
            times,
            requests=self._request_count,
            waits=self._waiter is not None and not self._messages,
            partial=bool(self._head or self.opening),
            unread=unread,
            taken=self.written - unread,
            closing=transport.is_closing() or self._force_close,
        )
        if over is None:
            return
        if over == "head":
            if self._head or self.opening:
                words = f"The request line and headers did not arrive within {times.head:g} s."
                self._tell(GatewayError(Code.HEAD_TIMEOUT, words))
            self.force_close()
        else:
            self.stalled = True
            transport.abort()

    def _end_where_closed(self, transport: asyncio.Transport) -> None:
        """End the connection as if its end had been read."""
        closed = peer_closed(transport.get_extra_info("socket"))
        if closed == "half" and transport.get_extra_info("sslcontext") is None:
            transport.close()
        elif closed is not None:  # TLS has no half-close, and its `close` waits for the unread bytes
            transport.abort()

    @property
    def asked(self) -> bool:
        return bool(self._request_count)

    def watch(self, now: float) -> None:
        """Its times begin."""
        self.times = Watched(now)

    def expect_proxy_header(self) -> None:
        """Its first bytes are the PROXY protocol's header of a trusted proxy."""
        self.opening = b""

    def finish(self) -> asyncio.Future[None]:
        """The answer under way is the connection's last. Resolves at its end."""
        self.leaving = True
        self._handler_waiter = waiter = self._loop.create_future()
        return waiter

    def forget(self) -> None:
        """The connection is closed: drop what aiohttp's handler, which is in a reference cycle, would keep."""
        self._written, self._stream = self.written, None
        self.times = ClientConnection.times

    @property
    def closing(self) -> bool:
        return self.evicted or self._manager is None

    def make_way(self) -> None:
        self.evicted = True
        transport = self.transport
        if transport is not None and (transport.is_closing() or transport.get_write_buffer_size()):
            transport.abort()
        else:
            self.force_close()

    def refuse_full(self) -> None:
        manager, transport = cast(Listener, self._manager), self.transport
        if transport is None:
            return
        manager.on_refused()
        words = f"The gateway has {manager.limit.most} connections already."
        error = GatewayError(Code.QUEUE_FULL, words, retry_after=1)
        transport.write(final_response(error, manager.origins.headers(None)))
        transport.close()

    async def _rest(self, payload: StreamReader) -> bool:
        """Discard the rest of an unread body, for a while, so that the client reads its answer."""
        try:
            async with asyncio.timeout(self._lingering_time):
                while not payload.is_eof():
                    await payload.readany()
        except (TimeoutError, ConnectionError, RequestPayloadError):
            return False  # it does not end, or its chunks are malformed: no request can follow
        return True

    async def _linger(self) -> None:
        """Close for writing, and discard for a while what the client still sends (RFC 9112 9.6): a close with
        unread bytes resets the connection, and the client would not read its answer."""
        self._close, self._late = True, b""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()
        self._resume_transport_reading()
        last, taken = self._loop.time() + self._lingering_time, -1
        while taken != self._dropped and self._loop.time() < last and not self._force_close:
            taken = self._dropped
            await asyncio.sleep(HEARD_SECONDS)  # cancelled as the client closes

    def _tell(self, error: GatewayError, origin: str | None = None) -> None:
        """Send the error to the client, a page of that origin where it is known, and report it for the log."""
        transport = self.transport
        if transport is not None:
            peer = transport.get_extra_info("peername")
            manager = cast(Listener, self._manager)
            manager.on_unreadable(str(peer[0]) if isinstance(peer, tuple) else UNIX, error.message)
            self.send(final_response(error, manager.origins.headers(origin)))


class Listener(web.Server):
    """aiohttp's low-level server: no router, no middleware; every request goes to one handler.

    `handler_cancellation` cancels the handler of a client that leaves (`run_app` and `AppRunner` leave it off).
    """

    def __init__(
        self,
        handler: Handler,
        *,
        max_connections: int,
        max_header: int,
        max_headers: int = 128,
        max_head: int = 64 * 1024,
        proxies: TrustedProxies | None = None,
        times: Times | None = None,
        origins: Origins | None = None,
        lingering: float = LINGERING_SECONDS,
        on_refused: Callable[[], None] = lambda: None,
        on_unreadable: Callable[[str, str], None] = lambda peer, why: None,
    ) -> None:
        self._times = times or Times()
        self._limits: dict[str, Any] = {
            "keepalive_timeout": self._times.idle,
            "lingering_time": lingering,
            "max_line_size": max_header,
            "max_field_size": max_header,
            "max_headers": max_headers,
            "read_bufsize": READ_BYTES,
            "access_log": None,
            "auto_decompress": False,
        }
        super().__init__(cast(Any, handler), handler_cancellation=True, **self._limits)
        self.handler = handler
        self._max_head = max_head
        self.reading = ReadBudget(self._loop, TURN_BYTES)
        self._heads = KnownHeads(max_head)
        self._sweeper: asyncio.TimerHandle | None = None
        connections = cast("Collection[Evictable]", self._connections)
        self.limit = ConnectionLimit(max_connections, connections, self._loop)
        self.leaving = False  # each connection's next answer is its last
        self._emptied = asyncio.Event()
        self.origins = origins or Origins()
        self._proxies = proxies  # their connections begin with a PROXY protocol header
        self.on_refused = on_refused
        self.on_unreadable = on_unreadable  # called with the peer and the reason for a malformed request

    def __call__(self) -> RequestHandler:
        handler = ClientConnection(self, loop=self._loop, **self._limits)
        handler.max_head, handler.heads = self._max_head, self._heads
        return handler

    @property
    def busy(self) -> int:
        """Connections on which a request is being answered."""
        return sum(handler._request_in_progress for handler in self.connections)

    async def finish(self, seconds: float) -> None:
        """Wait for the requests under way, at most so many seconds; each connection is closed after its answer.
        Idle connections stay open, so that a request that a client is sending on one is still answered, by 503."""
        waiters = []
        for handler in self.connections:
            if handler._request_in_progress:
                waiters.append(cast(ClientConnection, handler).finish())
        if waiters and seconds > 0:
            await asyncio.wait(waiters, timeout=seconds)

    async def leave(self, seconds: float) -> None:
        """Answer each connection's next request as its last (`Connection: close`), and wait until all have left,
        at most so many seconds. An idle connection stays open: its client may be sending. The listening sockets
        must be closed before."""
        self.leaving = True
        try:
            async with asyncio.timeout(seconds):
                while self.connections:
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            pass  # the drain ends them

    def connection_made(self, handler: RequestHandler, transport: Any) -> None:
        try:
            self._welcome(cast(ClientConnection, handler), transport)
        except Exception as e:  # noqa: BLE001 - a connection without its task would stay open for ever
            raised("a connection that begins", e)
            transport.abort()

    def _welcome(self, ours: ClientConnection, transport: Any) -> None:
        super().connection_made(ours, transport)
        ours.watch(self._loop.time())
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._times.every, self._sweep)
        if not self.limit.admit(ours):
            ours.refuse_full()
        elif self._proxies is not None:
            peer = transport.get_extra_info("peername")
            name = str(peer[0]) if isinstance(peer, tuple) and peer else UNIX
            if self._proxies.trusts(name):
                ours.expect_proxy_header()

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        ours = cast(ClientConnection, handler)
        self.reading.drop(ours)
        ours.forget()
        super().connection_lost(handler, exc)
        if self.leaving:
            self._emptied.set()

    async def shutdown(self, timeout: float | None = None) -> None:
        await super().shutdown(timeout)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self.limit.close()

    def _sweep(self) -> None:
        """Check the timeouts of all connections, by one timer."""
        now = self._loop.time()
        for handler, transport in tuple(self._connections.items()):
            try:
                cast(ClientConnection, handler).look(transport, now, self._times)
            except Exception as e:  # noqa: BLE001 - one connection's fault must not stop the others' timeouts
                words = {"message": "the clock of a client connection", "exception": e}
                self._loop.call_exception_handler(words)
        left = bool(self._connections)
        self._sweeper = self._loop.call_later(self._times.every, self._sweep) if left else None


def source_of(request: ClientRequest) -> str:
    """The client's address in the PROXY protocol header; empty without one."""
    protocol = request.protocol
    return protocol.source if isinstance(protocol, ClientConnection) else ""

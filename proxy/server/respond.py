"""Turns a Subscriber into bytes on the client's socket: heads, chunks, one JSON body, errors, and backpressure for
a slow reader (`write_until_done`, `wait_writable`)."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final, cast

import msgspec
from aiohttp import HttpVersion11

from proxy.errors import Code, GatewayError
from proxy.flights import FREE, RATE_LIMITS, SLICE_BYTES, Flight, Held, Mode, Phase, Pipe, Subscriber, refused
from proxy.flights.resuming import Numbered
from proxy.server.context import Resumable
from proxy.server.listener.listener import ClientConnection
from proxy.server.listener.request import Request
from proxy.wire import KEEP_ALIVE, LAST_CHUNK, chunk, encode
from proxy.wire.fold import Unfoldable, fold, forces_tool
from proxy.wire.http import SECURITY_LINES

Headers = Iterable[tuple[str, str]]
Passed = tuple[tuple[str, str], ...]
"""An engine's headers, as its `Head` has them."""
Body = bytes | Sequence[bytes]
"""A complete body: bytes, or pieces that may be shared with other readers and are not copied."""
WaitWritable = Callable[[], Awaitable[None]]
"""Waits until the client has taken what was written."""
Remainder = Iterator[bytes | memoryview]
"""The rest of a response, slice by slice."""

FOLD_COST: Final = 4
"""Peak memory of folding a stream, in multiples of its log (the log included)."""
_STREAM: Final = Mode.STREAM
_DATES: Final = 2  # cached texts, one a second
_HEADS: Final = 64  # the same of engines' heads: one for each second, status and engine
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_JSON: Final = (("content-type", "application/json"),)
_SSE: Final = (("content-type", "text/event-stream; charset=utf-8"),)
_TITLE: Final = re.compile(rb"<title[^<>]*>([^<]+)", re.IGNORECASE)
_TAG: Final = re.compile(rb"<[^<>]*>")
_INDENTED: Final = 64  # bytes of white space before an object, at most
_SEARCHED: Final = 4096  # bytes of an engine's error that is not JSON
_QUOTED: Final = 200  # characters of it that a client gets
_PARTS: Final = 4  # looks at a stream within the time of one keep-alive: a silence lasts a quarter longer at most
_END: Final = SECURITY_LINES + "\r\n"


class Sent(msgspec.Struct, frozen=True, gc=False):
    """A response whose bytes are on the socket."""

    status: int
    keep_alive: bool  # whether the connection may serve another request
    bytes: int  # framing included


class SocketPipe:
    """A client's socket as a Pipe. The head goes out with the first frame, in one write."""

    __slots__ = ("_bare", "_mute", "_plain", "_protocol", "_transport", "head", "sent")

    def __init__(self, request: Request, head: bytes, *, bare: bool = False, mute: bool = False) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has left")
        self._transport = transport
        self._protocol = cast(ClientConnection, request.protocol)
        self.head = head
        self.sent = 0  # bytes, framing included
        self._bare = bare  # HTTP/1.0: no chunks
        self._plain = False  # the head is out, and what follows goes out as it is
        self._mute = mute  # HEAD, 204, 304: no body at all
        self._protocol.count(self)

    @property
    def paused(self) -> bool:
        """The client has not taken what was written."""
        return self._protocol.write_paused

    def write(self, data: bytes | memoryview) -> bool:
        transport = self._transport
        if transport.is_closing():
            return True  # the client has left, and its handler will be cancelled: uvloop's write would raise
        if not self._plain:
            if self._mute:
                data = b""
            elif self._bare:
                data = dechunk(bytes(data))
            if self.head:
                data, self.head = self.head + data, b""
            self._plain = not (self._mute or self._bare)
        self.sent += len(data)
        transport.write(data)
        return not self._protocol.write_paused


def socket_of(pipe: Pipe | None) -> SocketPipe | None:
    """The client's socket that a pipe writes to; None where it writes to no socket."""
    end = pipe.pipe if isinstance(pipe, Numbered) else pipe
    return end if isinstance(end, SocketPipe) else None


async def stream(
    request: Request,
    reader: Subscriber,
    headers: Headers,
    wait_writable: WaitWritable,
    *,
    limited: bool = False,
    every: float = 0.0,
    resumable: Resumable | None = None,
) -> Sent:
    """Write a Flight that can be answered to the client, as it grows, and no faster than the client takes it.
    `limited`: `headers` tell the client's rate limits. `every`: seconds of silence until a keep-alive; 0: none.
    `resumable`: its client may come back, and what it has.

    Raises the Flight's GatewayError if nothing went out yet; TimeoutError for a stalled client.
    """
    flight = reader.flight
    if flight.error is not None and not flight.view(usage=reader.usage):
        raise flight.error
    chunks = request.version >= HttpVersion11
    keep = request.keep_alive and chunks
    status = flight.head.status if flight.head else 200
    passed = tuple(response_headers(flight, limited))
    head = write_head(status, [*body_framing(flight, chunks), *headers], keep_alive=keep, passed=passed)
    length = flight.head.length if flight.head and flight.mode is Mode.RAW else None
    pipe = SocketPipe(
        request,
        head,
        bare=not chunks and length is None,
        mute=request.method == "HEAD" or status in (204, 304),
    )
    # `dechunk` takes whole ones
    reader.write_to(pipe if resumable is None else resumable.pipe(pipe), whole_chunks=not chunks)
    if pipe.head and (flight.mode is Mode.RAW or resumable is not None):
        pipe.write(b"")  # no body yet, or none at all: the head is an answer in itself
    await write_until_done(reader, wait_writable, every)
    if flight.phase is Phase.FAILED and (flight.mode is Mode.RAW or not chunks):
        keep = False  # no clean end: the client must see that the answer is not whole
        if request.transport is not None:
            request.transport.close()
    return Sent(status, keep, pipe.sent)


async def stream_late(
    request: Request,
    reader: Subscriber,
    headers: Headers,
    wait_writable: WaitWritable,
    every: float,
    resumable: Resumable | None = None,
) -> tuple[Sent, str | None]:
    """A stream whose client has waited long: the head goes out now, and a comment every so many seconds until the
    answer begins, so that no balancer takes the connection for dead. A failure from now on is an error frame.
    Returns its code too, where the answer is one body in place of a stream."""
    head = write_head(200, [("transfer-encoding", "chunked"), *_SSE, *headers], keep_alive=request.keep_alive)
    pipe = SocketPipe(request, head)
    reader.hold(pipe if resumable is None else resumable.pipe(pipe))
    again = keep_alive(reader.flight)
    pipe.write(again)
    while not await reader.ready_within(every):
        if not pipe.paused:  # else the client does not read: more would only fill memory
            pipe.write(again)
    if reader.flight.mode is Mode.WHOLE:
        await reader.complete()
        error = _error_of(reader.flight)
        reader.end_writing()
        pipe.write(chunk(error) + LAST_CHUNK)
        return Sent(200, request.keep_alive, pipe.sent), Code.UPSTREAM_ERROR_FRAME.code
    reader.resume()
    await write_until_done(reader, wait_writable, 0.0 if reader.flight.spec.event_api is None else every)
    return Sent(200, request.keep_alive, pipe.sent), None


def head_only(request: Request, headers: Headers) -> Sent:
    """The head of a stream, in answer to HEAD."""
    framing = [("transfer-encoding", "chunked"), *_SSE]
    pipe = SocketPipe(request, write_head(200, [*framing, *headers], keep_alive=request.keep_alive), mute=True)
    pipe.write(b"")
    return Sent(200, request.keep_alive, pipe.sent)


def keep_alive(flight: Flight) -> bytes:
    """A chunk that says nothing, in the form of the flight's API."""
    event_api = flight.spec.event_api
    return chunk(KEEP_ALIVE if event_api is None else event_api.keep_alive)


def _error_of(flight: Flight) -> bytes:
    """What one body in place of a stream says, as a frame: an error, ours or the engine's."""
    if flight.error is not None:
        return flight.error_frame(flight.error)
    body = b"".join(flight.log)
    if flight.head is not None and flight.head.status >= 400:
        event_api, status = flight.spec.event_api, flight.head.status
        try:
            if event_api is None:
                return encode(msgspec.json.format(body, indent=-1))
            return event_api.passed_event(msgspec.json.decode(body), status, flight.spec.request_id, flight.number)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return flight.error_frame(_not_json(status, body))
    return flight.error_frame(
        GatewayError(Code.UPSTREAM_PROTOCOL, "The engine answered a request for a stream with one body.")
    )


def _is_json(headers: Headers, log: Sequence[bytes]) -> bool:
    """Whether an engine's error is JSON, as it says or as it begins."""
    if any(name == "content-type" and "json" in value.lower() for name, value in headers):
        return True
    return bool(log) and log[0][:_INDENTED].lstrip().startswith(b"{")


def _not_json(status: int, body: bytes) -> GatewayError:
    """The error for an engine's error that is not JSON, such as a balancer's page: its title or first words."""
    begin = body[:_SEARCHED]
    title = _TITLE.search(begin)
    text = (title[1] if title is not None else _TAG.sub(b" ", begin)).decode("utf-8", "replace")
    said = "".join(c for c in " ".join(text.split()) if c.isprintable())[:_QUOTED].strip(" .")
    return GatewayError(Code.UPSTREAM_PROTOCOL, f"The engine answered {status}{f': {said}' if said else ''}.")


async def write_until_done(reader: Subscriber, wait_writable: WaitWritable, every: float = 0.0) -> None:
    """Write a Flight until its end. A reader that lags is written to by its own task, after `wait_writable`.
    `every`: seconds of silence until a keep-alive; 0: none."""
    flight = reader.flight
    silent, sent = 0, 0  # looks since something was written
    while not reader.done:
        if reader.broken or (flight.ended and not reader.lagging and not _writes_rest(reader)):
            raise ConnectionResetError("a part of the answer could not be written")
        if not reader.lagging:
            if not flight.ended:
                if not every:
                    await reader.changed()
                elif not await reader.changed_within(every / _PARTS):
                    silent, sent = (silent + 1, sent) if reader.sent == sent else (1, reader.sent)
                    if silent >= _PARTS:
                        silent = 0
                        _keep_alive(reader)
            continue
        if flight.throttle is not None and flight.private:
            flight.throttle(True)
        await wait_writable()
        if not reader.resume():
            await asyncio.sleep(0)  # a client that takes all at once does not keep the others waiting
            continue
        flight.trim()
        if flight.throttle is not None and flight.private:
            flight.throttle(False)


def _keep_alive(reader: Subscriber) -> None:
    """Write a keep-alive, where the last write ended with an event and the client takes it."""
    pipe = reader.pipe
    socket = socket_of(pipe)
    if pipe is None or socket is None or socket.paused:
        return
    if not (reader.offset or reader.lagging or reader.flight.ended):
        pipe.write(keep_alive(reader.flight))


def _writes_rest(reader: Subscriber) -> bool:
    """Write what a reader lacks of a flight that has ended: mostly nothing, but its end may have raised."""
    reader.pump()
    return reader.done or reader.lagging


def json_response(flight: Flight, *, limited: bool = False) -> tuple[int, Headers, Body]:
    """Status, headers and body of a Flight that has ended. Raises the Flight's GatewayError; Unfoldable where a
    stream's frames hold something that only the engine can put into a body."""
    if flight.error is not None:
        raise flight.error
    head = flight.head
    headers: Headers = head.headers if head is not None else ()
    if limited:
        headers = without_rates(headers)
    if flight.mode is _STREAM:
        return 200, [*_JSON, *(header for header in headers if header[0] != "content-type")], folded_body(flight)
    log = flight.log
    status = head.status if head is not None else 200
    if status >= 400 and flight.spec.api_request is not None and not _is_json(headers, log):
        kept = [header for header in headers if not header[0].startswith("content-")]
        return status, [*_JSON, *kept], _not_json(status, log[0] if log else b"").json()
    return status, headers, log[0] if len(log) == 1 else log


def write(
    request: Request, status: int, headers: Headers, body: Body, *, keep: bool = True, passed: Passed = ()
) -> tuple[Sent, Remainder | None]:
    """Write a response: a small one at once, of a large one its first slice. `passed`: the engine's headers, which
    are the same for many answers. Returns the rest, for `write_rest`;
    None: there is none, and the client takes what is written. Raises ConnectionResetError where it has left."""
    protocol: ClientConnection | None = request.protocol
    if protocol is None or protocol.transport is None:
        raise ConnectionResetError("the client has left")
    keep = keep and request.keep_alive
    if keep and request.version < HttpVersion11:
        headers = (*headers, ("connection", "keep-alive"))  # else a client of HTTP/1.0 waits for the close
    left: Remainder | None = None
    size = later = 0
    if status in (204, 304):
        data = write_head(status, headers, keep_alive=keep, passed=passed)
    else:
        size = len(body) if body.__class__ is bytes else sum(map(len, body))  # type: ignore[arg-type]
        data = write_head(status, (("content-length", str(size)), *headers), keep_alive=keep, passed=passed)
        if request.method != "HEAD":
            if size > SLICE_BYTES:
                left = slices((body,) if isinstance(body, bytes) else body)
                first = next(left)
                later = size - len(first)
                data += first
            else:
                data += body if body.__class__ is bytes else b"".join(cast(Sequence[bytes], body))
    protocol.send(data)
    if left is None and protocol.write_paused:
        left = iter(())
    return Sent(status, keep, len(data) + later), left


def slices(pieces: Iterable[bytes]) -> Iterator[bytes | memoryview]:
    """Pieces of any size as writes of a bounded one. Nothing is copied but pieces smaller than that."""
    small: list[bytes] = []
    size = 0
    for piece in pieces:
        if size + len(piece) > SLICE_BYTES and small:
            yield b"".join(small)
            small, size = [], 0
        if len(piece) <= SLICE_BYTES:
            small.append(piece)
            size += len(piece)
            continue
        view = memoryview(piece)
        for at in range(0, len(view), SLICE_BYTES):
            yield view[at : at + SLICE_BYTES]
    if small:
        yield b"".join(small)


async def write_rest(request: Request, left: Remainder, wait_writable: WaitWritable) -> None:
    """Write the rest, each slice once the client has taken the one before. Raises ConnectionResetError."""
    protocol = cast(ClientConnection, request.protocol)
    await wait_writable()
    for data in left:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has left")
        protocol.send(data)
        await asyncio.sleep(0)  # a client that takes all at once does not keep the others waiting
        await wait_writable()


async def wait_writable(request: Request, stall: float, held: Held | None = None) -> None:
    """Wait until the client has taken what was written. TimeoutError where it takes nothing for `stall` seconds;
    0 is no limit. What waits is charged to `held`: ConnectionResetError where there is no room, the client is cut.
    """
    protocol = cast(ClientConnection, request.protocol)
    transport = request.transport
    if not protocol.write_paused or transport is None:
        await protocol.drain()  # raises where the client has left
        return
    unread = transport.get_write_buffer_size()
    if held is not None and not held.resize(unread):
        transport.abort()
        raise ConnectionResetError("no memory is left for what the client has not taken")
    try:
        before = protocol.written - unread
        while True:
            try:
                async with asyncio.timeout(stall or None):
                    await protocol.drain()
                return
            except TimeoutError:
                now = protocol.written - transport.get_write_buffer_size()
                if now <= before:
                    raise
                before = now
    finally:
        if held is not None:
            held.release()


def folded_body(flight: Flight) -> bytes:
    """The JSON body of a landed stream, folded once for all readers. Raises Unfoldable."""
    if flight.folded is None:
        api_request = flight.spec.api_request
        if api_request is None or api_request.endpoint == "embeddings":
            raise Unfoldable("this endpoint does not stream")
        if flight.size > FREE and not flight.charge(FOLD_COST * flight.size):
            raise refused()
        frames = flight.raw_frames()
        forced = forces_tool(api_request.fields)
        flight.keep_fold(fold(frames, api_request.endpoint, forced_tool=forced, shape=flight.shape))
    assert flight.folded is not None
    return flight.folded


def error_headers(error: GatewayError) -> list[tuple[str, str]]:
    headers = [("content-type", "application/json"), *error.headers]
    if error.retry_after is not None:
        headers.append(("retry-after", str(error.retry_after)))
    if error.status == 401:
        headers.append(("www-authenticate", "Bearer"))  # RFC 9110 11.6.1: a 401 has one
    return headers


def body_framing(flight: Flight, chunks: bool) -> list[tuple[str, str]]:
    """The header that delimits the body."""
    head = flight.head
    if head is not None and flight.mode is Mode.RAW:
        if head.status == 204:
            return []  # RFC 9110 8.6: no length either
        if head.length is not None:
            return [("content-length", str(head.length))]
        if head.status == 304:
            return []
    return [("transfer-encoding", "chunked")] if chunks else []


def response_headers(flight: Flight, limited: bool) -> Headers:
    """The engine's headers that are passed on. `limited`: without its rate limits, as the client gets the
    gateway's."""
    if flight.head is None:
        return _SSE
    return without_rates(flight.head.headers) if limited else flight.head.headers


def without_rates(headers: Headers) -> list[tuple[str, str]]:
    return [header for header in headers if header[0] not in RATE_LIMITS]


def write_head(status: int, headers: Headers, *, keep_alive: bool, passed: Passed = ()) -> bytes:
    """Status line and headers, `passed` first. A line break in a value raises AssertionError."""
    first, dated = _begin(status, passed)
    lines = []
    for name, value in headers:
        lines.append(f"{name}: {value}")
        if name == "date":
            dated = True
    text = " ".join(lines)
    if "\n" in text or "\r" in text:  # to count them in the whole head takes four times as long
        raise AssertionError("a header has a line break in it")
    if not dated:
        lines.append(_date(int(time.time())))
    if not keep_alive:
        lines.append("connection: close")
    lines.append(_END)
    return first + "\r\n".join(lines).encode("latin-1", "replace")


@lru_cache(_HEADS)
def _begin(status: int, headers: Passed) -> tuple[bytes, bool]:
    """Status line and an engine's headers, and whether the date is among them."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}", *map(": ".join, headers), ""]
    head = "\r\n".join(lines)
    if head.count("\r") != len(lines) - 1 or head.count("\n") != len(lines) - 1:
        raise AssertionError("a header has a line break in it")
    return head.encode("latin-1", "replace"), any(name == "date" for name, _ in headers)


def dechunk(data: bytes) -> bytes:
    """The content of the gateway's own chunks, for a client of HTTP/1.0."""
    pieces, at = [], 0
    while at < len(data):
        line = data.index(b"\r\n", at)
        size = int(data[at:line], 16)
        pieces.append(data[line + 2 : line + 2 + size])
        at = line + 2 + size + 2
    return b"".join(pieces)


@lru_cache(_DATES)
def _date(second: int) -> str:
    return "date: " + formatdate(second, usegmt=True)

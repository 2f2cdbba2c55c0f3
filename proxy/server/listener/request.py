"""A client's request as handlers get it: the validated head, and the body where it came with its head."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from aiohttp import StreamReader
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion
from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.wire import settable
from proxy.wire.http import Target

AT_HAND: Final = 32 * 1024
"""Bytes of a body that may lie in aiohttp's buffer: below what pauses the reading of the connection."""


class KnownHead(msgspec.Struct, frozen=True, eq=False):
    """A head that came before, but for its Content-Length. `message` is that of its first request: that one's body
    has a size of its own."""

    message: RawRequestMessage
    target: Target
    host: str
    name: str  # Content-Length, as its client writes it
    raw_name: bytes
    before: tuple[tuple[bytes, bytes], ...]  # raw headers before that one
    after: tuple[tuple[bytes, bytes], ...]
    plain: bool
    made: dict[str, Any] = {}
    """What handlers have made of it, for every request that has it."""

    def headers(self, size: int) -> CIMultiDictProxy[str]:
        """Those of a request with a body of so many bytes."""
        headers = CIMultiDict(self.message.headers)
        headers[self.name] = str(size)
        return CIMultiDictProxy(headers)


@settable
class Request(msgspec.Struct, eq=False):
    """One request. Not aiohttp's `BaseRequest`, which takes 3 µs to make, reads the raw target and gives each fact
    by a property. A Struct, made in C."""

    method: str
    path: str
    """The target's normal form: percent-decoded, no empty or dot segments, no slash at the end."""
    raw_path: str
    """That path and the query, encoded anew, for an engine. Not the client's bytes."""
    host: str
    """Without its port, in lower case; of an absolute-form target its own. Empty: HTTP/1.0 without one."""
    version: HttpVersion
    keep_alive: bool
    protocol: Any
    """The ClientConnection."""
    task: asyncio.Task[None]
    """Answers this request, and all others of its connection. None after the request."""
    body: bytes | None
    """The body where it has come, in one small piece, as nearly always; else see `buffered_body`."""
    _content: StreamReader | None = None
    _headers: CIMultiDictProxy[str] | None = None
    _raw_headers: tuple[tuple[bytes, bytes], ...] | None = None
    plain: bool = False
    """None of its headers asks the gateway for anything, and its body is JSON, not encoded."""
    _known: KnownHead | None = None
    made: dict[str, Any] | None = None
    """What handlers have made of a head that its client repeats, for all its requests; None: of another head."""

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        headers = self._headers
        if headers is None:
            assert self._known is not None
            headers = self._headers = self._known.headers(len(self.body or b""))
        return headers

    @property
    def raw_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        raw = self._raw_headers
        if raw is None:
            known = self._known
            assert known is not None
            size = str(len(self.body or b"")).encode()
            raw = self._raw_headers = (*known.before, (known.raw_name, size), *known.after)
        return raw

    def closes(self) -> None:
        """It is the last one of its connection."""
        self.keep_alive = False

    def end(self) -> None:
        """It is answered: one reference cycle less."""
        self.task = None  # type: ignore[assignment]

    @property
    def content(self) -> StreamReader:
        """The body as a stream."""
        content = self._content
        if content is None:
            content = self._content = StreamReader(self.protocol, AT_HAND, loop=self.protocol._loop)
            content.feed_data(self.body or b"")
            content.feed_eof()
        return content

    @property
    def transport(self) -> asyncio.Transport | None:
        """None: the client has left."""
        transport: asyncio.Transport | None = self.protocol.transport
        return transport

    @property
    def content_length(self) -> int | None:
        length = self.headers.get("content-length")
        return None if length is None else int(length)

    @property
    def body_exists(self) -> bool:
        """Whether the head announces a body."""
        return self.content is not EMPTY_PAYLOAD

    @property
    def remote(self) -> str | None:
        """The address of the connection's peer; empty through a Unix socket, None where it is not known."""
        peer = self.protocol.peername
        return str(peer[0]) if isinstance(peer, (list, tuple)) else None if peer is None else str(peer)

    def _cancel(self, error: BaseException) -> None:
        """aiohttp calls it when the connection is lost: the reader of the body gets this error."""
        if self._content is not None:
            self._content.set_exception(error)


def read_request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: Any,
    task: asyncio.Task[None] | None,
    target: Target,
    host: str,
) -> Request:
    """The request of a message of the parser's."""
    body = None
    if payload is EMPTY_PAYLOAD:
        body = b""
    elif payload._eof and payload._exception is None and len(payload._buffer) == 1:
        piece = payload._buffer[0]  # it stays there, and is dropped with the request
        if len(piece) < AT_HAND and not payload._buffer_offset:
            body = piece
    path, raw_path, _ = target
    return Request(
        message.method,
        path,
        raw_path,
        host,
        message.version,
        not message.should_close,
        protocol,
        task,  # type: ignore[arg-type]  # None after the connection only
        body,
        payload,
        message.headers,
        message.raw_headers,
    )


def head_bytes(message: RawRequestMessage) -> int:
    """The size of a request's line and header fields, as sent but for white space."""
    fields = sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
    return len(message.method) + len(message.path) + 12 + fields


def buffered_body(content: StreamReader, most: int = AT_HAND) -> bytes | None:
    """A request's body where all of it has come; None where more is to come, or it is over `most` bytes."""
    if content is EMPTY_PAYLOAD:
        return b""
    if not content.is_eof() or content.exception() is not None or content._size > most:
        return None
    return content.read_nowait()

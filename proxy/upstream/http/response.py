"""Owns reading one answer: bytes in, under any split; head, body and the end out, to a Receiver.
Must not know sockets or pools, nor what the body is.
Called by the connection, which makes one for each exchange."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import httptools

from proxy.upstream.http.framing import Framing, InvalidResponse, Kind, framing_of

MAX_HEAD: Final = 64 * 1024  # bytes of status line and headers, interim answers' included
MAX_OVERHEAD: Final = 64 * 1024  # bytes of chunk sizes, extensions and trailers in one run without any body

_END_OF_HEAD: Final = b"\r\n\r\n"
_H: Final = ord("H")
_CHUNKED: Final = Kind.CHUNKED  # a member looked up on its class costs a call in Python 3.11
_NONE: Final = Kind.NONE

_COMMON: Final = (
    "date",
    "server",
    "content-type",
    "content-length",
    "transfer-encoding",
    "connection",
    "x-request-id",
)
_NAMES: Final = {form.encode(): name for name in _COMMON for form in (name, name.title())}
"""Names as engines write them, in lower case: nothing to decode for what every answer has."""


class Sink(Protocol):
    """The part of a Receiver that an answer feeds."""

    def head(self, status: int, headers: list[tuple[str, str]]) -> None: ...
    def body(self, data: bytes) -> None: ...


class ResponseParser:
    """One answer. It is read to where its own framing says, and not a byte beyond."""

    __slots__ = (
        "_bodiless",
        "_chunks",
        "_end",
        "_head_bytes",
        "_head_done",
        "_headers",
        "_left",
        "_overhead",
        "_parse",
        "_parser",
        "_pieces",
        "_tail",
        "framing",
        "on_body",
        "status",
        "surplus",
        "to",
    )

    def __init__(self, to: Sink, *, bodiless: bool) -> None:
        self.to = to
        self.framing: Framing | None = None  # None until the head is complete
        self.status = 0  # of the answer itself, once its head is complete
        self.surplus = False  # something came after the end: nobody can tell what, or for whom
        self._bodiless = bodiless
        self._headers: list[tuple[str, str]] = []
        self._head_bytes = 0
        self._head_done = False
        self._tail = b""  # the last bytes of the head so far, where its end may begin
        self._chunks = False
        self._left = 0  # bytes of a counted body to come
        self._overhead = 0
        self._end = -1  # how many pieces of this read belong to the answer, once it has ended
        self._pieces: list[bytes] = []
        # httptools calls this for each chunk: a C function, no frame of Python. They go on after it.
        self.on_body = self._pieces.append
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._parse: Callable[[bytes], None] = self._parser.feed_data

    @property
    def until_close(self) -> bool:
        return self.framing is not None and self.framing.kind is Kind.UNTIL_CLOSE

    def feed(self, data: bytes) -> bool:
        """True where the answer has ended. Raises Refused; what came before the fault has gone out by then."""
        if self._chunks:
            # The way of every token: what is done here, once a read, is all that is added to the parser's work.
            try:
                self._parse(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
                return self._chunks_over(data, _refused(e))
            pieces = self._pieces
            if self._end >= 0 or not pieces:
                return self._chunks_over(data, None)
            self._overhead = 0
            if len(pieces) == 1:
                self.to.body(pieces.pop())
            else:
                self._hand_out()
            return False
        if self.framing is None:
            return self._read_head(data)
        if self._left:
            return self._read_counted(data)
        self.to.body(data)  # until the connection closes
        return False

    def close(self) -> None:
        """Let go of the parser: it and its answer hold each other, and would wait for the garbage collector."""
        self._parser = None
        self._parse = _ignore

    # -- the head ---------------------------------------------------------------------------------

    def _read_head(self, data: bytes) -> bool:
        """Heads are cut off exactly where they end, so that all that follows is known to be body or surplus."""
        while data:
            tail = self._tail
            if not tail and data[0] != _H:  # the parser also takes RTSP, ICE and line breaks before
                raise InvalidResponse("it does not begin as HTTP/1.1 does")
            whole = tail + data if tail else data
            end = whole.find(_END_OF_HEAD)
            cut = len(data) if end < 0 else end + 4 - len(tail)
            self._head_bytes += cut
            if self._head_bytes > MAX_HEAD:
                raise InvalidResponse(f"its head is larger than {MAX_HEAD} bytes")
            try:
                self._parse(data[:cut])
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
                raise _refused(e) from None
            if end < 0:
                self._tail = whole[-3:]
                return False
            data = data[cut:]
            if self._begin_body():
                return self._first_body(data)
            # An interim answer: the answer itself is still to come.
            self._tail, self._headers, self._head_done = b"", [], False
        return False

    def _begin_body(self) -> bool:
        """Whether the head that is complete is the answer's own; then it goes out."""
        parser, headers = self._parser, self._headers
        if parser is None or not self._head_done:
            raise InvalidResponse("its head does not end where it should")
        status = parser.get_status_code()
        framing = framing_of(parser.get_http_version(), status, headers, bodiless=self._bodiless)
        if framing is None:
            return False
        self.framing, self.status = framing, status
        self._left = framing.length
        self._chunks = framing.kind is _CHUNKED
        self.to.head(status, headers)
        return True

    def _first_body(self, data: bytes) -> bool:
        if self.framing is not None and self.framing.kind is _NONE:
            self.surplus = bool(data)
            return True
        return self.feed(data) if data else False

    # -- the body ---------------------------------------------------------------------------------

    def _read_counted(self, data: bytes) -> bool:
        left = self._left - len(data)
        self._left = max(0, left)
        self.surplus = left < 0
        self.to.body(data if left >= 0 else data[:left])
        return left <= 0

    def _hand_out(self) -> None:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.to.body(data)

    def _chunks_over(self, data: bytes, fault: InvalidResponse | None) -> bool:
        """After a read of chunks that had the end in it, or a fault, or no body."""
        pieces = self._pieces
        if self.surplus:
            del pieces[self._end :]  # of another answer, which nobody asked for
        if pieces:
            self._hand_out()
        else:
            self._overhead += len(data)
        if self._end >= 0:
            self.surplus = self.surplus or fault is not None
            return True
        if fault is not None:
            raise fault
        if self._overhead > MAX_OVERHEAD:
            raise InvalidResponse(f"{MAX_OVERHEAD} bytes of its chunks and more are no body")
        return False

    # -- httptools callbacks ----------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.framing is None:  # else a trailer: not passed on, and it may not pass for a header
            low = _NAMES.get(name) or name.decode("latin-1").lower()
            self._headers.append((low, value.decode("latin-1").rstrip(" \t")))

    def on_headers_complete(self) -> None:
        self._head_done = True

    def on_message_complete(self) -> None:
        if self._chunks and self._end < 0:
            self._end = len(self._pieces)

    def on_message_begin(self) -> None:
        if self._end >= 0:
            self.surplus = True


def _refused(e: Exception) -> InvalidResponse:
    if isinstance(e, httptools.HttpParserUpgrade):
        return InvalidResponse("it wants to switch protocols")
    return InvalidResponse(f"it does not speak HTTP/1.1 as it should ({e})")


def _ignore(data: bytes) -> None:
    """In a parser's place, once nobody listens to its answer."""

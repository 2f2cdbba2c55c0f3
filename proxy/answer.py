"""Owns reading one answer: bytes in, under any split; head, body and the end out, to a Receiver.
Must not know sockets or pools, nor what the body is.
Called by the connection, which makes one for each exchange."""

from __future__ import annotations

from typing import Final, Protocol

import httptools

from proxy.framing import Framing, Kind, Refused, framing_of

MAX_HEAD: Final = 64 * 1024  # bytes of status line and headers, interim answers' included
MAX_OVERHEAD: Final = 64 * 1024  # bytes of chunk sizes, extensions and trailers in one run without any body

_END_OF_HEAD: Final = b"\r\n\r\n"
_H: Final = ord("H")


class Sink(Protocol):
    """The part of a Receiver that an answer feeds."""

    def head(self, status: int, headers: list[tuple[str, str]]) -> None: ...
    def body(self, data: bytes) -> None: ...


class Answer:
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
        "_parser",
        "_pieces",
        "_tail",
        "framing",
        "on_body",
        "surplus",
        "to",
    )

    def __init__(self, to: Sink, *, bodiless: bool) -> None:
        self.to = to
        self.framing: Framing | None = None  # None until the head is complete
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
        # httptools calls this for each chunk: a C function, no frame of Python. A read's pieces go on together.
        self.on_body = self._pieces.append
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    @property
    def until_close(self) -> bool:
        return self.framing is not None and self.framing.kind is Kind.UNTIL_CLOSE

    def feed(self, data: bytes) -> bool:
        """True where the answer has ended. Raises Refused; what came before the fault has gone out by then."""
        if self._chunks:
            return self._read_chunks(data)
        if self.framing is None:
            return self._read_head(data)
        if self._left:
            return self._read_counted(data)
        self.to.body(data)  # until the connection closes
        return False

    def close(self) -> None:
        """Let go of the parser: it and its answer hold each other, and would wait for the garbage collector."""
        self._parser = None

    # -- the head ---------------------------------------------------------------------------------

    def _read_head(self, data: bytes) -> bool:
        """Heads are cut off exactly where they end, so that all that follows is known to be body or surplus."""
        while data:
            if not self._tail and data[0] != _H:  # the parser also takes RTSP, ICE and line breaks before
                raise Refused("it does not begin as HTTP/1.1 does")
            whole = self._tail + data
            end = whole.find(_END_OF_HEAD)
            cut = len(data) if end < 0 else end + len(_END_OF_HEAD) - len(self._tail)
            self._head_bytes += cut
            if self._head_bytes > MAX_HEAD:
                raise Refused(f"its head is larger than {MAX_HEAD} bytes")
            self._parse(data[:cut])
            if end < 0:
                self._tail = whole[1 - len(_END_OF_HEAD) :]
                return False
            self._tail, data = b"", data[cut:]
            if self._begin_body():
                return self._first_body(data)
            self._headers, self._head_done = [], False  # an interim answer: the answer itself is still to come
        return False

    def _begin_body(self) -> bool:
        """Whether the head that is complete is the answer's own; then it goes out."""
        parser = self._parser
        if parser is None or not self._head_done:
            raise Refused("its head does not end where it should")
        status = parser.get_status_code()
        framing = framing_of(parser.get_http_version(), status, self._headers, bodiless=self._bodiless)
        if framing is None:
            return False
        self.framing = framing
        self._left = framing.length
        self._chunks = framing.kind is Kind.CHUNKED
        self.to.head(status, self._headers)
        return True

    def _first_body(self, data: bytes) -> bool:
        if self.framing is not None and self.framing.kind is Kind.NONE:
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

    def _read_chunks(self, data: bytes) -> bool:
        pieces, fault = self._pieces, None
        try:
            self._parse(data)
        except Refused as e:
            fault = e
        if self.surplus:
            del pieces[self._end :]  # of another answer, which nobody asked for
        if pieces:
            self._overhead = 0
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            self.to.body(body)
        else:
            self._overhead += len(data)
        if self._end >= 0:
            self.surplus = self.surplus or fault is not None
            return True
        if fault is not None:
            raise fault
        if self._overhead > MAX_OVERHEAD:
            raise Refused(f"{MAX_OVERHEAD} bytes of its chunks and more are no body")
        return False

    def _parse(self, data: bytes) -> None:
        if self._parser is None:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise Refused("it wants to switch protocols") from None
        except httptools.HttpParserError as e:
            raise Refused(f"it does not speak HTTP/1.1 as it should ({e})") from None

    # -- httptools callbacks ----------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.framing is None:  # else a trailer: not passed on, and it may not pass for a header
            self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1").rstrip(" \t")))

    def on_headers_complete(self) -> None:
        self._head_done = True

    def on_message_complete(self) -> None:
        if self._chunks and self._end < 0:
            self._end = len(self._pieces)

    def on_message_begin(self) -> None:
        if self._end >= 0:
            self.surplus = True

"""The parser of one response: bytes in, under any split; head, body and end out, to a Receiver."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Final, Protocol

import httptools
import msgspec

from proxy.upstream.http.framing import MAX_HEADERS, Framing, InvalidResponse, Kind, framing_of
from proxy.wire import LAST_CHUNK, settable

NO_STATUS_LINE: Final = "no HTTP/1.x status line"
MAX_HEAD: Final = 64 * 1024  # bytes of status line and headers, including interim responses
MAX_OVERHEAD: Final = 64 * 1024  # bytes of chunk sizes, extensions and trailers in a row without body

_END_OF_HEAD: Final = b"\r\n\r\n"
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,4})\r\n")
_H: Final = ord("H")
_CHUNKED: Final = Kind.CHUNKED  # looking up an enum member costs a call in Python 3.11
_COUNTED: Final = Kind.LENGTH
_NONE: Final = Kind.NONE

_PLAIN: Final = re.compile(
    rb"HTTP/1\.1 ([2-5]\d\d)(?: [\t -~]*+)?\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t -~]*+\r\n)++)\r\n"
)
"""A head without anything in which two parsers could differ. Other heads are read by httptools."""
_FIELDS: Final = re.compile(rb"([^:]+):([^\r]*)\r\n")
MAX_DIGITS: Final = 15
_LENGTH: Final = re.compile(rf"\d{{1,{MAX_DIGITS}}}")
_LENGTH_NAME: Final = "content-length"
_NAMED: Final = len(f"\r\n{_LENGTH_NAME}: ")
_NOT_PLAIN: Final = frozenset({"transfer-encoding", "upgrade", "trailer"})

_COMMON: Final = (
    "date",
    "server",
    "content-type",
    "content-length",
    "transfer-encoding",
    "connection",
    "x-request-id",
)
MAX_KNOWN: Final = 256  # heads that are kept, of each kind
KNOWN_BYTES: Final = 1024  # of a head that is kept
FEW: Final = 8  # chunks of one read that are read here
FEW_BYTES: Final = 4096  # of such a read
MAX_MADE: Final = 512  # of what is made of one head: two for each engine

_CHUNKED_HEAD: Final = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

_NAMES: Final = {form.encode(): name for name in _COMMON for form in (name, name.title())}
"""Names as engines write them, to lower case: the common headers need no decoding."""


class KnownHead(msgspec.Struct, frozen=True, eq=False):
    """A head that has come before: a plain one but for its Content-Length, or one of a chunked body."""

    status: int
    before: tuple[tuple[str, str], ...]  # headers before that one
    after: tuple[tuple[str, str], ...]
    made: dict[Hashable, Any] = {}
    """What receivers have made of it, by keys of their own. See `keep`."""
    framing: Framing | None = None  # of a chunked body

    def keep(self, key: Hashable, made: Any) -> None:
        """Have `made` under this key whenever such a head comes."""
        if len(self.made) >= MAX_MADE:
            self.made.clear()  # engines that come and go have other names
        self.made[key] = made


_KNOWN: Final[dict[bytes, KnownHead]] = {}
_KNOWN_CHUNKED: Final[dict[bytes, KnownHead]] = {}
"""By their bytes: an engine's heads are the same for a second but for the length. Parsing one takes 8 µs."""


class Sink(Protocol):
    """The part of a Receiver that the parser calls."""

    def head(self, status: int, headers: list[tuple[str, str]], known: KnownHead | None = None) -> None: ...
    def body(self, data: bytes, wired: bytes = b"") -> None: ...


def _ignore(data: bytes) -> None:
    """Replaces the parser after `close`."""


@settable
class ResponseParser(msgspec.Struct, eq=False):
    """Parses one response, to the end that its framing says and not a byte further. A Struct, which is made in C:
    there is one for each request."""

    to: Sink
    bodiless: bool
    framing: Framing | None = None  # None until the head is complete
    status: int = 0  # once the head is complete
    surplus: bool = False  # bytes came after the end
    between: bool = False  # the next byte begins a chunk, or the end of a chunked body
    _headers: list[tuple[str, str]] = []
    _head_bytes: int = 0
    _head_done: bool = False
    _tail: bytes = b""  # the last bytes of the head so far: its end may begin there
    _chunks: bool = False
    _left: int = 0  # bytes of a Content-Length body to come
    _overhead: int = 0
    _end: int = -1  # number of pieces of this read before the end, once it has come
    _pieces: list[bytes] = []
    _open: list[None] | None = None  # as soon as there is a parser: not empty within a chunk
    on_body: Callable[[bytes], None] | None = None  # this and the next two: likewise
    on_chunk_header: Callable[[], None] | None = None
    on_chunk_complete: Callable[[], None] | None = None
    _parser: httptools.HttpResponseParser | None = None  # made for a head that is not plain
    _parse: Callable[[bytes], None] = _ignore
    _closed: bool = False

    @property
    def until_close(self) -> bool:
        return self.framing is not None and self.framing.kind is Kind.UNTIL_CLOSE

    def feed(self, data: bytes) -> bool:
        """True: the response has ended. Raises InvalidResponse, after the body before the fault has gone out."""
        if self._chunks:
            return self._parse_chunks(data)
        if self.framing is None:
            return self._read_first(data) if self._parser is None else self._read_head(data)
        if self._left:
            return self._read_counted(data)
        self.to.body(data)  # ends with the connection
        return False

    def hand_to(self, to: Sink) -> None:
        """Hand out what follows to another sink."""
        self.to = to

    def close(self, to: Sink) -> None:
        """Release the parser, to break the reference cycle with it. A read under way is handed out to `to`."""
        self.to = to
        self._closed, self.between = True, False
        if self._parser is not None:
            self._parser = None
            self._parse = _ignore

    # -- the head ---------------------------------------------------------------------------------

    def _read_head(self, data: bytes) -> bool:
        """Feed a head exactly up to its end, so that all that follows is body or surplus."""
        if self._parser is None:
            self._begin_parser()
        while data:
            tail = self._tail
            if not tail and data[0] != _H:  # the parser also accepts RTSP, ICE and leading line breaks
                raise InvalidResponse(NO_STATUS_LINE)
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
            head, data = data[:cut], data[cut:]
            if self._begin_body():
                if self.between and self._head_bytes == cut <= KNOWN_BYTES:
                    self._remember(head)
                return self._first_body(data)
            # An interim response: the final one is still to come.
            self._tail, self._headers, self._head_done = b"", [], False
        return False

    def _begin_parser(self) -> None:
        # httptools calls these for each chunk: C functions, no Python frame.
        self.on_body = self._pieces.append
        within: list[None] = []
        self._open = within
        self.on_chunk_header, self.on_chunk_complete = partial(within.append, None), within.clear
        parser = self._parser = httptools.HttpResponseParser(self)
        self._parse = parser.feed_data

    def _remember(self, head: bytes) -> None:
        """Know this head of a chunked body from now on."""
        if any(name == "x-request-id" for name, _ in self._headers):
            return  # another one in each answer
        if len(_KNOWN_CHUNKED) >= MAX_KNOWN:
            _KNOWN_CHUNKED.clear()
        _KNOWN_CHUNKED[head] = KnownHead(self.status, tuple(self._headers), (), framing=self.framing)

    def _read_first(self, data: bytes) -> bool:
        """Feed the first bytes: a plain head with the length of its body and a known one are read here, all others
        by httptools."""
        if self.bodiless:
            return self._read_head(data)
        end = data.find(_END_OF_HEAD)
        at = data.find(b"\r\ncontent-length: ", 0, end)
        if at < 0:
            at = data.find(b"\r\nContent-Length: ", 0, end)
        rest = b""
        if at >= 0 and 0 <= end <= KNOWN_BYTES:
            stop = data.find(b"\r\n", at + 2)
            size = data[at + _NAMED : stop]
            rest = data[:at] + data[stop:end]
            known = _KNOWN.get(rest)
            if known is not None and len(size) <= MAX_DIGITS and size.isdigit() and size.strip(b"0"):
                self.status, self._left = known.status, int(size)
                self.framing = Framing(_COUNTED, self._left, True)
                headers = [*known.before, (_LENGTH_NAME, size.decode()), *known.after]
                self.to.head(known.status, headers, known)
                body = data[end + 4 :]
                return self._read_counted(body) if body else False
        elif at < 0 <= end <= KNOWN_BYTES:
            known = _KNOWN_CHUNKED.get(data[: end + 4])
            if known is not None:
                self.status, self.framing = known.status, known.framing
                self._chunks = self.between = True
                self.to.head(known.status, [*known.before], known)
                body = data[end + 4 :]
                return self.feed(body) if body else False
        head = _PLAIN.match(data)
        if head is None:
            return self._read_head(data)
        status = int(head[1])
        headers = []
        length, place = "", 0
        managed = False  # it says whether the connection is kept
        for name, value in _FIELDS.findall(head[2]):
            low = _NAMES.get(name) or name.decode("ascii").lower()
            text = value.decode("ascii").strip("\t ")
            if low == "content-length":
                if length or _LENGTH.fullmatch(text) is None:
                    return self._read_head(data)
                length, place = text, len(headers)
            elif low in _NOT_PLAIN:
                return self._read_head(data)
            elif low == "connection":
                managed = True
            elif low == "x-request-id":
                rest = b""  # another one in each answer
            headers.append((low, text))
        if not length.strip("0") or head.end() > MAX_HEAD:
            return self._read_head(data)
        framing: Framing | None
        if managed or status == 204 or status == 304 or len(headers) > MAX_HEADERS:
            framing = framing_of("1.1", status, headers)
            if framing is None or framing.kind is not _COUNTED:
                return self._read_head(data)
        else:
            framing = Framing(_COUNTED, int(length), True)
            if rest:
                if len(_KNOWN) >= MAX_KNOWN:
                    _KNOWN.clear()
                _KNOWN[rest] = KnownHead(status, tuple(headers[:place]), tuple(headers[place + 1 :]))
        self.framing, self.status = framing, status
        self._left = framing.length
        self.to.head(status, headers)
        body = data[head.end() :]
        return self._read_counted(body) if body else False

    def _begin_body(self) -> bool:
        """Whether the complete head is the final one; then it goes out."""
        parser, headers = self._parser, self._headers
        if parser is None or not self._head_done:
            raise InvalidResponse("an incomplete head")
        status = parser.get_status_code()
        framing = framing_of(parser.get_http_version(), status, headers, bodiless=self.bodiless)
        if framing is None:
            return False
        self.framing, self.status = framing, status
        self._left = framing.length
        self._chunks = self.between = framing.kind is _CHUNKED
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
        if left < 0:
            self.surplus, data, left = True, data[:left], 0
        self._left = left
        self.to.body(data)
        return not left

    def _read_whole(self, data: bytes) -> bool | None:
        """Read a few whole chunks, perhaps with the end: the first and the last read of a stream. None, with
        nothing handed out: they are others, for httptools. Most streams need no parser so: six calls less."""
        pieces: list[bytes] = []
        at, size, ended = 0, len(data), False
        if size > FEW_BYTES:
            return None
        while at < size:
            line = _CHUNK.match(data, at)
            if line is None or len(pieces) == FEW:
                return None
            begin = line.end()
            stop = begin + int(line[1], 16)
            if begin == stop:
                if data[at:] != LAST_CHUNK:
                    return None  # a trailer, or surplus
                ended = True
                break
            if data[stop : stop + 2] != b"\r\n":
                return None
            pieces.append(data[begin:stop])
            at = stop + 2
        if pieces:
            self._overhead = 0
            self.to.body(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        return ended

    def _parse_chunks(self, data: bytes) -> bool:
        """Feed chunks to httptools."""
        if self.between and (ended := self._read_whole(data)) is not None:
            return ended
        if self._parser is None:  # the head was a known one
            if self._closed:
                return False
            self._begin_parser()
            self._parse(_CHUNKED_HEAD)
        try:
            self._parse(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            return self._chunks_over(data, _refused(e))
        pieces = self._pieces
        self.between = not self._open and data.endswith(b"\r\n")
        if self._end >= 0 or not pieces:
            return self._chunks_over(data, None)
        self._overhead = 0
        self._hand_out()
        return False

    def _hand_out(self) -> None:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.to.body(data)

    def _chunks_over(self, data: bytes, fault: InvalidResponse | None) -> bool:
        """Finish a read of chunks with the end in it, or a fault, or no body."""
        pieces = self._pieces
        if self.surplus:
            del pieces[self._end :]  # of another response, without a request
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
            raise InvalidResponse(f"{MAX_OVERHEAD} bytes of chunk headers without a body")
        return False

    # -- httptools callbacks ----------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.framing is None:  # else a trailer, which is not passed on
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
    """What the parser found. Raises the error of a callback, which is a fault of ours and not the engine's."""
    if isinstance(e, httptools.HttpParserCallbackError):
        raise e
    if isinstance(e, httptools.HttpParserUpgrade):
        return InvalidResponse("a protocol upgrade")
    return InvalidResponse(f"invalid HTTP/1.1 ({e})")

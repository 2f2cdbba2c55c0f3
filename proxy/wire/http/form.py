"""The strict reader of a multipart/form-data body: its parts, their offsets, their texts. Only short texts are
copied."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final, NamedTuple

from proxy.errors import Code, GatewayError

MAX_PARTS: Final = 256
MAX_HEAD: Final = 4096  # bytes of a part's headers
MAX_HEADERS: Final = 8  # of a part; python-multipart's limit
MAX_TEXT: Final = 1024 * 1024  # bytes of a part that is not a file; Starlette's limit

_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_DISPOSITION: Final = re.compile(
    rb'form-data(?:[ \t]*;[ \t]*[!#$%&\'*+.^_`|~0-9A-Za-z-]+=(?:"[^"\\]*"|[^\s";,\\]+))*', re.IGNORECASE
)
_PARAMETER: Final = re.compile(rb';[ \t]*([^\s=;"]+)=(?:"([^"\\]*)"|([^\s";,\\]+))')
_CHARSET: Final = re.compile(rb'charset\s*=\s*"?([^\s";]*)', re.IGNORECASE)
_AS_IT_IS: Final = frozenset({b"binary", b"8bit", b"7bit"})


class Part(NamedTuple):
    """One part; its content is `body[start:end]`."""

    name: str
    file: bool
    start: int
    end: int


class Form:
    """A form's parts, of a body that all readers parse alike."""

    __slots__ = ("body", "boundary", "parts")

    def __init__(self, body: bytes, boundary: bytes, parts: list[Part]) -> None:
        self.body = body
        self.boundary = boundary
        self.parts = parts

    def text(self, name: str) -> str | None:
        """The text of this field; None: absent. Raises GatewayError 400 for a file."""
        for part in self.parts:
            if part.name == name:
                if part.file:
                    raise _refusal(f"the field {name!r} is a file; send it as a text, without a filename", name)
                return self._text(part)
        return None

    def texts(self) -> list[str]:
        """The names of all parts, and the contents of those that are not files."""
        return [part.name for part in self.parts] + [self._text(part) for part in self.parts if not part.file]

    @property
    def files(self) -> list[Part]:
        return [part for part in self.parts if part.file]

    def replaced(self, name: str, value: bytes) -> bytes:
        """The body with this field set; it is added where absent."""
        for part in self.parts:
            if part.name == name:
                return self.body[: part.start] + value + self.body[part.end :]
        head = b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
        return head % (self.boundary, name.encode(), value) + self.body

    def _text(self, part: Part) -> str:
        return self.body[part.start : part.end].decode("utf-8")


def read_form(body: bytes, boundary: bytes) -> Form:
    """Parse a form. Raises GatewayError 400 where two readers could differ.

    The form begins with its first delimiter and ends with its last, each delimiter is a line that ends with CRLF,
    and nothing else in the body looks like one. Names are unique, unless they end with [].
    """
    parts: list[Part] = []
    names: set[str] = set()
    places = _delimiters(body, b"--" + boundary)
    for place, following in pairwise(places):
        part = _part(body, place + len(boundary) + 4, following - 2)
        if part.name in names and not part.name.endswith("[]"):
            raise _refusal(f"the field {part.name[:64]!r} is given twice; give it once", part.name[:64])
        names.add(part.name)
        parts.append(part)
    form = Form(body, boundary, parts)
    if (charset := form.text("_charset_")) is not None and charset.strip().lower() not in ("utf-8", "utf8"):
        raise _refusal("texts must be UTF-8", "_charset_")
    return form


def _delimiters(body: bytes, delimiter: bytes) -> list[int]:
    """The offset of each delimiter; the last one closes the form."""
    places: list[int] = []
    size = len(delimiter)
    at = body.find(delimiter)
    while at >= 0:
        if len(places) > MAX_PARTS:
            raise _refusal(f"it has more than {MAX_PARTS} parts")
        places.append(at)
        at = body.find(delimiter, at + 1)
    if not places or places[0] != 0:
        raise _refusal("it must begin with the boundary named in Content-Type")
    for place in places[1:]:
        if body[place - 2 : place] != b"\r\n":
            raise _refusal("a boundary must be at the beginning of a line, after CRLF")
    for place in places[:-1]:
        if body[place + size : place + size + 2] != b"\r\n":
            raise _refusal("a boundary must be followed by CRLF")
    if body[places[-1] + size :] not in (b"--", b"--\r\n"):
        raise _refusal("it must end with its boundary and two hyphens, and nothing after them")
    return places


def _part(body: bytes, start: int, end: int) -> Part:
    """One part between two delimiters: headers, an empty line, content."""
    stop = body.find(b"\r\n\r\n", start, min(end, start + MAX_HEAD))
    if stop < 0:
        raise _refusal(f"a part's headers must end with an empty line, within {MAX_HEAD} bytes")
    headers: dict[bytes, bytes] = {}
    for line in body[start:stop].split(b"\r\n"):
        header = _HEADER.fullmatch(line)
        if header is None:
            raise _refusal("a part has a malformed header line")
        name = header[1].lower()
        if name in headers:
            raise _refusal(f"a part has two headers {name.decode('latin-1')[:64]!r}")
        headers[name] = header[2].strip()
    if len(headers) > MAX_HEADERS:
        raise _refusal(f"a part has more than {MAX_HEADERS} headers")
    content = stop + 4
    name, file = _disposition(headers.get(b"content-disposition", b""))
    if headers.get(b"content-length", b"%d" % (end - content)) != b"%d" % (end - content):
        raise _refusal("a part's Content-Length does not match its length", name[:64])
    if headers.get(b"content-transfer-encoding", b"binary").lower() not in _AS_IT_IS:
        raise _refusal("a part must be sent as it is, without a Content-Transfer-Encoding", name[:64])
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise _refusal("a part must be sent as it is, without a Content-Encoding", name[:64])
    kind = headers.get(b"content-type", b"")
    if kind[:10].lower() == b"multipart/":
        raise _refusal("a part must not be multipart itself", name[:64])
    if not file:
        _check_text(body, content, end, kind, name)
    return Part(name, file, content, end)


def _check_text(body: bytes, start: int, end: int, kind: bytes, name: str) -> None:
    if any(charset.lower() not in (b"utf-8", b"utf8") for charset in _CHARSET.findall(kind)):
        raise _refusal("texts must be UTF-8", name[:64])
    if end - start > MAX_TEXT:
        raise _refusal(f"the field {name[:64]!r} is over {MAX_TEXT} bytes", name[:64])
    try:
        body[start:end].decode("utf-8")
    except UnicodeDecodeError:
        raise _refusal(f"the field {name[:64]!r} is not UTF-8", name[:64]) from None


def _disposition(value: bytes) -> tuple[str, bool]:
    """The name of a part, and whether it is a file."""
    if _DISPOSITION.fullmatch(value) is None:
        raise _refusal('each part needs the header Content-Disposition: form-data; name="…"')
    found: dict[bytes, bytes] = {}
    for parameter in _PARAMETER.finditer(value):
        key = parameter[1].lower()
        if key in found:
            raise _refusal(f"a part gives {key.decode('latin-1')[:64]!r} twice")
        found[key] = parameter[2] if parameter[2] is not None else parameter[3]
    try:
        name = found[b"name"].decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        raise _refusal("each part needs a name, in UTF-8") from None
    starred = [key for key in found if b"*" in key]
    if starred and not (starred == [b"filename*"] and b"filename" in found):
        raise _refusal("name* and filename* are not supported (RFC 7578 4.2)", name[:64])
    if name != name.strip() or not name.isprintable():
        raise _refusal(f"the name {name[:64]!r} has surrounding spaces or unprintable characters")
    return name, b"filename" in found


def _refusal(why: str, param: str | None = None) -> GatewayError:
    return GatewayError(Code.INVALID_VALUE, f"Malformed form: {why}.", param=param)

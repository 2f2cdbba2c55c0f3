"""What a request's head says of its body: JSON, a form or something else, and whether it can be read as that. A
refusal comes before the body is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from multidict import CIMultiDictProxy

from proxy.errors import Code, GatewayError

Headers = CIMultiDictProxy[str]

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_VALUE: Final = rf'(?:{_WORD}|"[^"\\\x00-\x1f\x7f]*+")'
_MEDIA: Final = re.compile(rf"({_WORD})/({_WORD})((?:[ \t]*+;[ \t]*+{_WORD}={_VALUE})*+)(?:[ \t]*+;)?")
"""Matches a value without surrounding whitespace. Possessive quantifiers: linear time."""
_PARAMETER: Final = re.compile(rf";[ \t]*({_WORD})=({_VALUE})")
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,70}")
_UTF8: Final = frozenset({"utf-8", "utf8"})
_HOW: Final = "add the header Content-Type: application/json (curl: -H 'content-type: application/json')"
_SHOWN: Final = 64  # characters of an invalid value that its error shows
_PATH_SHOWN: Final = 200  # characters of a path that an error shows
_FORMS: Final = "application/json, or multipart/form-data where files are sent"


class Media(NamedTuple):
    """kind `other`: a body that cannot be read here. `boundary`: of a form."""

    kind: Literal["json", "form", "other"]
    boundary: bytes = b""


JSON: Final = Media("json")


class _Type(NamedTuple):
    main: str
    sub: str
    parameters: list[tuple[str, str]]


def require_json(headers: Headers) -> None:
    """Raises GatewayError 415 unless the body is declared as JSON in UTF-8. A page of another origin can send
    other types without a CORS preflight."""
    kind = headers.get("content-type")
    if kind is None:
        raise _unsupported(f"The body has no Content-Type: {_HOW}.", "application/json")
    found = _parse(kind)
    if found is None or not _is_json(found.main, found.sub):
        raise _unsupported(
            f"Send application/json, not {kind.partition(';')[0][:_SHOWN]!r}: {_HOW}.", "application/json"
        )
    _require_utf8(found.parameters)


def require_plain(headers: Headers) -> None:
    """Raises GatewayError 415 for a Content-Encoding: bodies are not decoded here."""
    for coding in headers.getall("content-encoding", ()):
        if coding.strip().lower() not in ("identity", ""):
            raise GatewayError(
                Code.UNSUPPORTED_MEDIA_TYPE,
                f"Send the body without a Content-Encoding, not as {coding[:_SHOWN]!r}.",
                headers=(("accept-encoding", "identity"),),
            )


def media_of(headers: Headers, *, json_only: bool) -> Media:
    """The media type of a passed-through body. `json_only`: its path accepts only JSON.

    Raises GatewayError 415 for a body that must be read and cannot be, and for types that a page of another origin
    can send without a CORS preflight, except for forms: see `access/origins.py`.
    """
    kinds: Sequence[str] = headers.getall("content-type", ())
    if json_only or not kinds:
        require_json(headers)
    if len(kinds) > 1:
        raise _unsupported("There is more than one Content-Type; send one.", _FORMS)
    found = _parse(kinds[0])
    if found is None:
        raise _unsupported(f"The Content-Type {kinds[0][:_SHOWN]!r} is none: {_HOW}.", _FORMS)
    main, sub, parameters = found
    if _is_json(main, sub):
        _require_utf8(parameters)
        require_plain(headers)
        return JSON
    if (main, sub) == ("multipart", "form-data"):
        _require_utf8(parameters)
        require_plain(headers)
        return Media("form", _boundary(parameters))
    if main in ("text", "multipart") or sub == "x-www-form-urlencoded":
        raise _unsupported(f"Send {_FORMS}, not {main}/{sub[:_SHOWN]}: {_HOW}.", _FORMS)
    return Media("other")


def unread(path: str) -> GatewayError:
    """The refusal of a body that a check must read and cannot."""
    return _unsupported(
        f"Requests are checked here, so {path[:_PATH_SHOWN]} takes {_FORMS}, without an encoding.", _FORMS
    )


def _parse(value: str) -> _Type | None:
    found = _MEDIA.fullmatch(value.strip(" \t"))
    if found is None:
        return None
    parameters = [(name.lower(), text.strip('"')) for name, text in _PARAMETER.findall(found[3])]
    if any("*" in name for name, _ in parameters):
        return None  # `boundary*=` means `boundary` by RFC 2231
    return _Type(found[1].lower(), found[2].lower(), parameters)


def _is_json(main: str, sub: str) -> bool:
    return (main, sub) == ("application", "json") or sub.endswith("+json")


def _require_utf8(parameters: list[tuple[str, str]]) -> None:
    charsets = [value.lower() for name, value in parameters if name == "charset"]
    if len(charsets) > 1 or not _UTF8.issuperset(charsets):
        raise _unsupported(f"Send the body in UTF-8, not in {', '.join(charsets)[:_SHOWN]!r}.", "application/json")


def _boundary(parameters: list[tuple[str, str]]) -> bytes:
    given = [value for name, value in parameters if name == "boundary"]
    if len(given) != 1 or _BOUNDARY.fullmatch(given[0]) is None:
        raise GatewayError(
            Code.INVALID_HEADER,
            "The Content-Type of a form must name one boundary of 1 to 70 plain characters.",
            param="content-type",
        )
    return given[0].encode("ascii")


def _unsupported(message: str, accepted: str) -> GatewayError:
    kinds = "application/json" if accepted != _FORMS else "application/json, multipart/form-data"
    return GatewayError(Code.UNSUPPORTED_MEDIA_TYPE, message, headers=(("accept", kinds),))

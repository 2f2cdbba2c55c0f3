"""Owns what a request's head says of its body: JSON, a form or something else, and whether it can be read as that.
Must not know bodies or endpoints: headers in, a kind out, or a refusal before the body is read.
Called by call.py for the endpoints that take JSON, and by the gateway for what passes through."""

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
"""Of a value without white space around it. Possessive: the time is linear in its length."""
_PARAMETER: Final = re.compile(rf";[ \t]*({_WORD})=({_VALUE})")
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,70}")
_UTF8: Final = frozenset({"utf-8", "utf8"})
_HOW: Final = "add the header Content-Type: application/json (curl: -H 'content-type: application/json')"
_SHOWN: Final = 64  # characters of a refused value that its error tells
_PATH_SHOWN: Final = 200  # the same of a path
_FORMS: Final = "application/json, or multipart/form-data where files are sent"


class Media(NamedTuple):
    """`other`: a body that nobody here can read. `boundary`: of a form."""

    kind: Literal["json", "form", "other"]
    boundary: bytes = b""


JSON: Final = Media("json")


class _Type(NamedTuple):
    main: str
    sub: str
    parameters: list[tuple[str, str]]


def require_json(headers: Headers) -> None:
    """Raises GatewayError 415 where the body is not said to be JSON in UTF-8. A page of another origin can send
    any other type without asking first."""
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
    """Raises GatewayError 415 where the body is encoded: it is never decoded here."""
    for coding in headers.getall("content-encoding", ()):
        if coding.strip().lower() not in ("identity", ""):
            raise GatewayError(
                Code.UNSUPPORTED_MEDIA_TYPE,
                f"Send the body without a Content-Encoding, not as {coding[:_SHOWN]!r}.",
                headers=(("accept-encoding", "identity"),),
            )


def media_of(headers: Headers, *, json_only: bool) -> Media:
    """What the body of a request that passes through is. `json_only`: its path takes nothing else.

    Raises GatewayError 415 for a body that must be read and cannot be, and for the types that a page of another
    origin can send without asking first, but for forms: see `origins.py`.
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
    """Of a body that some check has to read."""
    return _unsupported(
        f"Requests are checked here, so {path[:_PATH_SHOWN]} takes {_FORMS}, without an encoding.", _FORMS
    )


def _parse(value: str) -> _Type | None:
    found = _MEDIA.fullmatch(value.strip(" \t"))
    if found is None:
        return None
    parameters = [(name.lower(), text.strip('"')) for name, text in _PARAMETER.findall(found[3])]
    if any("*" in name for name, _ in parameters):
        return None  # `boundary*=` is `boundary` to who reads RFC 2231
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

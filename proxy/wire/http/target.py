"""Owns the one reading of a request's target: raw text to a normal path, query and authority, or why it is none.
Must not know HTTP servers, endpoints or engines: pure functions of texts.
Called by `head.py`, once a request, before routing and every check."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

_PCHAR: Final = r"\-A-Za-z0-9._~!$&'()*+,;=:@"
_PERCENT: Final = "%[0-9A-Fa-f]{2}"
_LENIENT: Final = r"\[\]{}|^`\\"
"""Outside RFC 3986, and sent by browsers and by `include[]=`: taken in a query, sent on percent-encoded."""

_ORIGIN: Final = re.compile(rf"(?:[{_PCHAR}/]++|{_PERCENT})*+(?:\?(?:[{_PCHAR}/?{_LENIENT}]++|{_PERCENT})*+)?")
_ODD_PATH: Final = re.compile(rf"%(?![0-9A-Fa-f]{{2}})|[^{_PCHAR}/%]")
_ODD_QUERY: Final = re.compile(rf"%(?![0-9A-Fa-f]{{2}})|[^{_PCHAR}/?%{_LENIENT}]")
_ABSOLUTE: Final = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_HOST: Final = re.compile(r"(?:([A-Za-z0-9_.-]+)|\[([0-9A-Fa-f:.]+)\])(?::([0-9]*))?")
_FORBIDDEN: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_SAFE: Final = "/!$&'()*+,;=:@~"

KEPT: Final = 512
"""How many readings are kept, each of a text of at most `KEPT_LENGTH` characters."""
KEPT_LENGTH: Final = 256


class Malformed(ValueError):
    """A target or Host that no RFC allows, or that the next server could read as another. Its words say why."""


class Target(NamedTuple):
    """What a request is for. All that routes, checks and sends derives from it."""

    path: str
    """Percent-decoded, without empty or dot segments and without a slash at the end; `*` of `OPTIONS *`."""
    text: str
    """Path and query, encoded anew: the target that an engine is sent."""
    authority: str | None = None
    """Of an absolute-form target, which takes the place of Host (RFC 9112 3.2.2)."""


ASTERISK: Final = Target("*", "*")


def read_target(raw: str) -> Target:
    """The reading of a request-target in origin, absolute or asterisk form (RFC 9112 3.2). Raises Malformed."""
    authority = None
    rest = raw
    if raw[:1] != "/":
        if raw == "*":
            return ASTERISK
        found = _ABSOLUTE.fullmatch(raw)
        if found is None:
            raise Malformed("The request target must be a path, or an absolute http:// or https:// URL.")
        authority, rest = found[1], "/" + found[2]  # a second slash is none: the path's form is normal
        read_host(authority)
    if _ORIGIN.fullmatch(rest) is None:
        raise Malformed(_why(rest))
    path, _, query = rest.partition("?")
    path = _path(path)
    text = path if path.isalnum() else quote(path, safe=_SAFE)
    if query:
        text = f"{text}?{quote(query, safe=_SAFE + '/?%')}"
    return Target(path, text, authority)


def read_authority(raw: str) -> Target:
    """The target of CONNECT: a host and a port (RFC 9112 3.2.3). Raises Malformed."""
    read_host(raw)
    if not raw.rpartition(":")[2].isdecimal():
        raise Malformed("The target of CONNECT must be a host and a port.")
    return Target(raw, raw, raw)


def read_host(raw: str) -> str:
    """The host of a `Host` field or an authority, in lower case, without its port. Raises Malformed."""
    found = _HOST.fullmatch(raw)
    if found is None or (found[3] and (len(found[3]) > 5 or int(found[3]) > 65535)):
        raise Malformed("Host must be one name or address, with a port or without: example.com:8080, [::1]:8080.")
    name: str | None = found[1]
    v6: str = found[2]
    if name is not None:
        name = name.lower().removesuffix(".")
        if not name or name[0] == ".":
            raise Malformed("Host is no name: it begins with a dot.")
        return name
    try:
        return str(IPv6Address(v6))
    except ValueError:
        raise Malformed("Host is no IPv6 address in brackets.") from None


known_target = lru_cache(KEPT)(read_target)
"""`read_target` of a text that may come again: of at most `KEPT_LENGTH` characters."""
known_host = lru_cache(KEPT)(read_host)


def _path(raw: str) -> str:
    """Decoded once, as an engine does, and free of what two servers could resolve differently (RFC 3986 5.2.4)."""
    path = raw
    if "%" in raw:
        try:
            path = unquote_to_bytes(raw).decode()
        except UnicodeDecodeError:
            raise Malformed("The path's percent-encoding is not UTF-8.") from None
        if _FORBIDDEN.search(path) is not None:
            raise Malformed("The path must not hold control characters or backslashes, encoded or not.")
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    return "/" + "/".join(kept)


def _why(rest: str) -> str:
    if "#" in rest:
        return "The request target must not hold a '#': a fragment is never sent (RFC 9112 3.2). Encode it as %23."
    if not rest.isascii():
        return "The request target must be ASCII: percent-encode what is not."
    path, _, query = rest.partition("?")
    found = _ODD_PATH.search(path) or _ODD_QUERY.search(query)
    assert found is not None  # else it had been read
    return f"The request target holds {found[0]!r}, which a URL may not hold there: percent-encode it."

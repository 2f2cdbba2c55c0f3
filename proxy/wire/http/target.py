"""The one reading of a request target: raw text into a normal path, query and authority, or the reason why it
is none. Before routing and every check, once per request."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

_PCHAR: Final = r"\-A-Za-z0-9._~!$&'()*+,;=:@"
_PERCENT: Final = "%[0-9A-Fa-f]{2}"
_LENIENT: Final = r"\[\]{}|^`\\"
"""Not allowed by RFC 3986, but sent by browsers and in `include[]=`: accepted in a query and percent-encoded."""

_ORIGIN: Final = re.compile(rf"(?:[{_PCHAR}/]++|{_PERCENT})*+(?:\?(?:[{_PCHAR}/?{_LENIENT}]++|{_PERCENT})*+)?")
_ODD_PATH: Final = re.compile(rf"%(?![0-9A-Fa-f]{{2}})|[^{_PCHAR}/%]")
_ODD_QUERY: Final = re.compile(rf"%(?![0-9A-Fa-f]{{2}})|[^{_PCHAR}/?%{_LENIENT}]")
_ABSOLUTE: Final = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_HOST: Final = re.compile(r"(?:([A-Za-z0-9_.-]+)|\[([0-9A-Fa-f:.]+)\])(?::([0-9]*))?")
_FORBIDDEN: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_SAFE: Final = "/!$&'()*+,;=:@~"

KEPT: Final = 512
"""Number of cached readings, each of a text of at most `KEPT_LENGTH` characters."""
KEPT_LENGTH: Final = 256


class Malformed(ValueError):
    """A target or Host that is invalid, or that another server could read differently. The text is the reason."""


class Target(NamedTuple):
    """A request's target. Routing, checks and the engine's request all use it."""

    path: str
    """Percent-decoded, without empty or dot segments or a trailing slash; `*` for `OPTIONS *`."""
    text: str
    """Path and query, re-encoded: the target sent to an engine."""
    authority: str | None = None
    """Of an absolute-form target, which replaces Host (RFC 9112 3.2.2)."""


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
        authority, rest = found[1], "/" + found[2]  # a double slash is normalised
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
"""`read_target`, cached, for a text of at most `KEPT_LENGTH` characters."""
known_host = lru_cache(KEPT)(read_host)


def _path(raw: str) -> str:
    """A path decoded once, as an engine does. Raises Malformed where two servers could resolve it differently
    (RFC 3986 5.2.4)."""
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
    assert found is not None  # else the first pattern had matched
    return f"The request target holds {found[0]!r}, which a URL may not hold there: percent-encode it."

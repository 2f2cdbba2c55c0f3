"""What a client gets of an engine's headers that name a location: rewritten to the client's path, or dropped."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote

from proxy.upstream.http.dial import address_of

DROPPED: Final = frozenset(
    {"alt-svc", "alt-used", "via", "x-accel-redirect", "x-sendfile", "x-lighttpd-send-file", "x-reproxy-url"}
)
"""Headers that name other addresses, or files and paths for a proxy in front of the engine to serve."""

PLACES: Final = DROPPED | {"location", "content-location", "refresh", "link", "uri"}
"""These, and the headers whose value is or contains a URL."""

ENCODED: Final = 3
"""Levels of percent-encoding in which an engine's address is searched for."""

_ABSOLUTE: Final = re.compile(r"(?:(https?):)?//([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_PLAIN: Final = re.compile(r"[!-~]*")
_REFRESH: Final = re.compile(r"([0-9.]++\s*+(?:[;,]\s*+(?:url\s*+=\s*+)?)?)(['\"]?)([!-~]*)\2", re.IGNORECASE)
_LINK: Final = re.compile(r"<([^<>]*+)>")


class Engine(NamedTuple):
    """An engine's address, as its headers may name it."""

    authorities: frozenset[str]
    base: str
    named: Callable[[str], bool]
    """Whether a text contains its address, percent-encoded or not."""


@lru_cache(256)
def engine_at(url: str) -> Engine:
    """Read a URL as `config.values.backend_urls` writes it."""
    address = address_of(url)
    authority = address.authority.lower()
    authorities = {authority}
    if address.port == (443 if address.tls else 80):
        bare = authority.removesuffix(f":{address.port}")
        authorities = {bare, f"{bare}:{address.port}"}
    texts = {each for each in authorities if ":" in each}
    if "." in address.host or ":" in address.host:
        texts.add(address.host.lower())
    if address.path:
        texts = {address.path}
    # Without texts this matches nothing.
    found = re.compile("|".join(rf"(?<![\w.-]){re.escape(each)}(?![\w.-])" for each in texts) or r"(?!)", re.I)

    def named(text: str) -> bool:
        for _ in range(ENCODED):
            if found.search(text) is not None:
                return True
            if "%" not in text:
                return False
            text = unquote(text)
        return found.search(text) is not None

    return Engine(frozenset(authorities), address.base, named)


def told(name: str, value: str, engine: Engine) -> str | None:
    """The value that a client gets of a header in `PLACES`, or of one that names the engine; None: drop it."""
    if name in DROPPED:
        return None
    place = _place(name, value, engine) if name in PLACES else value
    return None if place is None or engine.named(place) else place


def _place(name: str, value: str, engine: Engine) -> str | None:
    if name == "link":
        targets = [_client_s(found, engine) for found in _LINK.findall(value)]
        if not targets or None in targets:
            return None
        left = iter(targets)
        return _LINK.sub(lambda _: f"<{next(left)}>", value)
    if name == "refresh":
        found = _REFRESH.fullmatch(value.strip())
        target = found and _client_s(found[3], engine)
        return None if found is None or target is None else f"{found[1]}{target}"
    return _client_s(value.strip(), engine)


def _client_s(reference: str, engine: Engine) -> str | None:
    """An engine's URL reference as the client can follow it. None: it cannot, or it is ambiguous."""
    if _PLAIN.fullmatch(reference) is None or "\\" in reference:
        return None
    absolute = _ABSOLUTE.fullmatch(reference)
    if absolute is not None:
        if absolute[2].lower() not in engine.authorities:
            return None
        reference = absolute[3] if absolute[3][:1] == "/" else "/" + absolute[3]
    elif _SCHEME.match(reference) is not None:
        return None
    if reference[:1] == "/" and engine.base:
        rest = reference.removeprefix(engine.base)
        if rest == reference or rest[:1] not in ("", "/", "?", "#"):
            return None
        reference = rest if rest[:1] == "/" else "/" + rest
    return None if reference[:2] == "//" else reference

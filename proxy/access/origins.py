"""Web pages of other origins: which may send requests where no API keys are set, and the CORS headers by which a
browser lets them read the answers. Reads headers that browsers set and no script can change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from proxy.errors import Code, GatewayError

_OWN: Final = ("same-origin", "none")  # `none`: an address that a person typed or a bookmark
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_SHOWN: Final = 200  # characters of a refused origin that its error tells
_READS: Final = ("GET", "HEAD")
_ANY: Final = "*"

CorsHeaders = tuple[tuple[str, str], ...]
PREFLIGHT: Final = (
    ("access-control-allow-methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
    ("access-control-allow-headers", "*, authorization"),
    ("access-control-max-age", "600"),
)
"""Of the answer to a preflight: all methods of all paths, so that a page can read a 405. `*` does not cover
`authorization` (Fetch 4.8), and the rest only without credentials (cookies), which are never allowed here."""


class Origins:
    """`allowed`: origins besides the gateway's own, as browsers write them: `https://chat.example`; `*` is any."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(origin.lower().rstrip("/") for origin in allowed)
        self._any = _ANY in self._allowed
        self._headers = {origin: _cors(origin) for origin in self._allowed}
        self._unlisted: CorsHeaders = (("vary", "origin"),) if self._allowed else ()
        """So that no cache gives a listed origin the answer to another one."""

    def __repr__(self) -> str:
        return f"<Origins {sorted(self._allowed)}>"

    def __bool__(self) -> bool:
        """Whether pages of other origins are allowed at all."""
        return bool(self._allowed)

    def headers(self, origin: str | None) -> CorsHeaders:
        """The CORS headers of every answer to a request with this `Origin`."""
        if self._any:
            return self._headers[_ANY]
        return self._unlisted if origin is None else self._headers.get(origin.lower(), self._unlisted)

    def check(self, headers: Mapping[str, str], method: str, *, opens: bool, listed: bool = True) -> None:
        """Raises GatewayError 403 for a request that a page of another origin sends. `opens`: a link of another
        page may lead here. `listed`: the path is open to the allowed origins.

        The rules are those of Go's `http.CrossOriginProtection`, for reads too: an engine is not to see them.
        """
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if listed and origin is not None and (self._any or origin.lower() in self._allowed):
            return
        if site is not None:
            own = site in _OWN
        else:  # an old browser, or one that asks over plain HTTP by a name or an address of the network
            own = origin is None or _is_of(origin.lower(), headers.get("host", "").lower())
        if own or (opens and method in _READS and _opened_by_person(headers)):
            return
        raise GatewayError(
            Code.ORIGIN_NOT_ALLOWED,
            f"A web page of another origin{f' ({origin[:_SHOWN]!r})' if origin else ''} sent this request. In a "
            "browser only the gateway's own page may send requests, and to the API the origins in cors_origins.",
        )


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a browser asks for a page if it may send a request (Fetch 4.8)."""
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _cors(origin: str) -> CorsHeaders:
    return (
        ("access-control-allow-origin", origin),
        ("access-control-expose-headers", "*"),
        ("vary", "origin"),
    )


def _is_of(origin: str, host: str) -> bool:
    scheme, _, authority = origin.partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    return port is not None and host != "" and authority.removesuffix(port) == host.removesuffix(port)


def _opened_by_person(headers: Mapping[str, str]) -> bool:
    """A top-level page in a tab: not a frame, an image or a script of another page."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"

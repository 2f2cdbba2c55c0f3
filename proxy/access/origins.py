"""Which web pages may send requests where no API keys are set: the gateway's own and a list of origins. Reads
headers that browsers set and no script can change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from proxy.errors import Code, GatewayError

_OWN: Final = ("same-origin", "none")  # `none`: an address that a person typed or a bookmark
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_SHOWN: Final = 200  # characters of a refused origin that its error tells
_READS: Final = ("GET", "HEAD")


class Origins:
    """`allowed`: origins besides the gateway's own, as browsers write them: `https://chat.example`."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(origin.lower().rstrip("/") for origin in allowed)

    def __repr__(self) -> str:
        return f"<Origins {sorted(self._allowed)}>"

    def check(self, headers: Mapping[str, str], method: str, *, opens: bool) -> None:
        """Raises GatewayError 403 for a request that a page of another origin sends. `opens`: a link of another
        page may lead here.

        The rules are those of Go's `http.CrossOriginProtection`, for reads too: an engine is not to see them.
        """
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and origin.lower() in self._allowed:
            return
        if site is not None:
            own = site in _OWN
        else:  # an old browser, or one that asks over plain HTTP by a name or an address of the network
            own = origin is None or _is_of(origin.lower(), headers.get("host", "").lower())
        if own or (opens and method in _READS and _opened_by_person(headers)):
            return
        raise GatewayError(
            Code.ORIGIN_NOT_ALLOWED,
            f"A web page of another origin{f' ({origin[:_SHOWN]!r})' if origin else ''} sent this request, "
            "and no API keys are set. Without keys only the gateway's own page may send requests from a browser.",
        )


def _is_of(origin: str, host: str) -> bool:
    scheme, _, authority = origin.partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    return port is not None and host != "" and authority.removesuffix(port) == host.removesuffix(port)


def _opened_by_person(headers: Mapping[str, str]) -> bool:
    """A top-level page in a tab: not a frame, an image or a script of another page."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"

"""Which hosts a request may be addressed to: on loopback only names of loopback, against DNS rebinding."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

from proxy.errors import Code, GatewayError

ANY: Final = "*"
NONE: Final = ""  # a request of HTTP/1.0 without one; a browser always sends one
SHOWN: Final = 128  # characters of a refused host that its error tells
KEPT: Final = 256  # hosts that are remembered as allowed


class Hosts:
    """The hosts by which this gateway may be asked for. `known` is asked first: a request costs a look-up."""

    def __init__(self, listens: str, allowed: Iterable[str], addresses: Iterable[str] = ()) -> None:
        """`listens`: the address or name to listen on, and `addresses` what it stands for. `allowed`: names and
        addresses, `*.example.com`, or `*`."""
        local = all(is_loopback(each) for each in (tuple(addresses) or (listens,)))
        names = [name.lower() for name in allowed]
        self.open = ANY in names or not (names or local)
        self._names = {name for name in names if not name.startswith("*.")} | {listens.lower()}
        self._below = tuple(name[1:] for name in names if name.startswith("*."))
        self.known = {NONE}

    def check(self, host: str, *, brought: str = "") -> None:
        """Raises GatewayError 421 where a request for `host`, as `read_host` has it, is none for us.
        `brought`: the client, where a balancer brought it by the PROXY protocol, which no browser speaks."""
        if brought:
            return
        if not (self.open or host in self._names or is_loopback(host) or host.endswith(self._below)):
            raise GatewayError(
                Code.HOST_NOT_ALLOWED,
                f"The host {host[:SHOWN]!r} is not allowed. Use the address that the gateway listens on, or "
                "add this host to the gateway's allowed_hosts.",
            )
        if len(self.known) >= KEPT:
            self.known.clear()
            self.known.add(NONE)
        self.known.add(host)


def is_loopback(host: str) -> bool:
    """Whether a name or address, without brackets and port, is this machine's loopback whatever DNS says."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback

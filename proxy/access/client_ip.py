"""The client's address behind trusted proxies, from the peer's address and X-Forwarded-For. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from ipaddress import IPv4Network as _V4
from typing import Final

UNIX: Final = "unix"
"""The address of a caller through a Unix socket."""

MAX_HOPS: Final = 32

Address = IPv4Address | IPv6Address


class TrustedProxies:
    """The proxies whose X-Forwarded-For is believed: addresses, networks, or `unix`."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        texts = tuple(networks)
        self._unix = UNIX in texts
        self._networks: tuple[_V4 | IPv6Network, ...] = tuple(ip_network(text) for text in texts if text != UNIX)

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def __contains__(self, address: Address | None) -> bool:
        if address is None:
            return self._unix
        return any(address in network for network in self._networks)

    def trusts(self, peer: str) -> bool:
        """Whether a socket's peer, its address or `unix`, is one of them."""
        address = _parse(peer)
        return address in self and (address is not None or peer == UNIX)


def client_address(peer: str, forwarded: Sequence[str], trusted: TrustedProxies) -> str:
    """The nearest address that is not a trusted proxy's: X-Forwarded-For is read from its right end, where the
    nearest proxy wrote, and only as far as those who wrote it are trusted. What cannot be read ends the walk."""
    known = _parse(peer)
    at = peer if known is None else str(known)
    if not trusted or not trusted.trusts(peer):
        return at
    hops = [hop for value in forwarded for hop in value.split(",")]
    for hop in reversed(hops[-MAX_HOPS:]):
        address = _parse(hop.strip())
        if address is None:
            return at
        at = str(address)
        if address not in trusted:
            return at
    return at


def _parse(text: str) -> Address | None:
    """An address, with or without a port; a v4 address in v6 clothes is the v4 one. None for anything else."""
    host = text
    if text.startswith("["):
        host, closed, port = text[1:].partition("]")
        if not closed or (port and not (port[0] == ":" and port[1:].isdecimal())):
            return None
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        if not port.isdecimal():
            return None
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))  # without a zone: it means nothing here
    return address

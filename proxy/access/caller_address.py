"""Which addresses count as one caller where no API keys are set."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from proxy.access.caller import Caller
from proxy.access.context import ClientRequest

Identify = Callable[[ClientRequest], Caller]


@lru_cache(maxsize=4096)
def caller_for_address(address: str) -> Caller:
    """One caller for an IPv4 address and for an IPv6 network of 64 bits: a host has the whole of one, and would
    else have as many limits as it likes. `local` for a Unix socket."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return Caller(id=address[:64] or "local")
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is not None:
            return Caller(id=str(ip.ipv4_mapped))
        return Caller(id=f"{IPv6Address(int(ip) >> 64 << 64)}/64")
    return Caller(id=str(ip))

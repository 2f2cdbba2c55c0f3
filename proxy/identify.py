"""Owns who a request is from where nobody has said so: the client's address.
Must not know limits, keys or settings.
Called at admission, as the `identify` that the app gives it; one that reads API keys takes its place."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from aiohttp import web

from proxy.caller import Caller

Identify = Callable[[web.BaseRequest], Caller]


def by_address(request: web.BaseRequest) -> Caller:
    """The peer's address. What it says of itself in headers is not believed."""
    return caller_at(request.remote or "")


@lru_cache(maxsize=4096)
def caller_at(address: str) -> Caller:
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

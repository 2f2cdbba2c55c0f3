"""The PROXY protocol header, versions 1 and 2, in which an L4 balancer names the client of a connection. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
MAX_V1: Final = 107  # bytes, by the specification
MAX_V2: Final = 16 + 2048
"""The specification allows 64 KiB of extensions; those of common balancers take less than 300 bytes."""

_TCP4: Final = 0x11
_TCP6: Final = 0x21


class ProxyHeader(NamedTuple):
    """The header at the beginning of a connection."""

    source: str  # the client's address; empty: a connection of the balancer's own, or an unknown address
    length: int  # bytes of the header; HTTP begins after them


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """The header at the beginning of these bytes; None: incomplete. Raises ValueError where there is none.

    Source: "The PROXY protocol, Versions 1 & 2", HAProxy Technologies, sections 2.1 and 2.2.
    """
    if data.startswith(V2):
        return _version_2(data)
    if data.startswith(b"PROXY "):
        return _version_1(data)
    if V2.startswith(data) or b"PROXY ".startswith(data):
        return None
    raise ValueError("the connection does not begin with a PROXY protocol header")


def _version_1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, MAX_V1)
    if end < 0:
        if len(data) >= MAX_V1:
            raise ValueError("the PROXY protocol line does not end")
        return None
    words = data[:end].decode("ascii", "replace").split(" ")
    if words[1] == "UNKNOWN":
        return ProxyHeader("", end + 2)
    wrong = ValueError("the PROXY protocol line is malformed")
    if words[1] not in ("TCP4", "TCP6") or len(words) != 6:
        raise wrong
    address = IPv4Address if words[1] == "TCP4" else IPv6Address
    try:
        source, _ = address(words[2]), address(words[3])
        ports = [int(word) for word in words[4:] if word.isascii() and word.isdecimal() and len(word) <= 5]
    except ValueError:
        raise wrong from None
    if len(ports) != 2 or max(ports) > 65535:
        raise wrong
    return ProxyHeader(str(source), end + 2)


def _version_2(data: bytes) -> ProxyHeader | None:
    if len(data) < 16:
        return None
    length = 16 + int.from_bytes(data[14:16], "big")
    if data[12] not in (0x20, 0x21) or length > MAX_V2:
        raise ValueError("the PROXY protocol header is malformed")
    if len(data) < length:
        return None
    family, block = data[13], data[16:length]
    if data[12] == 0x20 or family not in (
        _TCP4,
        _TCP6,
    ):  # LOCAL: a health check of the balancer. Others: unknown address
        return ProxyHeader("", length)
    size, address = (4, IPv4Address) if family == _TCP4 else (16, IPv6Address)
    if len(block) < 2 * size + 4:
        raise ValueError("the addresses in the PROXY protocol header are truncated")
    return ProxyHeader(str(address(block[:size])), length)

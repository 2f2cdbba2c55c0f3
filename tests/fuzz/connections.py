"""Owns the target of the PROXY protocol's head.
Must not know sockets. The second reader is written from the specification with `socket.inet_pton`.
Called by the tests and by the driver."""

from __future__ import annotations

import re
import socket
from typing import Final

from proxy.server.listener.proxy_protocol import MAX_V1, MAX_V2, V2, ProxyHeader, parse_proxy_header
from tests.fuzz.kit import Target

_V1: Final = re.compile(rb"PROXY (TCP4|TCP6) (\S+) (\S+) ([0-9]{1,5}) ([0-9]{1,5})\r\n")
_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: .*)?\r\n", re.DOTALL)


def by_the_book(data: bytes) -> ProxyHeader | None:
    """The opening; None where there is none, or not a whole one."""
    if data.startswith(V2):
        return _version_2(data)
    line = data[: data.find(b"\r\n", 0, MAX_V1) + 2]
    if len(line) < 2:
        return None
    if _UNKNOWN.fullmatch(line):
        return ProxyHeader("", len(line))
    found = _V1.fullmatch(line)
    if found is None or max(int(found[4]), int(found[5])) > 65535:
        return None
    family = socket.AF_INET if found[1] == b"TCP4" else socket.AF_INET6
    try:
        source, _ = (socket.inet_pton(family, found[n].decode("ascii")) for n in (2, 3))
    except (OSError, ValueError):
        return None
    return ProxyHeader(socket.inet_ntop(family, source), len(line))


def _version_2(data: bytes) -> ProxyHeader | None:
    if len(data) < 16 or data[12] not in (0x20, 0x21):
        return None
    length = int.from_bytes(data[14:16], "big")
    if 16 + length > MAX_V2 or len(data) < 16 + length:
        return None
    family = {0x11: (socket.AF_INET, 4), 0x21: (socket.AF_INET6, 16)}.get(data[13])
    if data[12] == 0x20 or family is None:
        return ProxyHeader("", 16 + length)
    kind, size = family
    if length < 2 * size + 4:
        return None
    return ProxyHeader(socket.inet_ntop(kind, data[16 : 16 + size]), 16 + length)


def _read(data: bytes) -> ProxyHeader | str | None:
    try:
        return parse_proxy_header(data)
    except ValueError:
        return "refused"


def opening(data: bytes) -> None:
    found = _read(data)
    if isinstance(found, ProxyHeader):
        book = by_the_book(data)
        assert book is not None
        assert found.length == book.length <= MAX_V2
        assert _address(found.source) == _address(book.source)
        assert _read(data[: found.length]) == found, "what comes after it says nothing"
    else:
        assert by_the_book(data) is None
        assert found is not None or len(data) < MAX_V2, "it waits for ever"
    if data.startswith(V2) and len(data) >= 16 and 16 + int.from_bytes(data[14:16], "big") > MAX_V2:
        assert found == "refused", "it waits for more than it takes"
    before: ProxyHeader | str | None = None
    ends = {*range(20), 28, 52, 106, 107, 108, len(data) // 2, len(data) - 1, len(data)}
    for end in sorted(end for end in ends if 0 <= end <= len(data)):
        now = _read(data[:end])
        assert before is None or now == before, "what is settled changes with what follows"
        before = now


def _address(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text) if text else b""


TARGETS: Final = {
    "opening": Target(
        opening,
        "a reader by the specification finds the same; what is settled does not change with what follows",
        (V2, b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN", b"1.2.3.4 ", b"::1 ", b" 80", b"\r\n", b"\x21\x11"),
        300,
    ),
}

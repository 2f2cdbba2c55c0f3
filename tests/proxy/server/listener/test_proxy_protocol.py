"""The PROXY protocol: whose connection it is, under any split, and nothing else taken for it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.server.listener.proxy_protocol import MAX_V1, MAX_V2, V2, ProxyHeader, parse_proxy_header


def version_2(source: str, *, command: int = 0x21, extensions: bytes = b"") -> bytes:
    """As a balancer writes it, with ports 1 and 2 and the destination equal to the source."""
    address = ip_address(source)
    family = 0x11 if address.version == 4 else 0x21
    block = address.packed * 2 + b"\x00\x01\x00\x02" + extensions
    return V2 + bytes([command, family]) + len(block).to_bytes(2, "big") + block


WHOLE = [
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", "192.0.2.1"),
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 65535 0\r\n", "2001:db8::1"),
    (b"PROXY UNKNOWN\r\n", ""),
    (b"PROXY UNKNOWN ffff:f::1 ffff:f::2 65535 65535\r\n", ""),
    (version_2("192.0.2.1"), "192.0.2.1"),
    (version_2("2001:db8::1"), "2001:db8::1"),
    (version_2("192.0.2.1", extensions=b"\x04\x00\x05abcde"), "192.0.2.1"),
    (version_2("192.0.2.1", command=0x20), ""),
    (V2 + b"\x20\x00\x00\x00", ""),
    (V2 + b"\x21\x00\x00\x00", ""),
    (V2 + b"\x21\x31\x00\xd8" + bytes(216), ""),  # a Unix socket's
]


@pytest.mark.parametrize(("data", "source"), WHOLE)
def test_the_client_is_read_and_what_follows_is_left(data: bytes, source: str) -> None:
    assert (
        parse_proxy_header(data)
        == parse_proxy_header(data + b"GET / HTTP/1.1\r\n")
        == ProxyHeader(source, len(data))
    )
    assert [parse_proxy_header(data[:n]) for n in range(len(data))] == [None] * len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"PROXX",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443 1\r\n",
        b"PROXY TCP4 2001:db8::1 192.0.2.2 56324 443\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.2 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2  443\r\n",
        b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 \xff 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 " + b"1" * MAX_V1,
        V2 + b"\x11\x11\x00\x0c" + bytes(12),
        V2 + b"\x22\x11\x00\x0c" + bytes(12),
        V2 + b"\x21\x11\x00\x0b" + bytes(11),
        V2 + b"\x21\x21\x00\x0c" + bytes(12),
        V2 + b"\x21\x11" + (MAX_V2 - 15).to_bytes(2, "big"),
    ],
)
def test_what_is_not_that_protocol_is_no_opening(data: bytes) -> None:
    with pytest.raises(ValueError, match="PROXY protocol"):
        parse_proxy_header(data)


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", V2, V2 + b"\x21\x11"]))
def test_whatever_comes_is_read_refused_or_waited_for_within_the_bound(data: bytes, start: bytes) -> None:
    try:
        found = parse_proxy_header(start + data)
    except ValueError:
        return
    if found is None:
        assert len(start + data) < MAX_V2
    else:
        assert 0 < found.length <= len(start + data)
        assert found.source == "" or str(ip_address(found.source)) == found.source


@given(st.ip_addresses(), st.integers(0, 65535))
def test_version_1_carries_every_address(address: object, port: int) -> None:
    family = "TCP4" if ":" not in str(address) else "TCP6"
    line = f"PROXY {family} {address} {address} {port} {port}\r\n".encode()
    assert parse_proxy_header(line) == ProxyHeader(str(address), len(line))


@pytest.mark.parametrize(
    "line", [b"PROXY TCP5 2001:db8::1 2001:db8::2 1 2", b"PROXY TCP4 192.0.2.1", b"PROXY TCP4"]
)
def test_a_line_of_another_family_or_without_an_address_is_malformed(line: bytes) -> None:
    with pytest.raises(ValueError, match="line is malformed"):
        parse_proxy_header(line + b"\r\n")

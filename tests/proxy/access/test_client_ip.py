"""Whose address counts: the nearest that no trusted proxy has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.client_ip import MAX_HOPS, TrustedProxies, client_address

LOCAL = ("127.0.0.0/8", "10.0.0.0/8", "::1/128")


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "found"),
    [
        ("9.9.9.9", ["1.1.1.1"], (), "9.9.9.9"),
        ("9.9.9.9", ["1.1.1.1"], LOCAL, "9.9.9.9"),
        ("10.0.0.1", ["1.1.1.1"], LOCAL, "1.1.1.1"),
        ("10.0.0.1", ["1.1.1.1, 2.2.2.2"], LOCAL, "2.2.2.2"),
        ("10.0.0.1", ["1.1.1.1, 2.2.2.2, 10.0.0.7"], LOCAL, "2.2.2.2"),
        ("10.0.0.1", ["1.1.1.1", "2.2.2.2"], LOCAL, "2.2.2.2"),
        ("10.0.0.1", [], LOCAL, "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], LOCAL, "10.0.0.2"),
        ("10.0.0.1", ["1.1.1.1, nonsense"], LOCAL, "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1, nonsense, 10.0.0.4"], LOCAL, "10.0.0.4"),
        ("10.0.0.1", [""], LOCAL, "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1:5000"], LOCAL, "1.1.1.1"),
        ("10.0.0.1", ["[2001:db8::1]:5000"], LOCAL, "2001:db8::1"),
        ("10.0.0.1", ["[2001:db8::1]x"], LOCAL, "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1:x"], LOCAL, "10.0.0.1"),
        ("::ffff:10.0.0.1", ["::ffff:1.1.1.1"], LOCAL, "1.1.1.1"),
        ("::1", ["fe80::1%eth0"], LOCAL, "fe80::1"),
        ("unix", ["1.1.1.1"], LOCAL, "unix"),
        ("unix", ["1.1.1.1"], ("unix",), "1.1.1.1"),
        ("unix", ["1.1.1.1, 10.0.0.9"], ("unix", *LOCAL), "1.1.1.1"),
    ],
)
def test_the_nearest_untrusted_address(
    peer: str, forwarded: list[str], trusted: tuple[str, ...], found: str
) -> None:
    assert client_address(peer, forwarded, TrustedProxies(trusted)) == found


@given(st.lists(st.text(max_size=40)), st.sampled_from(["10.0.0.1", "9.9.9.9", "unix"]))
def test_no_header_moves_a_client_that_comes_directly_nor_breaks_anything(forwarded: list[str], peer: str) -> None:
    found = client_address(peer, forwarded, TrustedProxies(("10.0.0.0/8",)))
    assert len(found) <= 64
    if peer != "10.0.0.1":
        assert found == peer


@given(st.ip_addresses().filter(lambda a: str(a) != "10.0.0.1"), st.lists(st.ip_addresses()))
def test_what_a_client_puts_before_its_own_address_means_nothing(client: object, forged: list[object]) -> None:
    hops = ", ".join(map(str, [*forged, client]))
    trusted = TrustedProxies(("10.0.0.1",))
    assert client_address("10.0.0.1", [hops], trusted) == client_address("10.0.0.1", [str(client)], trusted)


@pytest.mark.parametrize(
    ("peer", "trusted", "believed"),
    [
        ("10.0.0.1", LOCAL, True),
        ("10.0.0.1:80", LOCAL, True),
        ("11.0.0.1", LOCAL, False),
        ("unix", LOCAL, False),
        ("unix", ("unix",), True),
        ("nonsense", ("unix",), False),
        ("10.0.0.1", ("unix",), False),
    ],
)
def test_whom_to_believe(peer: str, trusted: tuple[str, ...], believed: bool) -> None:
    assert TrustedProxies(trusted).trusts(peer) is believed


def test_nobody_and_a_socket_s_peer_alone() -> None:
    assert not TrustedProxies()
    assert TrustedProxies(("unix",))
    assert TrustedProxies(LOCAL)
    assert None not in TrustedProxies(LOCAL)
    assert None in TrustedProxies(("unix",))


@pytest.mark.parametrize(
    ("hop", "found"),
    [
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:", "10.0.0.1"),
        ("[2001:db8::1]:x", "10.0.0.1"),
        ("[2001:db8::1]5", "10.0.0.1"),
        ("[2001:db8::1", "10.0.0.1"),
        ("[1.1.1.1]:5", "1.1.1.1"),
        ("1.1.1.1:", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:db8::1%eth0", "2001:db8::1"),
    ],
)
def test_a_hop_is_an_address_with_or_without_a_port(hop: str, found: str) -> None:
    assert client_address("10.0.0.1", [hop], TrustedProxies(LOCAL)) == found


@pytest.mark.parametrize("more", [0, 1])
def test_so_many_hops_are_walked(more: int) -> None:
    hops = ["1.1.1.1", *["10.0.0.2"] * (MAX_HOPS - 1 + more)]
    found = client_address("10.0.0.1", [", ".join(hops)], TrustedProxies(LOCAL))
    assert found == ("10.0.0.2" if more else "1.1.1.1")

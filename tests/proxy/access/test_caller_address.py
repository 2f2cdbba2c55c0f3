"""Who a request is from, by its address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.caller_address import caller_for_address


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", "local"),
        ("x" * 200, "x" * 64),
    ],
)
def test_an_address_or_a_network_is_one_caller(address: str, caller: str) -> None:
    assert caller_for_address(address).id == caller


@given(st.ip_addresses().map(str))
def test_every_address_is_somebody_of_at_most_64_characters(address: str) -> None:
    assert 0 < len(caller_for_address(address).id) <= 64


def test_every_address_of_a_network_of_64_bits_is_one_and_its_neighbour_another() -> None:
    last = caller_for_address("2001:db8:1:2:ffff:ffff:ffff:ffff").id
    assert last == caller_for_address("2001:db8:1:2::").id == "2001:db8:1:2::/64"
    assert caller_for_address("2001:db8:1:3::").id == "2001:db8:1:3::/64"

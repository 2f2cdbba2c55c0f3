"""How urgent a request is, by its headers and its caller: tables."""

from __future__ import annotations

import math

import pytest
from multidict import CIMultiDict

from proxy.access.caller import Caller
from proxy.access.context import ClientRequest
from proxy.access.priority import MAX_TIMEOUT, PriorityPolicy, parse_request_timeout
from proxy.config.vocabulary import HIGH, LOW, NORMAL
from proxy.errors import Code, GatewayError
from tests.kit.mocked import mocked_request


def call(priority: str | None = None, caller: Caller | None = None) -> tuple[Caller | None, ClientRequest]:
    headers = CIMultiDict({} if priority is None else {"x-gateway-priority": priority})
    return caller, mocked_request("POST", "/", headers=headers)


def priority_policy(top: int = NORMAL) -> PriorityPolicy:
    return PriorityPolicy(top, lambda request: "192.0.2.1")


@pytest.mark.parametrize(
    ("given", "top", "found"),
    [
        (None, HIGH, NORMAL),
        (None, NORMAL, NORMAL),
        (None, LOW, LOW),
        ("high", HIGH, HIGH),
        ("low", NORMAL, LOW),
        ("LOW ", LOW, LOW),
    ],
)
def test_a_caller_without_a_key_may_ask_up_to_the_setting(given: str | None, top: int, found: int) -> None:
    assert priority_policy(top).turn(*call(given))[0] == found


def test_a_key_has_its_own_class_and_its_own_top() -> None:
    caller = Caller(id="k", tenant=b"t", priority=LOW, top_priority=NORMAL)
    assert priority_policy(HIGH).turn(*call(caller=caller)) == (LOW, b"t")
    assert priority_policy(LOW).turn(*call("normal", caller)) == (NORMAL, b"t")
    with pytest.raises(GatewayError) as caught:
        priority_policy(HIGH).turn(*call("high", caller))
    assert caught.value.code is Code.INVALID_HEADER


def test_whose_turn_it_takes_is_a_key_s_tenant_or_an_address_that_is_looked_for_when_it_is_asked() -> None:
    asked: list[ClientRequest] = []

    def address(request: ClientRequest) -> str:
        asked.append(request)
        return "192.0.2.1"

    known = PriorityPolicy(NORMAL, address)
    assert known.fairness_key(*call(caller=Caller(id="k", tenant=b"t"))) == b"t"
    for owner in (known.fairness_key(*call()), known.turn(*call())[1]):
        assert asked == []
        assert callable(owner)
        assert owner() == "192.0.2.1"
        asked.clear()


@pytest.mark.parametrize(
    ("addresses", "owner"),
    [
        (["2001:db8::1", "2001:db8::ffff:1"], "2001:db8::/64"),  # a host has the whole of one network
        (["192.0.2.1", "::ffff:192.0.2.1"], "192.0.2.1"),
        (["unix"], "unix"),
    ],
)
def test_the_addresses_that_one_host_may_have_take_turns_as_one(addresses: list[str], owner: str) -> None:
    for address in addresses:
        known = PriorityPolicy(NORMAL, lambda request, address=address: address)  # type: ignore[misc]
        assert known.current_fairness_key(*call()) == owner
        for resolve in (known.fairness_key(*call()), known.turn(*call())[1]):
            assert callable(resolve)
            assert resolve() == owner
        assert known.address(*call()) == address


@pytest.mark.parametrize(
    ("given", "seconds"), [(None, math.inf), ("1", 1.0), (" 0.25 ", 0.25), ("86400", 86400.0)]
)
def test_a_timeout_is_a_plain_number_of_seconds(given: str | None, seconds: float) -> None:
    assert parse_request_timeout(given) == seconds


def test_a_class_that_is_none_or_above_what_is_allowed_is_named() -> None:
    with pytest.raises(GatewayError) as unknown:
        priority_policy().turn(*call("x" * 70))
    assert unknown.value.message == f"x-gateway-priority must be one of high, normal, low, not {'x' * 64!r}."
    with pytest.raises(GatewayError) as above:
        priority_policy(LOW).turn(*call("normal"))
    assert above.value.message == "x-gateway-priority: normal exceeds your highest priority, low."


def test_an_address_is_told_where_no_key_is() -> None:
    assert priority_policy().address(*call()) == "192.0.2.1"
    assert priority_policy().address(*call(caller=Caller(id="k"))) is None


@pytest.mark.parametrize(
    "given", ["0", "0.0", "86400.1", "-1", "1e3", "", "nan", "1" * 10, "1." + "1" * 33, "x" * 70]
)
def test_a_timeout_that_is_no_number_of_seconds_in_its_bounds_is_refused(given: str) -> None:
    with pytest.raises(GatewayError) as caught:
        parse_request_timeout(given)
    assert caught.value.code is Code.INVALID_HEADER
    assert caught.value.message.endswith(f"above 0, up to 86400, not {given[:64]!r}.")
    assert parse_request_timeout("0.000000001") == 1e-9
    assert parse_request_timeout("0.30000000000000004") == 0.1 + 0.2, "as Python prints a float"
    assert parse_request_timeout("86400") == MAX_TIMEOUT

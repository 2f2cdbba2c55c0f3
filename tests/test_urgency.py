"""How urgent a request is, by its headers and its caller: tables."""

from __future__ import annotations

import math

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from proxy.access.caller import Caller
from proxy.access.priority import PriorityPolicy, parse_request_timeout
from proxy.config.vocabulary import HIGH, LOW, NORMAL
from proxy.errors import Code, GatewayError


def call(priority: str | None = None, caller: Caller | None = None) -> tuple[Caller | None, web.BaseRequest]:
    headers = CIMultiDict({} if priority is None else {"x-gateway-priority": priority})
    return caller, make_mocked_request("POST", "/", headers=headers)


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
    assert priority_policy(top).priority(*call(given)) == found


def test_a_key_has_its_own_class_and_its_own_top() -> None:
    caller = Caller(id="k", priority=LOW, top_priority=NORMAL)
    assert priority_policy(HIGH).priority(*call(caller=caller)) == LOW
    assert priority_policy(LOW).priority(*call("normal", caller)) == NORMAL
    with pytest.raises(GatewayError) as caught:
        priority_policy(HIGH).priority(*call("high", caller))
    assert caught.value.code is Code.INVALID_HEADER


def test_whose_turn_it_takes_is_a_key_s_tenant_or_an_address_that_is_looked_for_when_it_is_asked() -> None:
    asked: list[web.BaseRequest] = []

    def address(request: web.BaseRequest) -> str:
        asked.append(request)
        return "192.0.2.1"

    known = PriorityPolicy(NORMAL, address)
    assert known.owner(*call(caller=Caller(id="k", tenant=b"t"))) == b"t"
    owner = known.owner(*call())
    assert asked == []
    assert callable(owner)
    assert owner() == "192.0.2.1"


@pytest.mark.parametrize(
    ("given", "seconds"), [(None, math.inf), ("1", 1.0), (" 0.25 ", 0.25), ("86400", 86400.0)]
)
def test_a_timeout_is_a_plain_number_of_seconds(given: str | None, seconds: float) -> None:
    assert parse_request_timeout(given) == seconds

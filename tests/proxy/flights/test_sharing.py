"""The sharing decision, as a table."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.flights.sharing import PRIVATE, Share, Sharing, sharing_of
from proxy.wire.openai import ApiRequest, Endpoint, decode

UNSTORED = Sharing(shared=True, storable=False)
SHARED, FRESH = Sharing(shared=True), Sharing(shared=True, fresh=True)
MERGED = Sharing(shared=False, merge=True)


def api_request(endpoint: Endpoint = "chat", **fields: Any) -> ApiRequest:
    prompt = {"chat": "messages", "completions": "prompt", "embeddings": "input"}[endpoint]
    return decode(endpoint, json.dumps({"model": "m1", prompt: [], **fields}).encode())


@pytest.mark.parametrize(
    ("endpoint", "fields", "same"),
    [
        ("chat", {}, False),
        ("chat", {"temperature": None}, False),
        ("chat", {"temperature": 0}, True),
        ("chat", {"temperature": 0.0}, True),
        ("chat", {"temperature": 1e-9}, False),
        ("chat", {"temperature": 1, "seed": 0}, True),
        ("completions", {"seed": 3}, True),
        ("completions", {"seed": None}, False),
        ("embeddings", {}, True),
    ],
)
def test_asking_twice_gives_the_same_only_where_it_was_said(
    endpoint: Endpoint, fields: dict[str, Any], same: bool
) -> None:
    assert sharing_of(api_request(endpoint, **fields), "auto").shared is same


@pytest.mark.parametrize(
    ("default", "temperature", "cache_control", "override", "decision"),
    [
        ("auto", 0, "", "", SHARED),
        ("auto", 1, "", "", MERGED),
        ("all", 1, "", "", SHARED),
        ("off", 0, "", "", PRIVATE),
        ("auto", 1, "", "all", SHARED),
        ("all", 0, "", "off", PRIVATE),
        ("off", 0, "", "auto", SHARED),
        ("off", 1, "", " AUTO ", MERGED),
        ("all", 1, "", "  ", SHARED),
        ("auto", 0, "no-store", "", UNSTORED),
        ("auto", 0, "No-Store", "all", UNSTORED),
        ("auto", 0, "max-age=0, no-store", "", UNSTORED),
        ("auto", 0, "no-cache", "", FRESH),
        ("auto", 0, "max-age=0 , NO-CACHE ", "", FRESH),
        ("auto", 0, 'no-cache="x"', "", FRESH),
        ("auto", 1, "no-cache", "", MERGED),
        ("off", 0, "no-cache", "", PRIVATE),
        ("all", 1, "no-cache, no-store", "", Sharing(shared=True, fresh=True, storable=False)),
        ("auto", 1, "no-store", "", MERGED),
        ("auto", 0, "no-cache, no-store", "off", PRIVATE),
        ("auto", 0, "only-if-cached, nonsense,,=", "", SHARED),
        ("auto", 0, "not-no-store", "", SHARED),
    ],
)
def test_the_setting_the_headers_and_the_request_decide_together(
    default: Share, temperature: float, cache_control: str, override: str, decision: Sharing
) -> None:
    request = api_request(temperature=temperature)
    assert sharing_of(request, default, cache_control=cache_control, override=override) == decision


@pytest.mark.parametrize("override", ["yes", "auto,all", "x" * 1000])
def test_a_mode_that_does_not_exist_is_refused_with_the_ones_that_do(override: str) -> None:
    with pytest.raises(GatewayError, match="auto, all, off") as caught:
        sharing_of(api_request(), "auto", override=override)
    assert caught.value.code is Code.INVALID_HEADER
    assert caught.value.param == "x-gateway-share"
    assert len(caught.value.message) < 200


@given(st.binary(max_size=40), st.binary(max_size=12))
def test_no_bytes_of_a_header_raise_but_a_refusal(cache_control: bytes, override: bytes) -> None:
    said = [value.decode("utf-8", "surrogateescape") for value in (cache_control, override)]
    try:
        sharing_of(api_request(temperature=0), "auto", cache_control=said[0], override=said[1])
    except GatewayError as e:
        assert e.code is Code.INVALID_HEADER
        assert e.message.isascii() or e.message.isprintable()
        assert e.json()


def test_a_mode_that_does_not_exist_is_told_by_its_beginning() -> None:
    with pytest.raises(GatewayError, match=f"got {'x' * 32!r}"):
        sharing_of(api_request(), "auto", override=" " + "x" * 40)


@pytest.mark.parametrize(("seed", "same"), [(-1, False), (0, True), (1, True)])
def test_a_seed_below_0_is_none(seed: int, same: bool) -> None:
    assert sharing_of(api_request(seed=seed), "auto").shared is same


def test_without_a_word_of_it_a_request_may_be_stored_and_is_its_own() -> None:
    assert (PRIVATE.fresh, PRIVATE.storable, PRIVATE.merge) == (False, True, False)

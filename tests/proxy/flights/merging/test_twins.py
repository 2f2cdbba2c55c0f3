"""Which sampled requests are twins, as tables, and the request that they become."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.flights.merging.twins import (
    MAX_IDS,
    RECENT_SECONDS,
    RecentPrompts,
    choices_asked,
    lists_ids,
    mergeable,
    merged_body,
    twin_key,
)
from proxy.wire.openai import ApiRequest, Endpoint, decode


def api_request(endpoint: Endpoint = "chat", **fields: Any) -> ApiRequest:
    prompt = {"chat": "messages", "completions": "prompt", "embeddings": "input"}[endpoint]
    hi: object = [{"role": "user", "content": "hi"}] if endpoint == "chat" else "hi"
    return decode(endpoint, json.dumps({"model": "m1", prompt: hi, **fields}).encode())


@pytest.mark.parametrize(
    ("endpoint", "fields", "answer"),
    [
        ("chat", {}, True),
        ("chat", {"temperature": 0.7, "stream": True, "stream_options": {"include_usage": True}}, True),
        ("chat", {"n": 3, "logprobs": True, "stop": ["."], "user": "u"}, True),
        ("chat", {"tools": [], "tool_choice": "auto"}, True),
        ("completions", {"max_tokens": 3}, True),
        ("chat", {"temperature": 0}, False),
        ("chat", {"seed": 3}, False),
        ("chat", {"seed": -1}, False),
        ("chat", {"n": 0}, False),
        ("chat", {"n": "2"}, False),
        ("chat", {"best_of": 2}, False),
        ("chat", {"priority": 1}, False),
        ("chat", {"a_field_of_tomorrow": 1}, False),
        ("chat", {"stream": True, "stream_options": {"continuous_usage_stats": True}}, False),
        ("completions", {"prompt": ["a", "b"]}, False),
        ("completions", {"prompt": [1, 2]}, False),
        ("embeddings", {}, False),
        ("chat", {"user": 5}, False),
        ("chat", {"user": "x" * 1000}, False),
        ("chat", {"metadata": {"a": 1}}, False),
        ("chat", {"metadata": {"a": "b"}, "user": "u"}, True),
        ("chat", {"stream": True, "stream_options": {"new": None}}, False),
    ],
)
def test_what_samples_and_is_known_field_by_field_may_be_merged(
    endpoint: Endpoint, fields: dict[str, Any], answer: bool
) -> None:
    assert mergeable(api_request(endpoint, **fields)) is answer


@pytest.mark.parametrize(("n", "count"), [(None, 1), (1, 1), (16, 16), (True, None), (1.0, None), (10**9, None)])
def test_n_is_a_whole_number_above_zero_or_nothing(n: object, count: int | None) -> None:
    assert choices_asked(api_request(n=n)) == count


def test_twins_may_differ_in_n_in_usage_and_in_who_asks_and_in_nothing_else() -> None:
    key = twin_key(api_request(temperature=1), tenant=b"")
    assert twin_key(api_request(n=3, temperature=1, user="me", metadata={"a": "1"}), tenant=b"") == key
    others = [
        twin_key(api_request(temperature=1), tenant=b"another"),
        twin_key(api_request(temperature=1.0), tenant=b""),
        twin_key(api_request(temperature=1, stream=True), tenant=b""),
        twin_key(api_request(temperature=1, stop=["."]), tenant=b""),
        twin_key(api_request(temperature=1), tenant=b"", headers=[("x-session-id", "s")]),
        twin_key(api_request("completions", temperature=1), tenant=b""),
    ]
    assert len({key, *others}) == len(others) + 1


def test_the_request_for_all_is_the_first_ones_with_n_and_each_choices_usage() -> None:
    streamed = json.loads(merged_body(api_request(stream=True, n=2, stop=["."]), 5))
    assert streamed["n"] == 5
    assert streamed["stop"] == ["."]
    assert streamed["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert "stream_options" not in json.loads(merged_body(api_request(), 2))


def test_a_prompt_is_remembered_for_a_second_and_no_more_than_so_many_are() -> None:
    recent = RecentPrompts()
    assert not recent.seen(b"a", 0.0)
    assert recent.seen(b"a", RECENT_SECONDS)
    assert not recent.seen(b"a", 2.1 * RECENT_SECONDS)
    for n in range(10_000):
        recent.seen(b"%d" % n, 5.0)
    assert len(recent) == 512


@given(st.lists(st.binary(max_size=6), max_size=2), st.lists(st.binary(max_size=6), max_size=2))
def test_twins_have_the_same_bytes_in_their_headers(one: list[bytes], other: list[bytes]) -> None:
    keys = [
        twin_key(
            api_request(),
            tenant=b"",
            headers=[("x", value.decode("utf-8", "surrogateescape")) for value in values],
        )
        for values in (one, other)
    ]
    assert (keys[0] == keys[1]) is (sorted(one) == sorted(other))


def test_a_prompt_that_is_forgotten_for_others_was_the_oldest() -> None:
    recent = RecentPrompts()
    for n in range(512):
        recent.seen(b"%d" % n, 0.0)
    assert recent.seen(b"0", 0.5), "and it is the newest from now on"
    recent.seen(b"more", 0.5)
    assert (len(recent), recent.seen(b"1", 0.5), recent.seen(b"0", 0.6)) == (512, False, True)


@pytest.mark.parametrize("n", [99_999, 100_000])
def test_n_has_five_digits_at_most(n: int) -> None:
    assert choices_asked(api_request(n=n)) == (n if n < 100_000 else None)


def test_ids_of_a_body_are_asked_for_where_the_prompt_is_not_too_long() -> None:
    short = api_request(model="m")
    most = MAX_IDS // len(short.prompt)
    assert (lists_ids(short, most), lists_ids(short, most + 1), lists_ids(api_request(stream=True), 1)) == (
        True,
        False,
        False,
    )
    assert json.loads(merged_body(short, 2))["return_token_ids"] is True
    assert "return_token_ids" not in json.loads(merged_body(short, most + 1))
    assert "return_token_ids" not in json.loads(merged_body(api_request(stream=True), 2))


def test_who_asks_is_part_of_what_twins_have_alike_whatever_their_headers_order() -> None:
    headers = [("b", "2"), ("a", "1")]
    assert twin_key(api_request(), tenant=b"t", headers=headers) == twin_key(
        api_request(), tenant=b"t", headers=headers[::-1]
    )
    assert twin_key(api_request(), tenant=b"t", headers=headers) != twin_key(
        api_request(), tenant=b"t", headers=headers[:1]
    )
    assert twin_key(api_request(), tenant=b"t") == twin_key(api_request(), tenant=b"t", headers=())

"""Tokens at the edges: parts of several kinds, numbers of odd types, and what an answer cost that ended early."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from proxy.flights.cost import MAX_CHOICES, MEDIA_TOKENS, Cost, actual_cost, estimate, estimate_raw, was_dispatched
from proxy.flights.phase import Phase
from proxy.flights.spec import Head, Mode
from proxy.wire.frames import Usage
from proxy.wire.http.media_type import Media
from proxy.wire.openai import Endpoint, Large, decode
from proxy.wire.raw_body import NONE, read_passed
from tests.proxy.flights.test_cost import ASSUMED, AT_ENGINE, COST, flight


def cost(endpoint: Endpoint, **fields: Any) -> Cost:
    return estimate(decode(endpoint, json.dumps(fields, ensure_ascii=False).encode()), ASSUMED)


def prompt(*messages: Any) -> int:
    return cost("chat", messages=list(messages)).prompt


@pytest.mark.parametrize(
    ("messages", "tokens"),
    [
        ([], 0),
        ([{"role": "user", "content": ""}], 4),
        ([{"role": "user", "content": None}], 4),
        ([{}, {}], 8),
        ([{"role": "user", "content": "a"}], 5),
        ([{"role": "user", "content": "é" * 2}], 5),
        ([{"role": "user", "content": ["abcd", {"type": "text", "text": "abcd"}]}], 6),
        ([{"role": "rrrr", "content": "abcd"}], 6),
        ([{"name": "nnnn", "tool_call_id": "tttt", "content": "abcd"}], 7),
        ([{"name": "nnnn"}, {"tool_call_id": "tttt"}], 10),
        ([{"role": "user", "content": "a", "x": 1}], 5),
        ([{"role": "user", "content": ["abcd", {"type": "t", "y": "zz"}]}], 6),
        ([{"role": "r" * 30, "content": "ab", "x": 1}], 10),
        ([{"content": [{"image_url": "a"}, {"input_audio": "b"}]}], 4 + 2 * MEDIA_TOKENS),
        ([{"content": [{"image_url": "a", "source": "b", "detail": "cccc"}]}], 6 + MEDIA_TOKENS),
        ([{"content": [{"image_url": "a"}], "extra": "zzzz"}], 6 + MEDIA_TOKENS),
        ([{"content": [{"image_url": "a"}, "abcd"]}, {"content": "abcd"}], 11 + MEDIA_TOKENS),
    ],
    ids=str,
)
def test_the_tokens_of_messages(messages: list[Any], tokens: int) -> None:
    assert prompt(*messages) == tokens


@pytest.mark.parametrize("raw", [b'[{"role":', b"[5]", b'["\xff"]', b"[" * 100_000, b'[{"content":[5]}]'])
def test_what_is_for_the_engine_to_judge_is_counted_by_its_bytes(raw: bytes) -> None:
    api_request = decode("chat", b'{"messages":[]}')
    api_request = msgspec.structs.replace(api_request, fields={"messages": msgspec.Raw(raw)})
    assert estimate(api_request, ASSUMED).prompt == -(-len(raw) // 4)


@pytest.mark.parametrize("escape", ["\\u0022", "\\u005c"])
def test_a_quote_that_is_escaped_as_a_number_is_counted_by_its_bytes(escape: str) -> None:
    raw = f'[{{"content":"{escape}"}}]'
    assert estimate(decode("chat", f'{{"messages":{raw}}}'.encode()), ASSUMED).prompt == -(-len(raw) // 4)


@pytest.mark.parametrize(
    ("value", "tokens", "choices"),
    [("abcde", 2, 1), ([], 0, 1), (["abcde", "a"], 3, 2), ([1, 2], 2, 1), ([[1], [2, 3]], 3, 2), ([None], 1, 1)],
)
def test_the_tokens_of_prompts_and_how_many_there_are(value: Any, tokens: int, choices: int) -> None:
    assert cost("completions", prompt=value, max_tokens=2) == Cost(tokens, 2 * choices)
    assert cost("embeddings", input=value) == Cost(tokens, 0)


def test_what_reaches_the_prompt_beside_it_is_charged() -> None:
    assert cost("completions", prompt="", suffix="ab").prompt == 1
    assert cost("chat", messages=[], tools=["ab"], documents=["ab"]).prompt == 4
    assert cost("completions", prompt="abcd", prompt_embeds="x").prompt == 1 + MEDIA_TOKENS


@pytest.mark.parametrize(
    ("fields", "completion"),
    [
        ({"max_tokens": 999_999_999_999}, ASSUMED),
        ({"max_tokens": 0}, ASSUMED),
        ({"max_tokens": 1, "n": MAX_CHOICES}, MAX_CHOICES),
        ({"max_tokens": 1, "n": MAX_CHOICES + 1}, MAX_CHOICES),
        ({"max_tokens": 1, "n": 3, "best_of": 2}, 3),
        ({"max_tokens": 1, "n": 2, "best_of": 3}, 3),
        ({"max_tokens": 1, "n": 0}, 1),
        ({"max_tokens": 1, "n": "2"}, 2),
        ({"max_tokens": 1, "n": "x" * 62}, 1),
        ({"max_tokens": 1, "n": " " * 61 + "2"}, 2),
        ({"max_tokens": 1, "n": " " * 62 + "2"}, 1),
        ({"max_tokens": 1, "n": -5}, 1),
    ],
    ids=str,
)
def test_what_a_request_allows_is_charged(fields: dict[str, Any], completion: int) -> None:
    assert cost("chat", messages=[], **fields).completion == completion


@pytest.mark.parametrize("raw", [b"[", b'"\xff"', b"[" * 60])
def test_choices_that_nobody_can_read_are_one(raw: bytes) -> None:
    api_request = decode("chat", b'{"messages":[],"max_tokens":3}')
    api_request = msgspec.structs.replace(api_request, fields={**api_request.fields, "n": msgspec.Raw(raw)})
    assert estimate(api_request, ASSUMED).completion == 3


def test_a_request_that_was_read_elsewhere_costs_what_was_found_there() -> None:
    api_request = msgspec.structs.replace(decode("chat", b'{"messages":[]}'), large=Large((7, 9), None, 0, False))
    assert estimate(api_request, ASSUMED) == Cost(7, 9)


@pytest.mark.parametrize(
    ("body", "completion"),
    [
        (b'{"max_output_tokens":2,"max_tokens":9}', 2),
        (b'{"max_completion_tokens":3,"max_tokens":9}', 3),
        (b'{"max_tokens":2,"n":%d}' % MAX_CHOICES, 2 * MAX_CHOICES),
        (b'{"max_tokens":2,"n":%d}' % (MAX_CHOICES + 1), 2 * MAX_CHOICES),
        (b'{"max_tokens":2,"n":2,"best_of":3}', 6),
        (b'{"max_tokens":99999}', ASSUMED),
    ],
)
def test_what_a_passed_body_allows_is_charged(body: bytes, completion: int) -> None:
    assert estimate_raw("/v1/x", read_passed(Media("json"), body), ASSUMED).completion == completion
    assert estimate_raw("/v1/x", NONE, ASSUMED) == Cost(0, 0)


def test_what_ended_early_cost_what_an_engine_had_done() -> None:
    refused = flight(*AT_ENGINE, mode=Mode.WHOLE)
    refused.land(Head(399, (), 2))
    assert actual_cost(refused, COST) == 600
    began = flight(*AT_ENGINE, Phase.STREAMING)
    began.times.first, began.content_events = 0.0, 3
    assert actual_cost(began, COST) == 103
    assert was_dispatched(began)
    began.cancel()
    assert was_dispatched(began)
    whole = flight(*AT_ENGINE, mode=Mode.WHOLE)
    whole.times.first = 1.0
    whole.cancel()
    assert (actual_cost(whole, COST), was_dispatched(whole)) == (600, True), "nobody says how much of it was made"
    counted = flight(*AT_ENGINE)
    counted.usage = Usage(prompt_tokens=0, completion_tokens=0)
    assert actual_cost(counted, COST) == 0


IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}
WORD = {"role": "user", "content": "x" * 400}


@pytest.mark.parametrize(
    ("before", "after"), [(WORD, IMAGE), (IMAGE, WORD)], ids=["a text before an image", "an image before a text"]
)
def test_beside_an_image_every_message_and_every_part_counts(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    messages = [one if "role" in one else {"role": "user", "content": [one]} for one in (before, after)]
    alone = prompt({"role": "user", "content": [IMAGE]})
    assert alone >= MEDIA_TOKENS
    assert prompt(*messages) >= alone + 100
    parts = prompt({"role": "user", "content": ["x" * 400, IMAGE, "y" * 400]})
    assert parts >= alone + 200

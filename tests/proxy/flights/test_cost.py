"""Tokens: guessed from a request, known from what became of its Flight."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.flights.cost import MEDIA_TOKENS, Cost, actual_cost, estimate, estimate_raw, was_dispatched
from proxy.flights.flight import Flight
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Head, Mode
from proxy.wire.frames import Usage
from proxy.wire.http.media_type import Media
from proxy.wire.openai import Endpoint, decode
from proxy.wire.raw_body import read_passed

ASSUMED = 512


def guess(endpoint: Endpoint, **fields: Any) -> Cost:
    return estimate(decode(endpoint, json.dumps(fields, ensure_ascii=False).encode()), ASSUMED)


def chat(content: Any, **fields: Any) -> Cost:
    return guess("chat", messages=[{"role": "user", "content": content}], **fields)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (chat("x" * 400), Cost(104, ASSUMED)),
        (chat("x" * 400, max_tokens=100), Cost(104, 100)),
        (chat("x" * 400, max_completion_tokens=7, max_tokens=100), Cost(104, 7)),
        (chat("x" * 400, max_tokens=10**6), Cost(104, ASSUMED)),
        (chat("x" * 400, max_tokens=None), Cost(104, ASSUMED)),
        (chat("x" * 400, max_tokens=-5), Cost(104, ASSUMED)),
        (chat("x" * 400, max_tokens="many"), Cost(104, ASSUMED)),
        (chat("x" * 400, max_tokens=10, n=3), Cost(104, 30)),
        (chat("x" * 400, max_tokens=1, n=10**9), Cost(104, 128)),
        (chat("語" * 100), Cost(79, ASSUMED)),
        (chat([{"type": "text", "text": "x" * 40}]), Cost(14, ASSUMED)),
        (
            chat([{"type": "image_url", "image_url": {"url": "data:" + "x" * 10**6}}]),
            Cost(4 + MEDIA_TOKENS, ASSUMED),
        ),
        (guess("completions", prompt="x" * 40, max_tokens=5), Cost(10, 5)),
        (guess("completions", prompt=[1, 2, 3], max_tokens=5), Cost(3, 5)),
        (guess("completions", prompt=["x" * 40, "x" * 4], max_tokens=5), Cost(11, 10)),
        (guess("completions", prompt=[[1, 2], [3]], max_tokens=5, best_of=2), Cost(3, 20)),
        (guess("completions", prompt=[]), Cost(0, ASSUMED)),
        (guess("embeddings", input=["x" * 40, "x" * 40]), Cost(20, 0)),
    ],
)
def test_a_prompt_is_counted_by_its_bytes_or_ids_and_an_answer_by_what_it_may_have(
    cost: Cost, expected: Cost
) -> None:
    assert cost == expected


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_whatever_a_prompt_is_there_is_a_guess(value: Any) -> None:
    body = json.dumps({"messages": [value], "n": value, "max_tokens": value}).encode()
    cost = estimate(decode("chat", body), ASSUMED)
    assert 0 <= cost.prompt <= len(body)
    assert 1 <= cost.completion <= ASSUMED * 128
    raw = json.dumps({"input": value if isinstance(value, list) else str(value)}).encode()
    assert estimate(decode("embeddings", raw), ASSUMED).prompt <= len(raw)


@pytest.mark.parametrize(
    "message",
    [
        '{"role": "user", "content": "%s", "content": ""}',
        '{"role": "user", "content": "%s", "c\\u006fntent": ""}',
        '{"role": "user", "content": "%s", "content": "", "x": "\\u0022\\u0022"}',
        '{"role": "user", "content": [{"type": "text", "text": "%s", "text": ""}]}',
    ],
)
def test_a_text_that_another_reader_would_find_is_charged(message: str) -> None:
    body = ('{"messages": [' + message % ("x" * 4000) + "]}").encode()
    assert estimate(decode("chat", body), ASSUMED).prompt > 1000


@pytest.mark.parametrize(
    ("fields", "least"),
    [
        ({"messages": [{"role": "user", "content": "a", "reasoning_content": "x" * 4000}]}, 1000),
        ({"messages": [{"role": "x" * 4000, "content": "a"}]}, 990),
        ({"messages": [{"role": "user", "name": "x" * 4000, "content": "a"}]}, 1000),
        ({"messages": [{"role": "tool", "content": [{"type": "tool_result", "content": "x" * 4000}]}]}, 1000),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": None, "y": "x" * 4000}]}]}, 1000),
        ({"messages": [{"content": None, "tool_calls": [{"function": {"arguments": "x" * 4000}}]}]}, 1000),
        ({"messages": [], "documents": [{"text": "x" * 4000}]}, 1000),
        ({"messages": [], "chat_template_kwargs": {"a": "x" * 4000}}, 1000),
        ({"messages": [], "tools": [{"function": {"description": "x" * 4000}}]}, 1000),
    ],
)
def test_whatever_reaches_the_prompt_is_charged(fields: dict[str, Any], least: int) -> None:
    assert least < guess("chat", **fields).prompt < least + 100


def test_a_picture_beside_the_call_of_a_tool_is_no_text() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:" + "x" * 10**6}}
    messages = [{"role": "user", "content": [picture]}, {"role": "assistant", "tool_calls": []}]
    assert guess("chat", messages=messages).prompt < MEDIA_TOKENS + 20


def test_what_a_completion_has_besides_its_prompt_is_charged() -> None:
    assert guess("completions", prompt="a", suffix="x" * 4000).prompt > 1000
    assert guess("completions", prompt_embeds="x" * 400_000).prompt == MEDIA_TOKENS + 1


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n'
    b'--x\r\nContent-Disposition: form-data; name="max_completion_tokens"\r\n\r\n7\r\n--x--'
)


@pytest.mark.parametrize(
    ("path", "body", "cost"),
    [
        ("/tokenize", b'{"prompt": "abcd"}', Cost(5, 0)),
        ("/tokenize", b' \n{"prompt": "abcd"}', Cost(5, 0)),
        ("/v1/responses", b"", Cost(0, 0)),
        ("/v1/responses", b'{"input": "abc"}', Cost(4, ASSUMED)),
        ("/v1/responses", b' {"input": "abc"}', Cost(5, ASSUMED)),
        ("/v1/responses", b'{"max_output_tokens": 8}', Cost(6, 8)),
        ("/v1/messages", b'{"max_tokens": 9}', Cost(5, 9)),
        ("/v1/messages", b'{"max_tokens": 9, "n": 3}', Cost(7, 27)),
        ("/v1/messages", b'{"max_tokens": "x"}', Cost(5, ASSUMED)),
        ("/v1/messages", b'["max_tokens"]', Cost(4, ASSUMED)),
        ("/v1/a/b", b'{"max_tokens": 9}', Cost(5, 9)),
        ("/v1/chat/completions/batch", b'{"messages": [[], []], "max_tokens": 9}', Cost(10, 18)),
        ("/generative_scoring", b'{"query": "12345678", "items": ["a", "b", "c"]}', Cost(17, 0)),
        ("/generative_scoring", b'{"query": [1, 2, 3], "items": ["a", "b", "c"]}', Cost(15, 0)),
        ("/v1/systemone", b'{"state": {"a": 1}, "questions": {"a": {}, "b": {}}}', Cost(15, ASSUMED)),
        ("/v1/decisions", b'{"input": [{"a": 1}, 0], "questions": [{}, {}]}', Cost(15, ASSUMED)),
        ("/rerank", b'{"query": "12345678", "documents": ["a", "b", "c"]}', Cost(18, 0)),
        ("/score", b'{"text_1": ["12345678"], "text_2": ["a", "b", "c"]}', Cost(19, 0)),
        ("/score", b'{"text_1": ["1", "2", "3"], "text_2": ["a", "b", "c"]}', Cost(14, 0)),
        ("/score", b'{"queries": "12345678", "documents": "abc"}', Cost(11, 0)),
        ("/v1/audio/transcriptions", FORM % b"RIFF", Cost(math.ceil((len(FORM) - 2) / 4) + 1024, 7)),
        ("/v1/audio/transcriptions", FORM % (b"R" * 9999), Cost(math.ceil((len(FORM) - 2) / 4) + 1024, 7)),
    ],
)
def test_what_passes_through_is_counted_by_its_size(path: str, body: bytes, cost: Cost) -> None:
    media = Media("form", b"x") if body.startswith(b"--") else Media("json")
    assert estimate_raw(path, read_passed(media, body), ASSUMED) == cost


@pytest.mark.parametrize("given", ["8", '"8"', "8.0", '" 8 "'])
def test_choices_are_counted_in_every_type_that_an_engine_takes(given: str) -> None:
    body = f'{{"messages": [], "max_tokens": 2, "n": {given}}}'.encode()
    assert estimate(decode("chat", body), 100).completion == 16
    assert estimate_raw("/v1/x", read_passed(Media("json"), body), 100).completion == 16


def test_what_nobody_here_can_read_is_counted_by_its_size() -> None:
    assert estimate_raw("/v1/a/b", read_passed(Media("other"), b"abcdefgh"), ASSUMED) == Cost(2, ASSUMED)


def flight(*phases: Phase, mode: Mode = Mode.STREAM) -> Flight:
    made = Flight(FlightSpec("POST", "/", b"", mode, "r"))
    for phase in phases:
        made.enter(phase)
    return made


AT_ENGINE = (Phase.CONNECTING, Phase.PREFILL)
COST = Cost(100, 500)


def test_usage_is_what_it_cost_whatever_was_guessed() -> None:
    one = flight(*AT_ENGINE, Phase.STREAMING)
    one.usage = Usage(prompt_tokens=7, completion_tokens=9)
    one.land()
    assert actual_cost(one, COST) == 16


@pytest.mark.parametrize("phases", [(), (Phase.CONNECTING,)])
def test_a_request_that_left_before_an_engine_had_it_cost_nothing(phases: tuple[Phase, ...]) -> None:
    one = flight(*phases)
    assert not was_dispatched(one)
    one.cancel()
    assert (actual_cost(one, COST), was_dispatched(one)) == (0, False)


def test_a_request_that_left_during_prefill_cost_its_prompt() -> None:
    one = flight(*AT_ENGINE)
    one.cancel()
    assert (actual_cost(one, COST), was_dispatched(one)) == (100, True)


def test_a_stream_that_was_left_cost_what_had_come() -> None:
    one = flight(*AT_ENGINE, Phase.STREAMING)
    one.times.first, one.content_events = 1.0, 12
    one.cancel()
    assert actual_cost(one, COST) == 112


@pytest.mark.parametrize("code", [Code.UPSTREAM_UNREACHABLE, Code.QUEUE_FULL, Code.UPSTREAM_FIRST_TOKEN_TIMEOUT])
def test_an_answer_that_failed_before_its_first_token_cost_nothing(code: Code) -> None:
    one = flight(*AT_ENGINE)
    one.fail(GatewayError(code, "x"))
    assert actual_cost(one, COST) == 0


def test_an_engine_s_refusal_cost_nothing_and_a_body_without_usage_the_guess() -> None:
    for status, cost in ((400, 0), (200, 600)):
        one = flight(*AT_ENGINE, mode=Mode.WHOLE)
        one.land(Head(status, (), 2))
        assert actual_cost(one, COST) == cost

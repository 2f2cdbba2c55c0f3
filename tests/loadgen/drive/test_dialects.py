"""What each API's messages say: vLLM's recorded answers, and the events that it does not send."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.drive.bodies import shaped
from loadgen.drive.capture.decode import answer_of, decode_exchange
from loadgen.drive.capture.dialects import DIALECTS
from loadgen.drive.capture.leaving import TokenCount
from loadgen.drive.requests import RequestBuilder, ScheduledRequest
from loadgen.record import GENERATED, Kind, Record
from loadgen.spec import PATHS, Body, Endpoint
from loadgen.workload.model import Prompt
from tests.golden import load
from tests.loadgen.drive.test_decode import Still, exchange

TEXTS: dict[Endpoint, str] = {
    "responses": "The colour I am referring to is a",
    "messages": "1. Red: The most obvious colour",
}


def decoded(endpoint: Endpoint, *parts: bytes, **more: Any) -> Record:
    return decode_exchange(exchange(*parts, **more), Still(), endpoint=endpoint, keep_answer=True)


@pytest.mark.parametrize("endpoint", TEXTS)
def test_a_recorded_stream_gives_its_tokens_its_usage_and_its_text(endpoint: Endpoint) -> None:
    body = load(f"{endpoint}-stream").body
    record = decoded(endpoint, body)
    assert record.failure is None, record.detail
    assert sum(event.kind in GENERATED for event in record.events) == 8
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (
        {"responses": 33, "messages": 34}[endpoint],
        8,
        0,
    )
    assert record.answer == TEXTS[endpoint]
    assert answer_of(exchange(body), endpoint) == TEXTS[endpoint]
    before = list(itertools.takewhile(lambda event: event.kind not in GENERATED, record.events))
    assert {event.kind for event in before} == {Kind.ROLE, Kind.OTHER}


@pytest.mark.parametrize("endpoint", TEXTS)
def test_a_recorded_body_gives_its_usage_and_its_text(endpoint: Endpoint) -> None:
    record = decoded(endpoint, load(endpoint).body, stream=False)
    assert record.failure is None, record.detail
    assert (record.completion_tokens, record.answer) == (8, TEXTS[endpoint])
    assert [event.kind for event in record.events] == [Kind.WHOLE]


@given(st.sampled_from(sorted(TEXTS)), st.data())
def test_a_stream_without_its_last_event_is_truncated_wherever_it_ends(
    endpoint: Endpoint, data: st.DataObject
) -> None:
    body = load(f"{endpoint}-stream").body
    last = {"responses": b"event: response.completed", "messages": b"event: message_stop"}[endpoint]
    cut = data.draw(st.integers(1, body.index(last)))
    record = decoded(endpoint, body[:cut])
    assert record.failure == "truncated" or (record.failure, record.events) == ("garbage", [])
    assert answer_of(exchange(body[:cut]), endpoint) is None


@pytest.mark.parametrize("endpoint", ["chat", "responses", "messages"])
@given(tokens=st.integers(1, 8), data=st.data())
def test_tokens_are_counted_as_they_arrive_under_any_cutting(
    endpoint: Endpoint, tokens: int, data: st.DataObject
) -> None:
    body = load("chat-greedy-stream" if endpoint == "chat" else f"{endpoint}-stream").body
    edges = sorted(data.draw(st.sets(st.integers(1, len(body) - 1), max_size=20)))
    count = TokenCount(endpoint, tokens)
    pieces: list[bytes] = [body[a:b] for a, b in itertools.pairwise([0, *edges, len(body)])]
    seen = b""
    for piece in pieces:
        if count.reached(piece):
            break
        seen += piece
    whole = TokenCount(endpoint, 10**6)
    whole.reached(seen)
    assert whole.tokens < tokens <= count.tokens


def event(**fields: Any) -> bytes:
    return f"event: {fields.get('type')}\ndata: {json.dumps(fields)}\n\n".encode()


def item(**fields: Any) -> dict[str, Any]:
    return {"type": "response.output_item.added", "item": fields}


def delta(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "delta": {"type": kind, **fields}}


@pytest.mark.parametrize(
    ("endpoint", "fields", "kind"),
    [
        ("responses", {"type": "response.reasoning_text.delta", "delta": "hm"}, Kind.REASONING),
        ("responses", {"type": "response.function_call_arguments.delta", "delta": "{"}, Kind.TOOL),
        ("responses", item(type="function_call", name="f"), Kind.TOOL),
        ("responses", item(type="message"), Kind.ROLE),
        ("responses", {"type": "response.output_text.delta", "delta": ""}, Kind.OTHER),
        ("responses", {"type": "response.of_tomorrow"}, Kind.OTHER),
        ("messages", delta("thinking_delta", thinking="hm"), Kind.REASONING),
        ("messages", delta("input_json_delta", partial_json="{"), Kind.TOOL),
        ("messages", delta("signature_delta", signature="x"), Kind.OTHER),
        ("messages", {"type": "content_block_start", "content_block": {"name": "f"}}, Kind.TOOL),
        ("messages", {"type": "ping"}, Kind.OTHER),
    ],
)  # fmt: skip
def test_each_event_has_its_kind(endpoint: Endpoint, fields: dict[str, Any], kind: Kind) -> None:
    (part,) = DIALECTS[endpoint].event(json.dumps(fields).encode()).parts
    assert part.kind == kind


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("responses", {"type": "response.failed", "response": {"error": {"message": "out of memory"}}}),
        ("responses", {"type": "error", "message": "out of memory"}),
        ("responses", {"error": {"message": "out of memory"}}),
        ("messages", {"type": "error", "error": {"type": "overloaded_error", "message": "out of memory"}}),
    ],
)
def test_an_error_event_is_a_failure(endpoint: Endpoint, fields: dict[str, Any]) -> None:
    record = decoded(endpoint, event(**fields))
    assert (record.failure, record.detail) == ("error_frame", "out of memory")


def test_anthropics_tokens_of_the_cache_are_input_too() -> None:
    usage = {"input_tokens": 4, "cache_read_input_tokens": 30, "output_tokens": 2}
    body = {"type": "message", "content": [{"type": "text", "text": "x"}], "usage": usage}
    record = decoded("messages", json.dumps(body).encode(), stream=False)
    assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (34, 30, 2)


def test_a_message_delta_without_input_tokens_keeps_those_of_the_start() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 0}}}
    end = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}}
    record = decoded("messages", event(**start) + event(**end) + event(type="message_stop"))
    assert (record.prompt_tokens, record.completion_tokens) == (9, 5)


def test_a_rerank_answer_is_its_results() -> None:
    body = {"results": [{"index": 0, "relevance_score": 0.5}], "usage": {"prompt_tokens": 12, "total_tokens": 12}}
    record = decoded("rerank", json.dumps(body).encode(), stream=False)
    assert (record.failure, record.prompt_tokens) == (None, 12)
    assert decoded("rerank", b'{"results": []}', stream=False).failure == "garbage"


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What?"}, IMAGE]},
    ],
    "max_tokens": 7,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
}  # fmt: skip


def test_a_chat_prompt_as_a_request_for_responses() -> None:
    assert shaped(CHAT, "responses") == {
        "input": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What?"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AA=="},
                ],
            },
        ],
        "max_output_tokens": 7,
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    }


def test_a_chat_prompt_as_a_request_for_messages() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AA=="}
    assert shaped(CHAT, "messages") == {
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image", "source": source}]}
        ],
        "max_tokens": 7,
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    }
    assert shaped({"messages": [{"role": "user", "content": "x"}]}, "messages")["max_tokens"] == 1024


@pytest.mark.parametrize("endpoint", PATHS)
def test_only_chat_and_completions_ask_for_usage_in_the_stream(endpoint: Endpoint) -> None:
    form: dict[str, dict[str, Any]] = {
        "completions": {"prompt": "x"},
        "embeddings": {"input": "x"},
        "rerank": {"query": "x", "documents": ["y"]},
    }
    prompt = Prompt("p", "chat", form.get(endpoint, {"messages": [{"role": "user", "content": "x"}]}))
    built = RequestBuilder({"a": "http://h"}, endpoint, Body(model="m")).build(ScheduledRequest(0, prompt))
    body = json.loads(built.body)
    assert built.url == f"http://h{PATHS[endpoint]}"
    assert ("stream_options" in body) == (endpoint in ("chat", "completions"))
    assert built.record.stream == (endpoint not in ("embeddings", "rerank"))

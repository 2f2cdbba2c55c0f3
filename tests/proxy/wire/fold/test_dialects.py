"""Tests of both dialects where the goldens do not reach: recordings of llama.cpp, and vLLM's rarer members."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.wire.fold.folding import Unfoldable, fold
from proxy.wire.frames import usage_of
from proxy.wire.sse import Framer, encode
from tests.golden import load
from tests.proxy.wire import llama_cpp

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"


def frames_of(stream: bytes) -> list[bytes]:
    return Framer(1 << 20).feed(stream)


def vllm(*deltas: Json, details: Json | None = None, **last: Any) -> list[bytes]:
    """A chat's frames as vLLM writes them: a role, these deltas, a finish and the usage."""
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    said = [{"role": "assistant", "content": ""}, *deltas, {}]
    choices: list[Json] = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} for delta in said]
    choices[-1] |= {"finish_reason": "stop", "stop_reason": None, "token_ids": None} | last
    usage: Json = {"prompt_tokens": 1, "total_tokens": 3, "completion_tokens": 2}
    if details is not None:
        usage["completion_tokens_details"] = details
    chunks = [{**head, "choices": [choice]} for choice in choices]
    chunks.append({**head, "choices": [], "usage": usage, "system_fingerprint": "vllm-0.32.0-tp2-abcdef01"})
    return [*(encode(json.dumps(chunk).encode()) for chunk in chunks), DONE]


def choice_of(frames: list[bytes], *, forced_tool: bool = False) -> Json:
    choice: Json = json.loads(fold(frames, "chat", forced_tool=forced_tool))["choices"][0]
    return choice


def call(index: int, arguments: str, **more: str) -> Json:
    return {
        "index": index,
        "id": f"t{index}",
        "type": "function",
        "function": {"arguments": arguments, "name": "f"},
        **more,
    }


@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_a_recorded_stream_of_llama_cpp_folds_to_its_recorded_body_byte_for_byte(kind: Any) -> None:
    assert fold(frames_of(llama_cpp.stream(kind, usage=True)), kind) == llama_cpp.body(kind)


def test_llama_cpp_sends_no_role_where_the_first_character_came_in_pieces_and_its_body_has_one() -> None:
    role, *rest = frames_of(llama_cpp.stream("chat", usage=True))
    assert b'"role"' in role
    assert fold(rest, "chat") == llama_cpp.body("chat")


def test_several_choices_of_llama_cpp_are_refused_as_its_usage_counts_but_one() -> None:
    with pytest.raises(Unfoldable):
        fold(frames_of(llama_cpp.stream("n2", usage=True)), "chat")


def test_a_stream_of_llama_cpp_without_usage_is_refused() -> None:
    with pytest.raises(Unfoldable, match="usage"):
        fold(frames_of(llama_cpp.stream("chat", usage=False)), "chat")


def test_reasoning_before_content_goes_to_its_own_member_and_is_counted() -> None:
    frames = vllm(
        {"reasoning": "Let me"}, {"reasoning": " see."}, {"content": "4"}, details={"reasoning_tokens": 3}
    )
    assert choice_of(frames)["message"]["reasoning"] == "Let me see."
    assert choice_of(frames)["message"]["content"] == "4"
    assert json.loads(fold(frames, "chat"))["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}


@pytest.mark.parametrize(
    ("deltas", "details"),
    [
        ([{"reasoning": "Let me"}], {"reasoning_tokens": 2}),
        ([{"reasoning": "Let me"}, {"content": "4"}], None),
        ([{"reasoning_content": "Let me"}, {"content": "4"}], {"reasoning_tokens": 2}),
        ([{"role": "assistant", "content": "4"}], None),
        ([{"content": "4", "refusal": None}], None),
    ],
)
def test_reasoning_on_its_own_and_shapes_of_other_versions_are_refused(
    deltas: list[Json], details: Json | None
) -> None:
    with pytest.raises(Unfoldable):
        fold(vllm(*deltas, details=details), "chat")


def test_a_token_outside_the_top_gets_the_members_that_a_stream_leaves_out() -> None:
    entry = {"token": "x", "bytes": [120]}
    frames = vllm({"content": "x"}, logprobs={"content": [entry]})
    assert choice_of(frames)["logprobs"] == {"content": [{**entry, "logprob": -9999.0, "top_logprobs": []}]}


def test_logprobs_of_a_completion_are_joined_column_by_column() -> None:
    def chunk(text: str, offset: int, token: str, finish: str | None) -> Json:
        columns = {
            "text_offset": [offset],
            "token_logprobs": [-0.5],
            "tokens": [token],
            "top_logprobs": [{token: -0.5}],
        }
        return {"index": 0, "text": text, "logprobs": columns, "finish_reason": finish, "stop_reason": None}

    head = {"id": "c", "object": "text_completion", "created": 1, "model": "m"}
    usage = {"prompt_tokens": 1, "total_tokens": 3, "completion_tokens": 2}
    chunks: list[Json] = [
        {**head, "choices": [chunk("", 0, ",", None)]},
        {**head, "choices": [chunk(", a", 1, " a", "stop")]},
    ]
    chunks.append({**head, "choices": [], "usage": usage, "system_fingerprint": "vllm-0.32.1-x"})
    body = json.loads(fold([*(encode(json.dumps(chunk).encode()) for chunk in chunks), DONE], "completions"))
    assert body["choices"][0]["text"] == ", a"
    assert body["choices"][0]["logprobs"] == {
        "text_offset": [0, 1],
        "token_logprobs": [-0.5, -0.5],
        "tokens": [",", " a"],
        "top_logprobs": [{",": -0.5}, {" a": -0.5}],
    }


def test_usage_on_every_chunk_does_not_matter_where_the_last_one_has_it_too() -> None:
    continuous = load("chat-continuous-usage-stream").frames()
    body = json.loads(fold(continuous, "chat"))
    usage = usage_of(continuous[-2])
    assert usage is not None
    assert body["usage"]["completion_tokens"] == usage.completion_tokens == 5
    assert body["choices"][0]["message"]["content"] == "1. Red: The"


def test_forced_calls_are_merged_by_index_and_their_content_is_empty() -> None:
    first, more, second = call(0, '{"a"'), {"index": 0, "function": {"arguments": ": 1}"}}, call(1, '"x"')
    message = choice_of(vllm({"tool_calls": [first]}, {"tool_calls": [more, second]}), forced_tool=True)["message"]
    assert message["content"] == ""
    assert message["tool_calls"] == [
        {"id": "t0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '"x"'}},
    ]


@pytest.mark.parametrize(
    "calls",
    [
        [call(0, '{"a":1}')],
        [call(0, '{"a": 1')],
        [call(0, "")],
        [call(0, '{"a": "é"}')],
        [call(0, '{"a": 1.50}')],
        [call(0, '{"a": 1, "a": 2}')],
        [call(1, "{}")],
        [call(0, "{}"), call(0, "")],
        [{"index": 0, "function": {"arguments": "{}"}}],
        [call(0, "{}", type="custom")],
    ],
    ids=json.dumps,
)
def test_calls_that_a_body_may_spell_or_order_in_another_way_are_refused(calls: list[Json]) -> None:
    with pytest.raises(Unfoldable):
        fold(vllm({"tool_calls": calls}), "chat", forced_tool=True)


@pytest.mark.parametrize(
    ("deltas", "finish"),
    [
        ([{"content": "Sure. "}, {"tool_calls": [call(0, "{}")]}], "stop"),
        ([{"tool_calls": [call(0, "{}")]}], "length"),
        ([{"tool_calls": [call(0, "{}")]}], "tool_calls"),
        ([{"reasoning": "hm"}, {"tool_calls": [call(0, "{}")]}], "stop"),
        ([], "stop"),
    ],
)
def test_a_forced_call_with_anything_beside_it_is_refused(deltas: list[Json], finish: str) -> None:
    with pytest.raises(Unfoldable):
        fold(vllm(*deltas, finish_reason=finish), "chat", forced_tool=True)

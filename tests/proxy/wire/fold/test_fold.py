"""The fold against the own words of vLLM 0.32 and 0.33: each recorded stream must come to the recorded body.

What the fold does not know must be refused: a wrong body is worse than none.
"""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from msgspec import Raw

from proxy.wire.fold.folding import (
    FOLDABLE_FIELDS,
    MANY_BYTES,
    MANY_FRAMES,
    Folded,
    Unfoldable,
    fold,
    foldable,
    forces_tool,
    many_frames,
)
from tests.golden import load

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"
SAMPLED = "chat-sampled-n4"  # no seed: the two recordings hold different texts
PAIRS = [
    "chat-greedy",
    "chat-logprobs",
    "chat-n2-seed",
    "chat-stop",
    "chat-forced-tool",
    "chat-json-schema",
    "chat-unicode",
    "completion",
    "completion-list",
]


def endpoint(name: str) -> Folded:
    return "chat" if "chat" in name else "completions"


def raw(fields: Json) -> dict[str, Raw]:
    return {name: Raw(json.dumps(value).encode()) for name, value in fields.items()}


def chunks(name: str) -> list[Json]:
    frames = load(f"{name}-stream-usage").frames()
    assert frames.pop() == DONE
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames]


def frames_of(chunks: list[Json], *, done: bool = True) -> list[bytes]:
    return [b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks] + [DONE] * done


def refold(name: str, chunks: list[Json]) -> Json:
    forced = forces_tool(raw(load(name).request()))
    body: Json = json.loads(fold(frames_of(chunks), endpoint(name), forced_tool=forced))
    return body


def nameless(body: Json) -> Json:
    """Without what differs between two answers to the same request."""
    body |= {"id": "", "created": 0}
    for choice in body["choices"]:
        for call in choice.get("message", {}).get("tool_calls", []):
            call["id"] = ""
    return body


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    return [shape(each) for each in value] if isinstance(value, list) else type(value).__name__


# The body


@pytest.mark.parametrize("name", [*PAIRS, *(f"0.33/{name}" for name in PAIRS)])
def test_a_recorded_stream_folds_to_the_recorded_body(name: str) -> None:
    stream, whole = load(f"{name}-stream-usage"), load(name)
    forced = forces_tool(raw(whole.request()))
    body = json.loads(fold(stream.frames(), endpoint(name), forced_tool=forced))
    assert json.dumps(nameless(body), indent=1) == json.dumps(nameless(whole.json()), indent=1)  # order too


def test_sampled_choices_fold_to_the_shape_of_the_recorded_body() -> None:
    body, whole = refold(SAMPLED, chunks(SAMPLED)), load(SAMPLED).json()
    assert json.dumps(shape(body)) == json.dumps(shape(whole))
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    for choice in body["choices"]:
        parts = [c for chunk in chunks(SAMPLED) for c in chunk["choices"] if c["index"] == choice["index"]]
        assert choice["message"]["content"] == "".join(part["delta"].get("content") or "" for part in parts)


@pytest.mark.parametrize("name", PAIRS)
def test_id_created_and_model_are_the_stream_s(name: str) -> None:
    first, body = chunks(name)[0], refold(name, chunks(name))
    assert [body[key] for key in ("id", "created", "model")] == [first[key] for key in ("id", "created", "model")]


def test_choices_that_come_out_of_order_are_put_in_order() -> None:
    given = chunks("chat-n2-seed")
    turned = sorted(given[:-1], key=lambda chunk: -chunk["choices"][0]["index"]) + given[-1:]
    assert turned != given
    assert refold("chat-n2-seed", turned) == refold("chat-n2-seed", given)


def test_comments_between_frames_say_nothing() -> None:
    frames = load("chat-greedy-stream-usage").frames()
    noisy = [line for frame in frames for line in (b": keep-alive\n\n", frame)]
    assert fold(noisy, "chat") == fold(frames, "chat")


# llama.cpp, as the embedded engine sends it

TIMINGS = {"prompt_n": 3, "predicted_n": 2}
USAGE = {"completion_tokens": 2, "prompt_tokens": 3, "total_tokens": 5}


def llama_chunks() -> list[Json]:
    head: Json = {"created": 1, "id": "chatcmpl-x", "model": "m", "system_fingerprint": "b1-1"}
    head |= {"object": "chat.completion.chunk"}
    said: list[Json] = [{"role": "assistant", "content": None}, {"content": "Hel"}, {"content": "lo"}]
    choices: list[Json] = [{"finish_reason": None, "index": 0, "delta": delta} for delta in said]
    choices.append({"finish_reason": "stop", "index": 0, "delta": {}})
    return [{"choices": [choice], **head} for choice in choices] + [
        {"choices": [], **head, "usage": USAGE, "timings": TIMINGS}
    ]


def test_a_stream_of_llama_cpp_folds_to_llama_cpp_s_own_members() -> None:
    message = {"role": "assistant", "content": "Hello"}
    assert json.loads(fold(frames_of(llama_chunks()), "chat")) == {
        "choices": [{"finish_reason": "stop", "index": 0, "message": message}],
        "created": 1,
        "model": "m",
        "system_fingerprint": "b1-1",
        "object": "chat.completion",
        "usage": USAGE,
        "id": "chatcmpl-x",
        "timings": TIMINGS,
    }


def test_what_llama_cpp_says_otherwise_in_a_body_is_refused() -> None:
    logprobs, second, uncounted = llama_chunks(), llama_chunks(), llama_chunks()
    logprobs[1]["choices"][0]["logprobs"] = {"content": []}
    second[1]["choices"][0]["index"] = 1
    del uncounted[-1]["usage"]
    for changed in (logprobs, second, uncounted):
        with pytest.raises(Unfoldable):
            fold(frames_of(changed), "chat")
    with pytest.raises(Unfoldable):
        fold(frames_of(llama_chunks()), "chat", forced_tool=True)


# What is refused


CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
# Where in the recorded chunks, and what is put there.
CHANGES: dict[str, tuple[tuple[int | str, ...], Any]] = {
    "unknown member of a chunk": ((1, "new"), None),
    "unknown member of a choice": ((1, "choices", 0, "new"), None),
    "unknown member of a delta": ((1, "choices", 0, "delta", "new"), None),
    "unknown member of usage": ((-1, "usage", "new"), 0),
    "no finish_reason": ((-2, "choices", 0, "finish_reason"), None),
    "a finish_reason not seen": ((-2, "choices", 0, "finish_reason"), "abort"),
    "two finish_reasons": ((1, "choices", 0, "finish_reason"), "stop"),
    "usage that is null": ((-1, "usage"), None),
    "two ids": ((1, "id"), "other"),
    "two roles": ((1, "choices", 0, "delta", "role"), "assistant"),
    "no role": ((0, "choices", 0, "delta"), {}),
    "a choice of its own without an end": ((1, "choices", 0, "index"), 1),
    "an error frame": ((1,), {"error": {"message": "boom", "type": "x", "param": None, "code": 500}}),
    "token ids": ((1, "choices", 0, "token_ids"), [1]),
    "prompt token ids": ((0, "prompt_token_ids"), [1]),
    "another version": ((-1, "system_fingerprint"), "vllm-0.34.0-a22773f2"),
    "no version": ((-1, "system_fingerprint"), None),
    "a tool call that was not forced": ((1, "choices", 0, "delta"), {"tool_calls": [CALL]}),
    "reasoning without its count": ((1, "choices", 0, "delta"), {"reasoning": "hm"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_stream_with_this_is_refused(change: str) -> None:
    (*way, last), value = CHANGES[change]
    given = chunks("chat-greedy")
    place: Any = given
    for step in way:
        place = place[step]
    place[last] = value
    with pytest.raises(Unfoldable):
        refold("chat-greedy", given)


def test_a_stream_without_usage_without_content_or_with_more_behind_usage_is_refused() -> None:
    given = chunks("chat-greedy")
    for wrong in (given[:-1], [given[0], *given[-2:]], [*given, given[1]], []):
        silent = json.loads(json.dumps(wrong))
        if len(silent) == 3:
            silent[1]["choices"][0]["delta"] = {}
        with pytest.raises(Unfoldable):
            refold("chat-greedy", silent)


@pytest.mark.parametrize("frame", [b"data: {\n\n", b"data: []\n\n", b"data: null\n\n", b'data: {"a\xff":1}\n\n'])
def test_a_frame_that_is_no_chunk_is_refused(frame: bytes) -> None:
    frames = load("chat-greedy-stream-usage").frames()
    with pytest.raises(Unfoldable):
        fold([*frames[:2], frame, *frames[2:]], "chat")


@pytest.mark.parametrize("name", ["chat-greedy", "completion"])
def test_a_stream_cut_anywhere_is_refused(name: str) -> None:
    frames = load(f"{name}-stream-usage").frames()
    for length in range(len(frames)):
        with pytest.raises(Unfoldable):
            fold(frames[:length], endpoint(name))


def test_a_frame_after_done_is_refused() -> None:
    frames = load("chat-greedy-stream-usage").frames()
    with pytest.raises(Unfoldable, match="after"):
        fold([*frames, DONE], "chat")


def test_a_stream_of_the_other_endpoint_is_refused() -> None:
    for name in ("chat-greedy", "completion"):
        other: Folded = "completions" if endpoint(name) == "chat" else "chat"
        with pytest.raises(Unfoldable):
            fold(load(f"{name}-stream-usage").frames(), other)


@pytest.mark.parametrize("name", ["chat-greedy-stream", "completion-stream", "chat-token-ids-stream"])
def test_a_recording_without_usage_is_refused(name: str) -> None:
    with pytest.raises(Unfoldable):
        fold(load(name).frames(), endpoint(name))


def test_token_ids_are_refused_by_their_request_and_by_their_stream() -> None:
    stream = load("completion-ids-stream-usage")
    assert not foldable("completions", raw(stream.request()))
    with pytest.raises(Unfoldable):
        fold(stream.frames(), "completions")


def test_a_forced_call_is_refused_where_the_fold_is_not_told_of_it() -> None:
    with pytest.raises(Unfoldable, match="not forced"):
        fold(load("chat-forced-tool-stream-usage").frames(), "chat")


def test_plain_content_is_refused_where_a_tool_was_forced() -> None:
    with pytest.raises(Unfoldable, match="forced"):
        fold(load("chat-greedy-stream-usage").frames(), "chat", forced_tool=True)


def test_a_forced_call_whose_arguments_a_body_may_spell_otherwise_is_refused() -> None:
    given = chunks("chat-forced-tool")
    for chunk in given:
        for choice in chunk["choices"]:
            for call in choice["delta"].get("tool_calls", []):
                call["function"]["arguments"] = call["function"].get("arguments", "").replace('": "', '":"')
    given[1]["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] = '{"a":1}'
    with pytest.raises(Unfoldable, match="spell"):
        refold("chat-forced-tool", given)


# Which requests

ASK: Json = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize("name", [*PAIRS, SAMPLED])
def test_every_recorded_request_that_was_compared_may_be_folded(name: str) -> None:
    assert foldable(endpoint(name), raw(load(name).request()))
    assert foldable(endpoint(name), raw(load(f"{name}-stream-usage").request()))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 0, "seed": 1, "n": 2, "stop": ["x"], "logprobs": True, "top_logprobs": 3},
        {"stream": True, "stream_options": {"include_usage": True}, "user": "u", "metadata": {"a": "b"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": None, "tools": None, "tool_choice": None},
        {"tools": [], "echo": False, "return_token_ids": None, "continue_final_message": False},
        {"tools": [TOOL], "tool_choice": "none"},
        {"tools": [TOOL], "tool_choice": NAMED},
        {"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]},
    ],
    ids=json.dumps,
)
def test_a_request_with_this_may_be_folded(more: Json) -> None:
    assert foldable("chat", raw(ASK | more))


@pytest.mark.parametrize(
    "more",
    [
        {"new": 1},
        {"new": None},
        {"echo": True},
        {"return_token_ids": True},
        {"prompt_logprobs": 1},
        {"continue_final_message": True},
        {"add_generation_prompt": False},
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "auto"},
        {"tools": [TOOL], "tool_choice": "required"},
        {"response_format": {"type": "structural_tag"}},
        {"response_format": "text"},
        {"tools": "x"},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"messages": {"role": "assistant"}},
        {"prompt": "x"},
    ],
    ids=json.dumps,
)
def test_a_request_with_this_may_not_be_folded(more: Json) -> None:
    assert not foldable("chat", raw(ASK | more))


def test_embeddings_have_no_stream_to_fold() -> None:
    assert set(FOLDABLE_FIELDS) == set(get_args(Folded))
    assert not foldable("embeddings", raw({"model": "m", "input": "x"}))


@pytest.mark.parametrize(
    ("pieces", "many"),
    [
        ([b"x" * MANY_BYTES], False),
        ([b"x" * MANY_BYTES, b"x"], True),
        ([b"data: x\r\n\r\n" * MANY_FRAMES], False),
        ([b"data: x\r\n\r\n" * MANY_FRAMES, b"\r\n"], True),
        ([b"\r\n" * 2 * MANY_FRAMES, b"\r\n"], False),
    ],
    ids=["bytes that may be", "one more", "frames that may be", "more", "less than frames take"],
)
def test_a_stream_is_folded_elsewhere_from_so_many_bytes_or_frames_on(pieces: list[bytes], many: bool) -> None:
    assert many_frames(pieces) is many

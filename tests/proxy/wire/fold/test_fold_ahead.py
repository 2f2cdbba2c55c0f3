"""What of a fold is known before a stream has ended: by its request, its first and last frames, each new one."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Raw

from proxy.wire.fold import vllm
from proxy.wire.fold.folding import (
    MANY_FRAMES,
    features_of,
    fold,
    foldable,
    folds_ahead,
    look,
    many_frames,
    may_fold,
    shape_seen,
    shape_told,
)
from proxy.wire.fold.known import Folded, Odd, Unfoldable
from proxy.wire.fold.shape import LLAMA, VLLM, Shape, Template
from proxy.wire.sse import DONE
from tests.proxy.wire.fold.test_fold import frames_of, llama_chunks, raw
from tests.proxy.wire.fold.test_learned import body, stream

NONE = Shape("none", why="seen otherwise")
LEARNED = Shape("learned", template=Template("c", "b", (), (), (), (), (), (), ()))


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({}, set()),
        ({"n": 1, "logprobs": False, "top_logprobs": None, "prompt": "a"}, set()),
        ({"n": None, "logprobs": None}, set()),
        ({"n": 2}, {"n"}),
        ({"logprobs": True}, {"logprobs"}),
        ({"top_logprobs": 1}, {"logprobs"}),
        ({"logprobs": 0}, {"logprobs"}),
        ({"prompt": ["a"]}, {"prompts"}),
        ({"tools": []}, {"tools"}),
        ({"tool_choice": {"type": "function"}}, {"tools"}),
        ({"tool_choice": "none"}, set()),
    ],
    ids=str,
)
def test_what_of_a_request_reaches_the_shape_of_its_answer(fields: dict[str, Any], features: set[str]) -> None:
    assert features_of(raw(fields)) == features


@pytest.mark.parametrize(
    ("shape", "features", "ahead"),
    [
        (VLLM, set(), True),
        (VLLM, {"n", "logprobs", "prompts"}, True),
        (VLLM, {"tools"}, False),
        (LLAMA, set(), True),
        (LLAMA, {"n"}, False),
        (LEARNED, set(), True),
        (LEARNED, {"logprobs"}, False),
        (NONE, set(), False),
    ],
)
def test_a_stream_is_counted_on_where_its_dialect_has_what_is_asked(
    shape: Shape, features: set[str], ahead: bool
) -> None:
    assert folds_ahead(shape, frozenset(features)) is ahead


NAME = b'"system_fingerprint"'
VERSION = next(iter(vllm.VERSIONS)).encode()


@pytest.mark.parametrize(
    ("stream", "shape", "may"),
    [
        (b"", VLLM, True),
        (NAME, NONE, False),
        (b"", None, False),
        (b"x" * (4096 - len(NAME)) + NAME, None, True),
        (b"x" * (4097 - len(NAME)) + NAME, None, False),
        (VERSION + b"x" * (8192 - len(VERSION)), None, True),
        (VERSION + b"x" * (8193 - len(VERSION)), None, False),
        (b"x" * 9000 + b"vllm-0.1.", None, False),
    ],
    ids=["known", "none", "silent", "first", "too late", "last", "too early", "another version"],
)
def test_a_long_stream_is_looked_at_where_its_engine_names_itself(
    stream: bytes, shape: Shape | None, may: bool
) -> None:
    assert may_fold(stream, shape) is may


def test_many_frames_are_counted_from_as_many_bytes_as_they_take() -> None:
    ends = b"\r\n" * (2 * MANY_FRAMES + 1)
    fill = b"x" * (8 * MANY_FRAMES - len(ends))
    assert not many_frames([ends, fill])
    assert many_frames([ends, fill, b"x"])


@pytest.mark.parametrize(
    ("first", "last", "shape"),
    [
        (b"{}", b'{"system_fingerprint":"vllm-0.32.0-a"}', VLLM),
        (b'{"system_fingerprint":"b1"}', b'{"timings":{}}', LLAMA),
        (b"{}", b'{"timings":{}}', None),
        (b'{"system_fingerprint":"b1"}', b"{}", None),
        (b"{}", b"{}", None),
        (b"{", b"{}", None),
        (b"{}", b"[", None),
        (b'{"system_fingerprint":5}', b"{}", None),
        (b'{"system_fingerprint":"\xff"}', b'{"timings":{}}', None),
        (b'{"a":' + b"[" * 100_000, b"{}", None),
    ],
    ids=lambda each: str(each)[:30],
)
def test_a_stream_tells_its_shape_by_its_own_words(first: bytes, last: bytes, shape: Shape | None) -> None:
    assert shape_told(first, last) == shape


def chunk(finish: str | None = None, **delta: Any) -> bytes:
    members = {"id": "i", "created": 1, "model": "m", "object": "chat.completion.chunk"}
    return frames_of(
        [{**members, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}], done=False
    )[0]


def told(frame: bytes, shape: Shape, endpoint: Folded = "chat", *, forced_tool: bool = False) -> None:
    look(frame, endpoint, forced_tool=forced_tool, shape=shape)


CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
NO_ID = b'data: {"object":"chat.completion.chunk","choices":[]}\n\n'
LLAMA_CHUNK = frames_of(llama_chunks()[1:2], done=False)[0]


@pytest.mark.parametrize("shape", [VLLM, LLAMA, NONE, LEARNED], ids=lambda shape: shape.dialect)
def test_a_comment_and_the_end_say_nothing_and_an_error_is_of_this_answer(shape: Shape) -> None:
    told(b": ping\n\n", shape)
    told(DONE, shape)
    with pytest.raises(Odd, match="an error"):
        told(b'data: {"error":{"message":"no"}}\n\n', shape)


def test_a_frame_of_vllm_is_looked_at_as_vllms() -> None:
    for reason in (None, "stop", "length"):
        told(chunk(reason, content="a"), VLLM)
    told(chunk(tool_calls=[CALL]), VLLM, forced_tool=True)
    for odd in (chunk("abort"), chunk(tool_calls=[CALL])):
        with pytest.raises(Odd):
            told(odd, VLLM)
    for unknown in (chunk(new=1), b"data: {\n\n", chunk(content=5)):
        with pytest.raises(Unfoldable):
            told(unknown, VLLM)


def test_a_frame_of_llama_cpp_is_looked_at_as_llama_cpps() -> None:
    told(LLAMA_CHUNK, LLAMA)
    ended = llama_chunks()[-2]
    for reason in ("stop", "length"):
        ended["choices"][0]["finish_reason"] = reason
        told(frames_of([ended], done=False)[0], LLAMA)
    ended["choices"][0]["finish_reason"] = "abort"
    with pytest.raises(Odd, match="abort"):
        told(frames_of([ended], done=False)[0], LLAMA)
    with pytest.raises(Odd):
        told(LLAMA_CHUNK, LLAMA, forced_tool=True)
    with pytest.raises(Unfoldable):
        told(chunk(content="a"), LLAMA)  # of vLLM: it does not name itself


def test_a_frame_of_an_engine_that_was_learned_is_looked_at_by_its_template() -> None:
    frames = stream("chat-greedy")
    shape = shape_seen(frames, body("chat-greedy"), "chat")
    told(frames[1], shape)
    for odd in (b"data: {}\n\n", NO_ID, chunk("abort"), b"data: [\n\n"):
        with pytest.raises(Unfoldable):
            told(odd, shape)
    with pytest.raises(Unfoldable, match="a tool call, of which none was seen"):
        told(frames[1], shape, forced_tool=True)
    with pytest.raises(Unfoldable, match="a tool call, of which none was seen"):
        fold(frames, "chat", shape=shape, forced_tool=True)


def test_an_engine_whose_streams_do_not_fold_says_why() -> None:
    with pytest.raises(Unfoldable, match="seen otherwise"):
        told(chunk(content="a"), NONE)
    with pytest.raises(Unfoldable, match="seen otherwise"):
        fold([chunk(content="a"), DONE], "chat", shape=NONE)


def test_what_was_learned_and_is_no_json_is_found_where_it_is_folded() -> None:
    frames = stream("chat-greedy")
    shape = shape_seen(frames, body("chat-greedy"), "chat")
    assert shape.template is not None
    layout = (("broken", "{"), *shape.template.body)
    broken = Template(
        **{name: getattr(shape.template, name) for name in Template.__struct_fields__} | {"body": layout}
    )
    with pytest.raises(Unfoldable, match="unknown shape"):
        fold(frames, "chat", shape=Shape("learned", template=broken))


def test_a_stream_of_comments_alone_has_no_chunk() -> None:
    with pytest.raises(Unfoldable, match="no chunk"):
        fold([b": a\n\n"], "chat")
    with pytest.raises(Unfoldable, match=r"no \[DONE\]"):
        fold([chunk(content="a")], "chat")


def test_fields_whose_values_say_what_silence_says_may_be_folded() -> None:
    assert not foldable("chat", {**raw({"messages": []}), "response_format": Raw(b"{")})
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    for messages in ([assistant], [user, user, assistant]):
        assert not foldable("chat", raw({"messages": messages}))
    assert foldable("chat", raw({"messages": [user, assistant, user]}))
    assert foldable("completions", raw({"prompt": "a", "best_of": 1, "suffix": None}))
    assert not foldable("completions", raw({"prompt": "a", "best_of": 2}))

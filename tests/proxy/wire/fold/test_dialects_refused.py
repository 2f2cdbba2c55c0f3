"""Streams of both dialects that no body amounts to: each refused for what it is, in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.wire.fold import llama
from proxy.wire.fold import vllm as dialect
from proxy.wire.fold.folding import fold
from proxy.wire.fold.known import Odd, Unfoldable
from proxy.wire.fold.shape import VLLM
from proxy.wire.sse import data_of, is_done
from tests.proxy.wire.fold.test_dialects import call, choice_of, vllm
from tests.proxy.wire.fold.test_fold import frames_of, llama_chunks

Json = dict[str, Any]


def chunks_of(frames: list[bytes]) -> list[Json]:
    return [json.loads(data_of(frame) or b"") for frame in frames if not is_done(frame)]


def folded(chunks: list[Json], *, forced_tool: bool = False) -> Json:
    body: Json = json.loads(fold(frames_of(chunks), "chat", forced_tool=forced_tool))
    return body


SAID = {"content": "4"}


def changed(at: int, **choice: Any) -> list[Json]:
    """A role, one text, a finish and the usage, with another choice in one chunk."""
    chunks = chunks_of(vllm(SAID))
    chunks[at]["choices"][0] |= choice
    return chunks


def moved(*places: int) -> list[Json]:
    chunks = chunks_of(vllm(SAID))
    return [chunks[place] for place in places]


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        (moved(0, 1, 2, 3, 3), "a chunk after the usage chunk"),
        (moved(0, 1, 2), "no usage chunk"),
        (moved(3), r"choices \[\]"),
        ([*moved(0, 1, 2), {**moved(3)[0], "usage": None}], "a chunk with neither choices nor usage"),
        (changed(1, index=2), r"choices \[0, 2\]"),
        (changed(1, finish_reason="stop"), "does not end with its only finish_reason"),
        (changed(2, finish_reason=None), "does not end with its only finish_reason"),
        (changed(2, finish_reason="content_filter"), "finish_reason content_filter"),
        (changed(0, delta={}), "does not begin with its only role"),
        (changed(1, delta={"role": "assistant", "content": "4"}), "does not begin with its only role"),
        (changed(1, delta={"tool_calls": [call(0, "{}")]}), "a tool call that was not forced"),
        (changed(1, delta={}), "no content: parsers differ"),
        (changed(1, delta={"content": "4", "reasoning": "hm"}), "reasoning without its count"),
        *(([{**moved(0)[0], name: value}, *moved(1, 2, 3)], "chunks of different answers")
          for name, value in (("id", "d"), ("created", 2), ("model", "n"))),
        ([*moved(0, 1, 2), {**moved(3)[0], "system_fingerprint": "vllm-0.31.0"}], "not known: vllm-0.31.0"),
        ([*moved(0, 1, 2), {**moved(3)[0], "system_fingerprint": None}], "bodies are not known: None"),
    ],
)  # fmt: skip
def test_a_stream_of_vllm_that_no_body_amounts_to(chunks: list[Json], words: str) -> None:
    with pytest.raises(Unfoldable, match=words):
        fold(frames_of(chunks), "chat", shape=VLLM)


@pytest.mark.parametrize(
    ("version", "named", "told", "known"),
    [
        (None, None, None, False),
        ("vllm-0.33.", None, None, True),
        ("vllm-0.33.", "mine", "mine", True),
        ("vllm-0.33.", "mine", "other", False),
        ("vllm-0.33.", "mine", "vllm-0.32.1", True),
    ],
)
def test_a_version_that_the_fingerprint_does_not_tell_counts_under_the_name_that_it_was_seen_with(
    version: str | None, named: str | None, told: str | None, known: bool
) -> None:
    chunks = [
        json.dumps(chunk).encode() for chunk in [*moved(0, 1, 2), {**moved(3)[0], "system_fingerprint": told}]
    ]
    if not known:
        with pytest.raises(Unfoldable, match="bodies are not known"):
            dialect.body(chunks, "chat", forced_tool=False, version=version, named=named)
        return
    body = dialect.body(chunks, "chat", forced_tool=False, version=version, named=named)
    assert ("weight_versions" in body["choices"][0]) is (told != "vllm-0.32.1")
    assert body["system_fingerprint"] == told


@pytest.mark.parametrize(
    ("fingerprint", "version"),
    [
        (None, None),
        ("", None),
        ("vllm-", None),
        ("vllm-0.320", None),
        ("vllm-0.32.0-x", "vllm-0.32."),
        ("x-vllm-0.33.", None),
    ],
)
def test_a_version_is_told_by_the_beginning_of_a_fingerprint(fingerprint: str | None, version: str | None) -> None:
    assert dialect.version_of(fingerprint) == version


@pytest.mark.parametrize(
    ("deltas", "finish"),
    [
        ([{"content": " \n"}, {"tool_calls": [call(0, "{}")]}], "stop"),
        ([{"tool_calls": [call(0, "[1, 2]")]}, {"content": None}], "stop"),
    ],
)
def test_spaces_beside_a_forced_call_are_no_content(deltas: list[Json], finish: str) -> None:
    message = choice_of(vllm(*deltas, finish_reason=finish), forced_tool=True)["message"]
    assert message["content"] == ""
    assert len(message["tool_calls"]) == 1


@pytest.mark.parametrize(
    "calls",
    [
        [call(0, "{}"), call(2, "{}")],
        [{**call(0, "{}"), "index": -1}],
        [call(0, "{}"), {"index": 0, "id": "again"}],
        [call(0, "{}"), {"index": 0, "function": {"name": "again"}}],
        [{**call(0, "{}"), "id": ""}],
        [{"index": 0, "id": "a"}],
        [call(0, "{}"), {"index": -1, "function": {"arguments": ""}}],
    ],
)
def test_calls_in_pieces_of_unknown_order_are_refused(calls: list[Json]) -> None:
    with pytest.raises(Unfoldable, match="in pieces of unknown order"):
        fold(vllm({"tool_calls": calls}), "chat", forced_tool=True)


def test_a_call_may_go_on_without_a_word() -> None:
    message = choice_of(vllm({"tool_calls": [call(0, "{}"), {"index": 0}]}), forced_tool=True)["message"]
    assert message["tool_calls"][0]["function"]["arguments"] == "{}"


def test_a_choice_without_logprobs_has_none_and_one_with_some_all_of_them() -> None:
    assert choice_of(vllm(SAID))["logprobs"] is None
    chunks = changed(1, logprobs={"content": [{"token": "a"}, {"token": "b"}]})
    chunks[2]["choices"][0]["logprobs"] = {"content": [{"token": "c"}]}
    assert [entry["token"] for entry in folded(chunks)["choices"][0]["logprobs"]["content"]] == ["a", "b", "c"]
    assert "tool_calls" not in folded(chunks)["choices"][0]["message"]


def test_a_completion_that_ends_otherwise_is_refused() -> None:
    head = {"id": "c", "object": "text_completion", "created": 1, "model": "m"}
    usage = {"prompt_tokens": 1, "total_tokens": 3, "completion_tokens": 2}
    last = {**head, "choices": [], "usage": usage, "system_fingerprint": "vllm-0.32.1-x"}
    for reason in ("stop", "abort"):
        said = {**head, "choices": [{"index": 0, "text": "a", "finish_reason": reason}]}
        if reason == "abort":
            with pytest.raises(Odd, match="finish_reason abort"):
                fold(frames_of([said, last]), "completions")
        else:
            choice = json.loads(fold(frames_of([said, last]), "completions"))["choices"][0]
            assert (choice["text"], choice["logprobs"], choice["index"]) == ("a", None, 0)


# llama.cpp


def of_llama(at: int, **members: Any) -> list[Json]:
    chunks = llama_chunks()
    chunks[at] |= members
    return chunks


def choice_in(at: int, **choice: Any) -> list[Json]:
    chunks = llama_chunks()
    chunks[at]["choices"][0] |= choice
    return chunks


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        (of_llama(1, id="other"), "chunks of different answers"),
        (of_llama(1, model="other"), "chunks of different answers"),
        (of_llama(1, system_fingerprint="other"), "chunks of different answers"),
        (of_llama(-1, usage=None), "without usage or timings"),
        (of_llama(-1, timings=None), "without usage or timings"),
        (choice_in(1, finish_reason="stop"), "does not end with its only finish_reason"),
        (choice_in(-2, finish_reason=None), "does not end with its only finish_reason"),
        (choice_in(-2, finish_reason="abort"), "finish_reason abort"),
        (choice_in(0, delta={"role": "user"}), "no content, or an unknown role"),
        (choice_in(1, delta={"role": "assistant", "content": "a"}), "no content, or an unknown role"),
    ],
)
def test_a_stream_of_llama_cpp_that_no_body_amounts_to(chunks: list[Json], words: str) -> None:
    with pytest.raises(Unfoldable, match=words):
        fold(frames_of(chunks), "chat")


def test_a_silent_stream_of_llama_cpp_is_refused_and_its_time_may_go_on() -> None:
    silent = llama_chunks()
    for chunk in silent[1:3]:
        chunk["choices"][0]["delta"] = {}
    with pytest.raises(Odd, match="no content"):
        fold(frames_of(silent), "chat")
    assert folded(of_llama(-1, created=9))["created"] == 9
    assert folded(choice_in(-2, finish_reason="length"))["choices"][0]["finish_reason"] == "length"
    with pytest.raises(Unfoldable, match="without usage or timings"):
        llama.body([], "chat", forced_tool=False)
    with pytest.raises(Unfoldable, match="tool calls of llama"):
        llama.body([], "chat", forced_tool=True)


LONG = "9" * 310


@pytest.mark.parametrize("arguments", [LONG, f"[{','.join([LONG] * 1000)}]", f'{{"a": [{LONG}'])
def test_a_call_with_a_number_of_too_many_digits_is_refused_before_it_is_read(
    arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = chunks_of(vllm({"tool_calls": [call(0, arguments)]}))
    monkeypatch.setattr(json, "loads", lambda text: pytest.fail("it was read"))
    with pytest.raises(Odd, match="spell in another way"):
        fold(frames_of(chunks), "chat", forced_tool=True)

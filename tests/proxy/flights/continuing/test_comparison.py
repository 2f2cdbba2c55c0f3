"""Two answers to one request: what readers get of the second, whatever its frames, and every difference told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from proxy.flights.continuing.comparison import (
    MOST_AHEAD,
    MOST_BYTES,
    MOST_FRAMES,
    MOST_VALUES,
    Comparison,
    Differs,
)
from proxy.wire.sse import chunk
from tests.kit.engine_wire import sse

Json = dict[str, Any]


def chat(delta: Json | None = None, *, index: int = 0, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta or {}, "logprobs": None, "finish_reason": finish, **more}
    return chunk_of([choice])


def chunk_of(choices: Sequence[Json], **more: Any) -> bytes:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m1"}
    head["system_fingerprint"] = "fp-1"
    return sse({**head, "choices": choices, **more})


def other(frame: bytes) -> bytes:
    """The frame as another engine sends it."""
    for name in (b'"chatcmpl-%d"', b'"created":%d', b'"fp-%d"'):
        frame = frame.replace(name % 1, name % 2)
    return frame


def say(text: str, index: int = 0) -> bytes:
    return chat({"content": text}, index=index)


def usage(completion: int = 3) -> bytes:
    return chunk_of(
        [], usage={"prompt_tokens": 2, "completion_tokens": completion, "total_tokens": 2 + completion}
    )


def continued(first: Iterable[bytes], second: Iterable[bytes]) -> list[bytes]:
    """What readers get after the frames of `first`. Raises Differs."""
    comparison = Comparison([chunk(frame) for frame in first])
    rest = [left for frame in second if (left := comparison.feed(other(frame))) is not None]
    comparison.end()
    return rest


def merged(frames: Iterable[bytes]) -> Json:
    """What a client makes of a stream: every content concatenated, every fact once. Not by the code under test."""
    whole: Json = {"choices": {}, "head": set(), "fingerprints": set(), "usage": []}
    for frame in frames:
        data = json.loads(frame.removeprefix(b"data: "))
        whole["head"].add((data["id"], data["created"], data["model"]))
        if data.get("system_fingerprint"):  # vLLM has it in the last chunk
            whole["fingerprints"].add(data["system_fingerprint"])
        if data.get("usage"):
            whole["usage"].append(data["usage"])
        for choice in data["choices"]:
            _merge(whole["choices"].setdefault(choice["index"], {}), choice)
    return whole


def _merge(into: Json, choice: Json) -> None:
    for name, value in choice.items():
        if name == "tool_calls":
            for call in value or ():
                _merge(into.setdefault("tool_calls", {}).setdefault(call["index"], {}), call)
        elif isinstance(value, dict):
            _merge(into.setdefault(name, {}), value)
        elif isinstance(value, list) or (isinstance(value, str) and name in APPENDED):
            into[name] = into.get(name, type(value)()) + value
        elif value is not None and name != "index":
            assert name not in into, f"{name} twice"
            into[name] = value


APPENDED = ("content", "text", "reasoning", "arguments")


# -- where they meet -----------------------------------------------------------------------------------

ROLE = chat({"role": "assistant", "content": ""})
STOP = chat(finish="stop", stop_reason=None)


@pytest.mark.parametrize(
    ("first", "second", "rest"),
    [
        ([ROLE, say("a")], [ROLE, say("a"), say("b"), STOP], [say("b"), STOP]),
        ([ROLE], [ROLE, say("ab"), STOP], [say("ab"), STOP]),
        ([ROLE, say("ab"), say("c")], [ROLE, say("a"), say("bcd"), STOP], [say("d"), STOP]),
        ([ROLE, say("ab")], [chat({"role": "assistant", "content": "abc"}), STOP], [say("c"), STOP]),
        ([ROLE, say("a"), STOP], [ROLE, say("a"), STOP, usage()], [usage()]),
        ([ROLE, say("a"), STOP, usage()], [ROLE, say("a"), STOP, usage()], []),
        ([ROLE, say("ab")], [ROLE, chat({"content": "ab"}, finish="stop")], [chat(finish="stop")]),
        ([say("ä€"), say("😀")], [say("ä"), say("€😀ü"), STOP], [say("ü"), STOP]),
    ],
)
def test_readers_get_what_they_lack_under_the_first_answer_s_id(
    first: list[bytes], second: list[bytes], rest: list[bytes]
) -> None:
    assert continued(first, second) == rest


def test_a_frame_that_needs_no_change_is_passed_as_it_is() -> None:
    comparison = Comparison([chunk(ROLE)])
    spaced = b'data: {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
    assert comparison.feed(spaced) is spaced


def test_of_a_usage_in_frames_with_choices_the_second_s_counts_go_on() -> None:
    counted = chunk_of(
        [{"index": 0, "delta": {"content": "b"}}], usage={"prompt_tokens": 2, "completion_tokens": 2}
    )
    assert continued([ROLE, say("a")], [ROLE, say("a"), counted]) == [counted]


CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}


def arguments(text: str, index: int = 0) -> bytes:
    return chat({"tool_calls": [{"index": index, "function": {"arguments": text}}]})


def test_a_tool_call_keeps_the_id_that_readers_have() -> None:
    first = [ROLE, chat({"tool_calls": [CALL]}), arguments('{"a"')]
    call = deepcopy(CALL) | {"id": "call_2"}
    second = [ROLE, chat({"tool_calls": [call]}), arguments('{"a":'), arguments("1}"), chat(finish="tool_calls")]
    assert continued(first, second) == [arguments(":"), arguments("1}"), chat(finish="tool_calls")]
    later = [ROLE, chat({"tool_calls": [call]}), arguments("{}")]
    assert continued([ROLE], later) == later[1:]
    whole = [ROLE, chat({"tool_calls": [{**call, "function": {"name": "f", "arguments": '{"a":2'}}]})]
    assert continued(first, whole) == [arguments(":2")]


def logged(*tokens: str, **more: Any) -> bytes:
    entries: list[Json] = [
        {"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []} for token in tokens
    ]
    return chat({"content": "".join(tokens)}, logprobs={"content": entries}, **more)


def test_log_probabilities_are_cut_with_their_tokens() -> None:
    assert continued([ROLE, logged("a")], [ROLE, logged("a", "b")]) == [logged("b")]
    columns = {
        "text_offset": [0, 1],
        "token_logprobs": [-1.0, -2.0],
        "tokens": ["a", "b"],
        "top_logprobs": [{}, {}],
    }
    half = {name: values[:1] for name, values in columns.items()}  # type: ignore[index]
    rest = {name: values[1:] for name, values in columns.items()}  # type: ignore[index]

    def text(said: str, logprobs: Json) -> bytes:
        return chunk_of([{"index": 0, "text": said, "logprobs": logprobs, "finish_reason": None}])

    assert continued([text("a", half)], [text("ab", columns)]) == [text("b", rest)]


def test_choices_may_come_in_another_order() -> None:
    first = [say("a"), say("A", 1), say("b")]
    second = [say("ABC", 1), chat(index=1, finish="stop"), say("abc"), chat(finish="length")]
    assert continued(first, second) == [
        say("BC", 1),
        chat(index=1, finish="stop"),
        say("c"),
        chat(finish="length"),
    ]
    both = chunk_of([{"index": 0, "delta": {"content": "b"}}, {"index": 1, "delta": {"content": "B"}}])
    assert continued([say("ab"), say("A", 1)], [say("a"), say("A", 1), both]) == [
        chunk_of([{"index": 1, "delta": {"content": "B"}}])
    ]


def test_members_in_another_order_are_the_same() -> None:
    """As llama.cpp writes them."""
    last = chunk_of([{"finish_reason": "stop", "index": 0, "delta": {"content": "b"}}])
    assert continued([say("a")], [say("a"), last]) == [last]
    assert continued([say("a"), say("b")], [say("a"), last]) == [
        chunk_of([{"finish_reason": "stop", "index": 0, "delta": {}}])
    ]


# -- differences ---------------------------------------------------------------------------------------

TOLD: dict[str, tuple[list[bytes], list[bytes], str]] = {
    "another text": ([say("ab")], [say("a"), say("c")], "another content"),
    "another case": ([say("ab")], [say("aB")], "another content"),
    "another letter of the same look": ([say("é")], [say("e\u0301")], "another content"),
    "another member": ([say("ab")], [chat({"reasoning": "ab"}), STOP], "an earlier end"),
    "another choice": ([say("ab")], [say("ab", 1), chat(index=1, finish="stop")], "an earlier end"),
    "an earlier finish": ([say("ab")], [say("a"), STOP], "an earlier end"),
    "an earlier [DONE]": ([say("ab")], [say("a")], "an earlier end"),
    "a later end": ([say("a"), STOP], [say("a"), say("b"), STOP], "a later end"),
    "another end": ([say("a"), STOP], [say("a"), chat(finish="length")], "another finish_reason"),
    "another role": ([ROLE], [chat({"role": "tool", "content": ""})], "another role"),
    "another stop": (
        [say("a"), chat(finish="stop", stop_reason="x")],
        [say("a"), chat(finish="stop", stop_reason="y")],
        "another stop_reason",
    ),
    "other log probabilities": (
        [logged("a")],
        [chat({"content": "a"}, logprobs={"content": [{"token": "a", "logprob": -0.50001}]})],
        "other content",
    ),
    "another call": (
        [chat({"tool_calls": [CALL]})],
        [chat({"tool_calls": [{**CALL, "function": {"name": "g", "arguments": ""}}]})],
        "another name",
    ),
    "other arguments": ([arguments('{"a": 1')], [arguments('{"a":1}')], "another arguments"),
    "another usage": ([say("a"), STOP, usage(3)], [say("a"), STOP, usage(4)], "another usage"),
    "an unknown member of a choice": ([say("a")], [chat({"content": "a"}, new=1)], "'new'"),
    "an unknown member of a delta": ([say("a")], [chat({"content": "a", "audio": {"id": 1}})], "'audio'"),
    "an unknown member that readers have": ([chunk_of([], new=1)], [say("a")], "'new'"),
    "a call without a number": ([ROLE], [chat({"tool_calls": [{"id": "x"}]})], "without an index"),
    "no JSON": ([say("a")], [b"data: nothing\n\n"], "cannot be compared"),
    "no JSON that readers have": ([b"data: nothing\n\n"], [say("a")], "cannot be compared"),
    "a list": ([say("a")], [b"data: []\n\n"], "cannot be compared"),
    "a number as text": ([say("a")], [chat({"content": 5})], "cannot be compared"),
    "half a surrogate pair": (
        [say("a")],
        [b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\n'],
        "compared",
    ),
    "not UTF-8": ([say("a")], [b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n'], "cannot be compared"),
    "long": ([say("a")], [b'data: {"choices":[{"index":%b}]}\n\n' % (b"9" * 310)], "too many digits"),
    "long first": ([b'data: {"choices":[],"x":[%b]}\n\n' % (b"9" * 310)], [say("a")], "too many digits"),
    "deep": ([say("a")], [b'data: {"choices":%b}\n\n' % (b"[" * 100_000)], "cannot be compared"),
}


@pytest.mark.parametrize("name", TOLD)
def test_each_difference_is_told(name: str) -> None:
    first, second, words = TOLD[name]
    with pytest.raises(Differs, match=words):
        continued(first, second)


def test_what_takes_too_long_to_compare_is_a_difference() -> None:
    comparison = Comparison([chunk(say("x", 1))] * (MOST_FRAMES + 1))
    with pytest.raises(Differs, match="another order"):
        comparison.feed(say("a"))
    comparison = Comparison([chunk(say("x" * MOST_BYTES, 1)), chunk(say("a"))])
    with pytest.raises(Differs, match="another order"):
        comparison.feed(say("a"))
    comparison = Comparison([chunk(say("x"))] * 2 * MOST_FRAMES)
    assert comparison.feed(say("x" * MOST_FRAMES)) is None
    comparison.renew()
    assert comparison.feed(say("x" * MOST_FRAMES)) is None
    comparison = Comparison(
        [chunk(say("x" * MOST_AHEAD, 1)), chunk(say("x", 1)), chunk(say("x", 1)), chunk(say("a"))]
    )
    with pytest.raises(Differs, match="another order"):
        comparison.feed(say("a"))


@pytest.mark.parametrize("first", [0, MOST_VALUES])
def test_lists_of_more_values_than_can_be_compared_at_once_are_a_difference(first: int) -> None:
    """Frames of some 3 MB of token ids held the loop for a second."""
    comparison = Comparison([chunk(chat({"content": "a"}, token_ids=[1] * first)), chunk(say("b"))])
    began = time.thread_time()
    with pytest.raises(Differs, match="too many values at once"):
        comparison.feed(chat({"content": "a"}, token_ids=[1] * (MOST_VALUES + 1)))
    with pytest.raises(Differs, match="too many values at once"):
        Comparison([]).feed(chat({"content": "a"}, token_ids=[1] * 1_500_000))
    assert time.thread_time() - began < 0.5


def test_as_many_values_as_can_be_compared_are_compared_in_each_read() -> None:
    ids = [1] * (MOST_VALUES // 2)
    comparison = Comparison([chunk(chat({"content": "a"}, token_ids=ids))] * 2)
    assert comparison.feed(chat({"content": "a"}, token_ids=ids)) is None
    comparison.renew()
    assert comparison.feed(chat({"content": "a"}, token_ids=ids)) is None


def test_frames_that_are_appended_meanwhile_are_not_compared() -> None:
    log = [chunk(say("a"))]
    comparison = Comparison(log)
    assert comparison.feed(say("ab")) == say("b")
    log.append(chunk(say("b")))
    assert comparison.feed(say("c")) == say("c")
    comparison.end()


# -- any cut, any break, any difference ----------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8", max_codepoint=0x1F600), min_size=1, max_size=6)


@st.composite
def tracks(draw: st.DrawFn) -> list[list[tuple[str, str]]]:
    """The answer: for each choice its reasoning, its text and the arguments of two calls, token by token."""
    kinds = [kind for kind in ("reasoning", "content", "call 0", "call 1") if draw(st.booleans())]
    return [
        [(kind, draw(TEXT)) for kind in kinds for _ in range(draw(st.integers(1, 4)))]
        for _ in range(draw(st.integers(1, 3)))
    ]


def cut(draw: Callable[..., Any], answer: list[list[tuple[str, str]]], *, name: str) -> list[bytes]:
    """The answer in frames, as one engine cuts and orders them."""
    queues = []
    for index, track in enumerate(answer):
        frames = [ROLE.replace(b'"index":0', b'"index":%d' % index)]
        told = set()
        joined: list[list[str]] = []
        for kind, text in track:
            if joined and joined[-1][0] == kind and draw(st.booleans()):
                joined[-1][1] += text
            else:
                joined.append([kind, text])
        for kind, text in joined:
            if kind.startswith("call"):
                number = int(kind[-1])
                call: Json = {"index": number, "function": {"arguments": text}}
                if kind not in told:
                    call |= {"id": f"{name}{index}{number}", "type": "function"}
                    call["function"]["name"] = f"f{number}"
                    told.add(kind)
                frames.append(chat({"tool_calls": [call]}, index=index))
            else:
                frames.append(chat({kind: text}, index=index))
        end = chat(index=index, finish="stop")
        if draw(st.booleans()) and b'"tool_calls"' not in frames[-1]:
            frames[-1] = frames[-1].replace(b'"finish_reason":null', b'"finish_reason":"stop"')
        else:
            frames.append(end)
        queues.append(frames)
    frames = []
    while any(queues):
        frames.append(draw(st.sampled_from([queue for queue in queues if queue])).pop(0))
    return [*frames, usage()]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_however_frames_are_cut_and_wherever_one_breaks_the_whole_is_one_answer(data: st.DataObject) -> None:
    answer = data.draw(tracks())
    first = cut(data.draw, answer, name="a")
    second = cut(data.draw, answer, name="b")
    at = data.draw(st.integers(1, len(first)))
    got = [*first[:at], *continued(first[:at], second)]
    told, whole = merged(got), merged(first)
    for one in (told, whole):
        for choice in one["choices"].values():
            for call in choice["delta"].get("tool_calls", {}).values():
                call.pop("id")
    assert told == whole
    event("exact")


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_difference_in_what_readers_have_is_never_passed_over(data: st.DataObject) -> None:
    answer = data.draw(tracks())
    choice = data.draw(st.integers(0, len(answer) - 1))
    if not answer[choice]:
        return
    token = data.draw(st.integers(0, len(answer[choice]) - 1))
    changed = deepcopy(answer)
    kind, text = changed[choice][token]
    new = data.draw(TEXT.filter(lambda drawn: drawn != text))
    changed[choice][token] = (kind, new)
    first = cut(data.draw, answer, name="a")
    second = cut(data.draw, changed, name="b")
    at = data.draw(st.integers(1, len(first)))
    try:
        got = [*first[:at], *continued(first[:at], second)]
    except Differs:
        event("differs")
        return
    # The break came before the difference: it is the second answer that readers have, in whole.
    told, whole = merged(got), merged(second)
    for one in (told, whole):
        for each in one["choices"].values():
            for call in each["delta"].get("tool_calls", {}).values():
                call.pop("id")
    assert told["choices"] == whole["choices"]
    event("exact")

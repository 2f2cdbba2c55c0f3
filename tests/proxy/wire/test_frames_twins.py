"""A frame that is recognised needs no look: all that the looks would have said of it is known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.wire.frames import FrameTemplate, UsageStripper, has_content, is_error, usage_of
from proxy.wire.sse import Framer, is_done
from tests.golden import load, names
from tests.proxy.wire import llama_cpp

MAX = 1 << 20


def learnable(frame: bytes) -> bool:
    """What the feeder has it learn from."""
    return has_content(frame) and usage_of(frame) is None and not is_error(frame) and not is_done(frame)


def recognised(frames: Iterable[bytes]) -> list[bytes]:
    """Those of a stream that the feeder need not look at."""
    twins = FrameTemplate()
    found = []
    for frame in frames:
        if frame in twins:
            found.append(frame)
        elif learnable(frame):
            twins.learn(frame)
    return found


def holds(frame: bytes) -> None:
    """All that the feeder and the Flight take for granted of a frame that was recognised."""
    assert has_content(frame)
    assert usage_of(frame) is None
    assert not is_error(frame)
    assert not is_done(frame)
    assert UsageStripper().feed(frame) == [frame]


WORDS = ("content", "text", "arguments", "reasoning", "usage", "error", "object", "finish_reason", "choices", "x")
TEXT = st.text(max_size=6) | st.sampled_from(["", "error", "usage", "stop", "\\", '"', 'a\\"', "[DONE]", "\n\n"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | TEXT | st.integers(0, 9),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(WORDS) | TEXT, inner, max_size=3)
        | st.just({"prompt_tokens": 1})
    ),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from(WORDS), VALUES, min_size=1, max_size=4)
PREFIXES = st.sampled_from([b"data: ", b"data:", b"event: error\ndata: ", b": ping\ndata: "])
ENDS = st.sampled_from([b"\n\n", b"\r\n\r\n"])


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    tight = draw(st.booleans())
    body = json.dumps(draw(OBJECTS), separators=(",", ":") if tight else None, ensure_ascii=draw(st.booleans()))
    return draw(PREFIXES) + body.encode("utf-8", "surrogatepass") + draw(ENDS)


MORE = b'","usage":{"prompt_tokens":1},"x":"'  # what would be members of its own
RAW = st.binary(max_size=8) | st.sampled_from([b"\\", b"\\\\", b"a\\", b'"', MORE])


@given(frames(), RAW)
@example(b'data: {"content":"a","x":",","usage":null}\n\n', b"b\\")
@example(b'data: {"text":"a","usage":null}\n\n', MORE)
def test_all_that_is_taken_for_granted_of_a_recognised_frame_holds(learned: bytes, text: bytes) -> None:
    if not learnable(learned):
        return
    twins = FrameTemplate()
    twins.learn(learned)
    holds_if_recognised(twins, learned)
    for key in (b'"content":"', b'"text":"', b'"arguments":"', b'"reasoning":"'):
        at = learned.find(key)
        end = learned.find(b'"', at + len(key))
        if at >= 0 and end >= 0:
            holds_if_recognised(twins, learned[: at + len(key)] + text + learned[end:])


@given(frames(), frames())
def test_it_holds_for_any_two_frames(learned: bytes, other: bytes) -> None:
    twins = FrameTemplate()
    if learnable(learned):
        twins.learn(learned)
    holds_if_recognised(twins, other)


def holds_if_recognised(twins: FrameTemplate, frame: bytes) -> None:
    if frame in twins:
        holds(frame)


def delta(text: str) -> bytes:
    body = {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], "usage": None}
    return b"data: " + json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


@pytest.mark.parametrize(
    "text", ["a", " and", "\n", "\t\\n", "\u00e9\u4e16", "\U0001f600", "{}", "'", "error", "[DONE]"]
)
def test_text_of_any_kind_is_recognised(text: str) -> None:
    twins = FrameTemplate()
    twins.learn(delta("first"))
    assert delta(text) in twins
    holds(delta(text))


@pytest.mark.parametrize("text", ["", '"', 'say "a"', "ends in a backslash \\"])
def test_text_with_a_quote_or_none_or_a_backslash_at_its_end_is_looked_at(text: str) -> None:
    twins = FrameTemplate()
    twins.learn(delta("first"))
    assert delta(text) not in twins


@pytest.mark.parametrize("text", ["", '"a', "a\\"])
def test_nothing_is_learned_from_text_whose_end_is_in_doubt(text: str) -> None:
    twins = FrameTemplate()
    twins.learn(delta(text))
    assert delta("a") not in twins


def test_a_text_s_last_backslash_never_makes_two_strings_one() -> None:
    """Both are JSON of a kind; only the second, whose text takes a quote along, has a usage."""
    twins = FrameTemplate()
    twins.learn(b'data: {"content":"a","  ,"usage":{"prompt_tokens":1}}\n\n')
    trap = b'data: {"content":"a\\","  ,"usage":{"prompt_tokens":1}}\n\n'
    assert usage_of(trap) is not None
    assert trap not in twins


def test_knowing_nothing_it_recognises_nothing() -> None:
    assert b"" not in FrameTemplate()
    assert delta("a") not in FrameTemplate()


def test_two_events_in_one_are_not_taken_for_one() -> None:
    twins = FrameTemplate()
    twins.learn(delta("a"))
    assert delta("b")[:-2] + b"\n" + delta("c") not in twins


def test_a_finish_is_never_recognised() -> None:
    twins = FrameTemplate()
    finish = delta("a").replace(b'"finish_reason":null', b'"finish_reason":"stop"')
    twins.learn(finish)
    assert finish not in twins
    twins.learn(delta("a"))
    assert finish not in twins


# -- how much of what engines send is recognised

STREAMS = [name for name in names() if name.endswith(("-stream", "-stream-usage"))]


@pytest.mark.parametrize("name", STREAMS)
def test_it_holds_for_all_that_vllm_was_recorded_to_send(name: str) -> None:
    for frame in recognised(load(name).frames()):
        holds(frame)


def share(frames: list[bytes]) -> tuple[int, int]:
    """How many are recognised, of how many with content."""
    return len(recognised(frames)), sum(map(has_content, frames))


def test_of_a_plain_chat_of_vllm_s_more_than_nine_tenths_are_recognised() -> None:
    """The recorded one is short: what is in its middle comes again and again, as a longer answer has it."""
    first, *middle, last = [frame for frame in load("chat-greedy-stream-usage").frames() if has_content(frame)]
    known, of = share([first, *middle * 10, last])
    assert known > of * 0.9


@pytest.mark.parametrize(
    ("name", "known", "of"),
    [
        ("chat-greedy-stream", 10, 12),  # all but the first, and the last, which has the finish
        ("chat-greedy-stream-usage", 10, 12),
        ("chat-unicode-stream-usage", 17, 19),
        ("completion-stream-usage", 6, 8),
        ("chat-json-schema-stream-usage", 10, 15),  # quotes in the text
        ("chat-forced-tool-stream-usage", 2, 6),
        ("chat-continuous-usage-stream", 0, 5),  # each has its own usage,
        ("chat-logprobs-stream-usage", 0, 4),  # its own logprobs,
        ("chat-n2-seed-stream-usage", 0, 12),  # or the other choice's index: each is looked at
    ],
)
def test_what_varies_in_more_than_its_text_is_looked_at(name: str, known: int, of: int) -> None:
    assert share(load(name).frames()) == (known, of)


@pytest.mark.parametrize(("kind", "known", "of"), [("chat", 1, 2), ("completions", 1, 2), ("n2", 0, 4)])
def test_llama_cpp_s_frames_are_recognised_too(kind: str, known: int, of: int) -> None:
    assert share(Framer(MAX).feed(llama_cpp.stream(kind, usage=True))) == (known, of)

"""Tests of what single frames say, and of the view of a client that did not ask for usage."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.frames import FrameTemplate, Usage, UsageStripper, fault_of, has_content, is_error, usage_of
from proxy.wire.sse import Framer, data_of, is_done
from tests.golden import load, names
from tests.proxy.wire import llama_cpp

MAX = 1 << 20


def frame(json: str) -> bytes:
    return f"data: {json}\n\n".encode()


def delta(json: str) -> bytes:
    return frame('{"id":"c","choices":[{"index":0,"delta":' + json + ',"logprobs":null,"finish_reason":null}]}')


def frames_of(stream: bytes) -> list[bytes]:
    return Framer(MAX).feed(stream)


def plain(frames: list[bytes]) -> list[bytes]:
    view = UsageStripper()
    return [seen for frame in frames for seen in view.feed(frame)] + view.end()


@pytest.mark.parametrize(
    ("seen", "content"),
    [
        (delta('{"role":"assistant","content":""}'), False),
        (delta('{"role":"assistant","content":null}'), False),
        (delta("{}"), False),
        (delta('{"content":"a"}'), True),
        (delta('{"content":"\\""}'), True),
        (delta('{"content": "a"}'), True),
        (delta('{"role":"assistant","content":"a"}'), True),
        (delta('{"reasoning":"hm"}'), True),
        (delta('{"reasoning_content":"hm","content":""}'), True),
        (delta('{"content":"","reasoning":"hm"}'), True),
        (delta('{"refusal":"no"}'), True),
        (delta('{"content":null,"tool_calls":[{"index":0,"function":{"name":"f"}}]}'), True),
        (delta('{"content":null,"tool_calls":[{"index":0,"function":{"arguments":"{"}}]}'), True),
        (delta('{"tool_calls":[{"index":0,"function":{"arguments":""}}]}'), False),
        (frame('{"choices":[{"index":0,"text":" a","finish_reason":null}]}'), True),
        (frame('{"choices":[{"index":0,"text":"","finish_reason":"length"}]}'), False),
        (frame('{"choices":[{"delta":{"content":""}},{"delta":{"content":"b"}}]}'), True),
        (frame('{"choices":[],"usage":{"prompt_tokens":1}}'), False),
        (frame('{"choices":[{"delta":{},"logprobs":{"content":[]}}],"prompt_text":"hello"}'), False),
        (b": ping\n\n", False),
        (b"data: [DONE]\n\n", False),
    ],
)
def test_content_counts_and_roles_finishes_and_usage_do_not(seen: bytes, content: bool) -> None:
    assert has_content(seen) is content


def test_the_recorded_streams_hold_as_many_content_events_as_tokens_where_each_token_is_text() -> None:
    for name in ("chat-greedy-stream-usage", "chat-n2-seed-stream-usage", "completion-stream-usage"):
        frames = frames_of(load(name).body)
        usages = [usage for frame in frames if (usage := usage_of(frame)) is not None]
        assert [usage.completion_tokens for usage in usages] == [sum(map(has_content, frames))]


@pytest.mark.parametrize(
    ("seen", "usage"),
    [
        (
            frame('{"choices":[],"usage":{"prompt_tokens":34,"total_tokens":46,"completion_tokens":12}}'),
            Usage(34, 12, 46),
        ),
        (frame('{"choices":[{"index":0}],"usage":{"prompt_tokens":3}}'), Usage(3, 0, 0)),
        (frame('{"choices":[],"usage":null}'), None),
        (frame('{"choices":[{"usage":{"prompt_tokens":34}}]}'), None),
        (delta('{"content":"\\"usage\\":{\\"prompt_tokens\\":1}"}'), None),
        (frame('{"usage":[1]}'), None),
        (frame('{"usage":{"prompt_tokens":"many"}}'), None),
        (frame('{"usage":{'), None),
        (frame('"usage"'), None),
        (b': {"usage":1}\n\n', None),
        (frame('{"usage":' + "[" * 100_000), None),
    ],
)
def test_only_a_top_level_usage_that_is_not_null_is_one(seen: bytes, usage: Usage | None) -> None:
    assert usage_of(seen) == usage


@pytest.mark.parametrize(
    ("seen", "error"),
    [
        (frame('{"error":{"message":"no","type":"InternalServerError","param":null,"code":500}}'), True),
        (frame('{"error": "no"}'), True),
        (frame('{"object":"error","message":"no","code":400}'), True),
        (b"event: error\ndata: no\n\n", True),
        (b"data: no\nevent:error\r\n\r\n", True),
        (b'event: error\ndata: {"type":"error"}\n\n', True),
        (frame('{"error":null,"choices":[]}'), False),
        (delta('{"content":"{\\"error\\": 1}"}'), False),
        (delta('{"content":"error"}'), False),
        (frame('{"choices":[{"error":{"message":"no"}}]}'), False),
        (b"event: no error\ndata: x\n\n", False),
        (b": error\n\n", False),
        (frame("error"), False),
        (frame('["error"]'), False),
    ],
)
def test_an_error_frame_is_told_from_content_that_speaks_of_errors(seen: bytes, error: bool) -> None:
    assert is_error(seen) is error


@given(
    st.binary(max_size=80),
    st.sampled_from([b"", b'data: {"usage"', b'data: {"error"', b'data: {"finish_reason":"x"']),
)
def test_garbage_is_nothing_and_raises_nothing(data: bytes, front: bytes) -> None:
    garbage = front + data
    has_content(garbage)
    assert usage_of(garbage) is None
    is_error(garbage)
    view = UsageStripper()
    assert b"".join([*view.feed(garbage), *view.end()]) == garbage


# -- the view of who did not ask for usage ---------------------------------------------------------------

PAIRS = [name.removesuffix("-usage") for name in names(suffix="-stream-usage")]
SAMPLED = re.compile(rb'"(?:content|text)":"(?:[^"\\]|\\.)*"')


def same_but_for_who_and_when(frame: bytes) -> bytes:
    frame = re.sub(rb'"id":"(chatcmpl-tool|chatcmpl|cmpl)-[^"]*"', rb'"id":"\1"', frame)
    return re.sub(rb'"created":\d+', b'"created":0', frame)


@pytest.mark.parametrize("name", PAIRS)
def test_who_did_not_ask_for_usage_sees_byte_for_byte_what_vllm_sends_without_it(name: str) -> None:
    asked = plain(frames_of(load(f"{name}-usage").body))
    never = frames_of(load(name).body)
    ours, theirs = ([same_but_for_who_and_when(frame) for frame in side] for side in (asked, never))
    if "sampled" in name:
        ours, theirs = ([SAMPLED.sub(b"", frame) for frame in side] for side in (ours, theirs))
    assert is_done(asked[-1])
    # With several choices the engine's own interleaving differs from run to run.
    assert sorted(ours) == sorted(theirs)
    if load(name).request().get("n", 1) == 1 and "list" not in name:
        assert ours == theirs


def test_all_kinds_of_recordings_are_among_the_pairs() -> None:
    assert {"chat-greedy-stream", "chat-n2-seed-stream", "chat-sampled-n4-stream"} <= set(PAIRS)
    assert {"completion-list-stream", "completion-stream", "completion-echo-logprobs-stream"} <= set(PAIRS)


def test_a_choice_that_has_finished_holds_up_no_other() -> None:
    view = UsageStripper()
    first, second = (
        frame('{"choices":[{"index":' + str(i) + ',"delta":{},"finish_reason":"stop"}]}') for i in (0, 1)
    )
    other = frame('{"choices":[{"index":1,"delta":{"content":"b"},"finish_reason":null}]}')
    usage = frame('{"choices":[],"usage":{"prompt_tokens":1},"system_fingerprint":"v"}')
    assert view.feed(first) == []
    assert view.feed(other) == [other]
    assert view.feed(b": ping\n\n") == [b": ping\n\n"]
    assert view.feed(second) == []
    assert repr(view) == "<UsageStripper, 2 held>"
    assert view.feed(usage) == [
        frame('{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"system_fingerprint":"v"}'),
        frame('{"choices":[{"index":1,"delta":{},"finish_reason":"stop"}],"system_fingerprint":"v"}'),
    ]
    assert view.end() == []


def test_what_follows_a_finish_of_the_same_choice_stays_behind_it() -> None:
    view = UsageStripper()
    finish, late = delta("{}").replace(b":null}]", b':"stop"}]'), delta('{"content":"late"}')
    assert view.feed(finish) == []
    assert view.feed(late) == []
    assert view.feed(frame('{"choices":[],"usage":{"prompt_tokens":1}}')) == [finish, late]


@pytest.mark.parametrize("last", [b"data: [DONE]\n\n", frame('{"error":{"message":"no"}}')])
def test_without_a_usage_chunk_the_finish_comes_unchanged_before_the_end(last: bytes) -> None:
    finish = delta("{}").replace(b":null}]", b':"stop"}]')
    assert plain([finish, last]) == [finish, last]
    view = UsageStripper()
    assert view.feed(finish) == []
    assert view.end() == [finish]


def test_usage_that_the_engine_gives_unasked_is_seen_as_it_came() -> None:
    """vLLM's `--enable-force-include-usage` sends what it sends where continuous usage is asked for."""
    frames = frames_of(load("chat-continuous-usage-stream").body)
    assert plain(frames) == frames
    late = [delta('{"content":"a"}'), *frames[1:]]  # however late it begins
    assert plain(late) == late


def test_usage_on_the_finish_alone_is_not_forced() -> None:
    """Engines that say it there too, where it is asked for: the chunk without choices still vanishes."""
    finish = frame('{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}')
    usage = frame('{"choices":[],"usage":{"prompt_tokens":1}}')
    content = delta('{"content":"a"}').replace(b"}]}", b'}],"usage":null}')
    assert plain([content, finish, usage, b"data: [DONE]\n\n"]) == [content, finish, b"data: [DONE]\n\n"]


def test_line_ends_and_spaces_of_other_engines_survive() -> None:
    finish = b'data: {"choices": [{"index": 0, "finish_reason": "stop"}]}\r\n\r\n'
    usage = b'data: {"choices": [ ], "usage": {"prompt_tokens": 1}, "system_fingerprint": "v"}\r\n\r\n'
    assert plain([finish, usage]) == [
        b'data: {"choices": [{"index": 0, "finish_reason": "stop"}],"system_fingerprint":"v"}\r\n\r\n'
    ]
    split = b'data: {"choices": [{"finish_reason": "stop"}]\ndata: }\n\n'
    assert plain([split, usage]) == [split]


@pytest.mark.parametrize("kind", ["chat", "n2", "completions"])
def test_llama_cpp_gets_its_timings_back_and_is_otherwise_left_alone(kind: str) -> None:
    asked = plain(frames_of(llama_cpp.stream(kind, usage=True)))
    never = frames_of(llama_cpp.stream(kind, usage=False))
    assert sorted(map(llama_cpp.scrub, asked)) == sorted(map(llama_cpp.scrub, never))
    assert is_done(asked[-1])
    assert all(b'"choices":[]' not in (data_of(frame) or b"") for frame in asked)


TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", '"', "\\", "a\\", "\n", "\r\n\r\n", "[DONE]", '"usage":{', "error"]),
)


@given(st.lists(st.tuples(TEXTS, st.sampled_from(["chat", "text", "stop", "usage", "error", "raw"])), max_size=8))
def test_what_is_taken_for_more_of_the_same_has_content_and_nothing_else(parts: list[tuple[str, str]]) -> None:
    twins = FrameTemplate()
    for text, kind in parts:
        quoted = json.dumps(text)
        seen = {
            "chat": delta(f'{{"content":{quoted}}}'),
            "text": frame(f'{{"choices":[{{"index":0,"text":{quoted},"finish_reason":null}}]}}'),
            "stop": frame(f'{{"choices":[{{"index":0,"text":{quoted},"finish_reason":"stop"}}]}}'),
            "usage": frame(f'{{"choices":[],"usage":{{"prompt_tokens":1}},"content":{quoted}}}'),
            "error": frame(f'{{"error":{{"message":{quoted}}}}}'),
            "raw": b"data: " + text.encode() + b"\n\n",
        }[kind]
        if seen in twins:
            assert has_content(seen)
            assert usage_of(seen) is None
            assert not is_error(seen)
            assert not is_done(seen)
            assert UsageStripper().feed(seen) == [seen]
            assert Framer(1 << 20).feed(seen) == [seen]
        elif has_content(seen) and usage_of(seen) is None and not is_error(seen):
            twins.learn(seen)


def test_nearly_all_tokens_of_a_recorded_chat_are_more_of_the_same() -> None:
    for name in ("chat-greedy-stream", "completion-stream", "chat-unicode-stream"):
        twins, known, content = FrameTemplate(), 0, 0
        for seen in frames_of(load(name).body):
            if seen in twins:
                known += 1
            elif has_content(seen):
                twins.learn(seen)
            content += has_content(seen)
        assert known >= content - 2, name  # the first is learnt from, the last may bring the finish


def test_nothing_is_known_before_something_is_learnt() -> None:
    assert b"" not in FrameTemplate()
    assert delta('{"content":"a"}') not in FrameTemplate()


@pytest.mark.parametrize(
    "frame",
    [
        b'data: {"choices":[],"usage":null}\n\n',
        b'data: {"choices":[],"x":{"usage":{"prompt_tokens":1}}}\n\n',
        b'data: {"usage":{"prompt_tokens":1}}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"\\"usage\\""}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{}}],"usage":{"prompt_tokens":1}}\n\n',
    ],
)
def test_a_frame_that_is_no_usage_chunk_stays(frame: bytes) -> None:
    assert UsageStripper().feed(frame) == [frame]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (b'{"message":"out of memory","type":"InternalServerError","code":500}', "out of memory"),
        (b'{"message":"no code"}', "no code"),
        (b'{"message":"too long","code":400}', None),
        (b'{"message":"too long","code":"422"}', None),
        (b'{"message":"a name","code":"internal_error"}', "a name"),
        (b'"text"', ""),
        (b'{"message":5}', ""),
        (b"{", ""),
    ],
)
def test_an_error_frame_blames_the_engine_unless_it_has_a_client_s_status(error: bytes, fault: str | None) -> None:
    assert fault_of(b'data: {"error":%b}\n\n' % error) == fault

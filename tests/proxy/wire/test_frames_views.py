"""What frames say at the edges: counts that cannot be, events of several lines, several choices that wait."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from proxy.wire.frames import (
    MAX_TOKENS,
    FrameTemplate,
    Usage,
    UsageStripper,
    has_content,
    is_error,
    usage_from,
    usage_of,
)
from proxy.wire.sse import DONE


def frame(**members: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(members, separators=(",", ":")).encode()


def said(index: int, text: str, finish: str | None = None) -> bytes:
    return frame(choices=[{"index": index, "delta": {"content": text}, "finish_reason": finish}])


USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        (USAGE, Usage(3, 4, 7)),
        (USAGE | {"total_tokens": -1}, Usage(3, 4, 7)),
        (USAGE | {"prompt_tokens": MAX_TOKENS}, Usage(MAX_TOKENS, 4, 7)),
        (USAGE | {"prompt_tokens": MAX_TOKENS + 1}, None),
        (USAGE | {"completion_tokens": -1}, None),
        ({"total_tokens": "x"}, Usage(0, 0, 0)),
        ({"total_tokens": "x", "prompt_tokens": None, "completion_tokens": None}, Usage(0, 0, 0)),
        (None, None),
        ([], None),
    ],
)
def test_counts_that_can_be_are_read(usage: Any, found: Usage | None) -> None:
    assert usage_of(frame(usage=usage)) == found


@pytest.mark.parametrize(
    "broken", [b'data: {"usage":{"prompt_tokens":1}\n\n', b'data: {"usage":\xff}\n\n', b': "usage"\n\n']
)
def test_a_frame_that_is_no_json_has_no_counts(broken: bytes) -> None:
    assert usage_of(broken) is None


def test_usage_that_is_no_object_is_none() -> None:
    assert usage_from(msgspec.Raw(b"5")) is None
    assert usage_from(msgspec.Raw(b'{"prompt_tokens":2}')) == Usage(2, 0, 2)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"event: error\ndata: {}\n\n", True),
        (b"event:  error\t\ndata: {}\n\n", True),
        (b'data: {"error":null}\n\n', False),
        (b'data: {"error":{}}\n\n', True),
        (b'data: {"error":""}\n\n', True),
        (b'data: {"object":"error"}\n\n', True),
        (b'data: {"object":"chat","x":"error"}\n\n', False),
        (b'data: {"a":{"error":1}}\n\n', False),
        (b": error\n\n", False),
        (b"data: error\n\n", False),
    ],
)
def test_an_error_is_named_by_the_event_or_a_member(data: bytes, error: bool) -> None:
    assert is_error(data) is error


@pytest.mark.parametrize(
    "name", ["content", "text", "arguments", "name", "reasoning", "reasoning_content", "refusal"]
)
def test_a_text_of_any_name_is_content_where_it_is_not_empty(name: str) -> None:
    for space in ("", " ", "\t"):
        assert has_content(f'data: {{"{name}":{space}"x"}}\n\n'.encode())
        assert not has_content(f'data: {{"{name}":{space}""}}\n\n'.encode())
        assert not has_content(f'data: {{"{name}":{space}null}}\n\n'.encode())
    assert has_content(f'data: {{"content":"","{name}":"x"}}\n\n'.encode())


def test_events_of_several_lines_and_of_odd_line_ends_are_no_models_for_others() -> None:
    for model in (
        b"event: x\n" + said(0, "a"),
        said(0, "a").replace(b"\n", b"\r\n"),
        said(0, "a", "stop"),
        said(0, ""),
    ):
        twins = FrameTemplate()
        twins.learn(model)
        assert model not in twins
    twins = FrameTemplate()
    twins.learn(said(0, "a"))
    for other, twin in (("b", True), ("", False), ("a\\", False), ('a"', False), ("long", True)):
        assert (said(0, other) in twins) is twin
    assert said(1, "b") not in twins
    assert b"" not in twins


# The view of who did not ask for usage

MOVED = frame(choices=[], usage=USAGE, system_fingerprint="fp")


def put_back(data: bytes) -> bytes:
    return data.replace(b"}\n\n", b',"system_fingerprint":"fp"}\n\n')


def test_what_comes_for_a_choice_that_waits_waits_behind_it() -> None:
    view = UsageStripper()
    for end in (said(0, "", "stop"), said(1, "", "stop")):
        assert view.feed(end) == []
    late, other = said(0, "late"), said(2, "other")
    assert view.feed(late) == []
    assert view.feed(other) == [other]
    assert view.feed(MOVED) == [put_back(said(0, "", "stop")), put_back(said(1, "", "stop")), late]
    assert view.held == []
    assert view.feed(late) == [late]


@pytest.mark.parametrize("last", [DONE, frame(error={"message": "no"})])
def test_what_waits_goes_out_unchanged_before_the_end_or_an_error(last: bytes) -> None:
    view = UsageStripper()
    view.feed(said(0, "", "stop"))
    assert view.feed(last) == [said(0, "", "stop"), last]
    assert view.end() == []


@pytest.mark.parametrize(
    "usage",
    [
        frame(choices=[], usage=None),
        frame(usage=USAGE),
        frame(choices=[{"index": 7}], usage=USAGE),
        frame(choices=[]),
    ],
)
def test_a_chunk_that_is_not_usage_alone_is_no_usage_chunk(usage: bytes) -> None:
    view = UsageStripper()
    assert view.feed(usage) == [usage]
    view.feed(said(0, "", "stop"))
    assert view.feed(usage) == [usage]
    assert view.end() == [said(0, "", "stop")]


def test_what_a_finish_has_already_is_not_put_back_and_what_it_lacks_is() -> None:
    view = UsageStripper()
    finish = frame(choices=[{"index": 0, "finish_reason": "stop"}], system_fingerprint="own")
    view.feed(finish)
    chunk = frame(choices=[], usage=USAGE, system_fingerprint="fp", timings={"a": 1})
    assert view.feed(chunk) == [finish.replace(b"}\n\n", b',"timings":{"a":1}}\n\n')]
    view.feed(finish)
    assert view.feed(MOVED) == [finish]


def test_a_finish_over_several_lines_or_that_is_no_json_goes_out_as_it_came() -> None:
    for odd in (b'data: {"a":1,\ndata: "finish_reason":"stop"}\n\n', b'data: {"finish_reason":"stop"\n\n'):
        view = UsageStripper()
        assert view.feed(odd) == []
        assert view.feed(MOVED) == [odd]

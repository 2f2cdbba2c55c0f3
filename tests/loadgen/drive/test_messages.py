"""What one message says. The definition of a first token rests on this table."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.drive.capture.messages import MessageError, Usage, decode_message, error_of, kind_of, times_of_engine
from loadgen.record import Kind


@pytest.mark.parametrize(
    ("choice", "kind"),
    [
        ({"delta": {"role": "assistant", "content": ""}}, Kind.ROLE),
        ({"delta": {"role": "assistant", "content": "x"}}, Kind.CONTENT),
        ({"delta": {"content": " "}}, Kind.CONTENT),
        ({"delta": {"content": ""}}, Kind.OTHER),
        ({"delta": {"content": None}}, Kind.OTHER),
        ({"delta": {"reasoning": "hm"}}, Kind.REASONING),
        ({"delta": {"reasoning_content": "hm"}}, Kind.REASONING),
        ({"delta": {"reasoning_content": "hm", "content": "x"}}, Kind.CONTENT),
        ({"delta": {"tool_calls": [{"function": {"name": "f"}}]}}, Kind.TOOL),
        ({"delta": {"tool_calls": [{"function": {"arguments": "{"}}]}}, Kind.TOOL),
        ({"delta": {"tool_calls": [{"function": {"arguments": ""}}]}}, Kind.OTHER),
        ({"delta": {"tool_calls": []}}, Kind.OTHER),
        ({"delta": {"function_call": {"name": "f"}}}, Kind.TOOL),
        ({"delta": {"refusal": "no"}}, Kind.CONTENT),
        ({"delta": {}, "finish_reason": "stop"}, Kind.FINISH),
        ({"delta": {"content": "x"}, "finish_reason": "length"}, Kind.CONTENT),
        ({"text": "x"}, Kind.CONTENT),
        ({"text": ""}, Kind.OTHER),
        ({"text": "", "finish_reason": "stop"}, Kind.FINISH),
    ],
)
def test_a_choice_is_of_one_kind(choice: dict[str, Any], kind: Kind) -> None:
    choices = decode_message(json.dumps({"choices": [choice]}).encode()).choices
    assert choices is not None
    assert kind_of(choices[0]) is kind


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"error": {"message": "out of memory", "code": 500}}, "out of memory"),
        ({"error": "plain"}, "plain"),
        ({"object": "error", "message": "old vLLM"}, "old vLLM"),
        ({"choices": [], "error": None}, None),
        ({"choices": []}, None),
    ],
)
def test_an_error_is_told_by_its_shape(message: dict[str, Any], said: str | None) -> None:
    assert error_of(decode_message(json.dumps(message).encode())) == said


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_no_answer_and_nothing_else(data: bytes) -> None:
    try:
        decode_message(data)
    except MessageError as error:
        assert "not a message" in str(error)


def test_deep_nesting_is_no_answer() -> None:
    with pytest.raises(MessageError):
        decode_message(b'{"error":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def test_a_count_below_zero_is_no_count() -> None:
    """It was a throughput of -6,125 tok/s."""
    usage = {"prompt_tokens": -5, "completion_tokens": -3, "prompt_tokens_details": {"cached_tokens": -1}}
    read = decode_message(json.dumps({"choices": [], "usage": usage}).encode()).usage
    assert read is not None
    assert read.prompt_tokens_details is not None
    assert (read.prompt_tokens, read.completion_tokens, read.prompt_tokens_details.cached_tokens) == (None,) * 3
    assert Usage(7, 0).completion_tokens == 0


@pytest.mark.parametrize("value", [b"-1", b"NaN", b"Infinity", b"-Infinity", b"1e300"])
def test_an_engines_time_that_is_none_is_left_out(value: bytes) -> None:
    message = decode_message(b'{"choices": [], "metrics": {"queue_time_ms": %b}}' % value)
    assert times_of_engine(message) is None

"""What single events and bodies of Messages and Responses say, recorded and hostile."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError, anthropic_type
from proxy.wire.event_apis import MESSAGES, RESPONSES, EventApi, Seen, is_messages, is_responses, response_named
from proxy.wire.frames import MAX_TOKENS, Usage
from proxy.wire.sse import data_of
from tests import golden

APIS: dict[str, EventApi] = {"messages": MESSAGES, "responses": RESPONSES}


def frame(value: Any, kind: str = "") -> bytes:
    return (f"event: {kind}\n" if kind else "").encode() + b"data: " + json.dumps(value).encode() + b"\n\n"


def test_the_recorded_messages_say_this() -> None:
    seen = [MESSAGES.read_event(event) for event in golden.load("messages-stream").frames()]
    assert seen == [
        Seen(opening=True, prompt=34),
        Seen(),
        *[Seen(content=True)] * 8,
        Seen(),
        Seen(usage=Usage(34, 8, 42)),
        Seen(end=True),
    ]
    assert MESSAGES.read_body(golden.load("messages").body) == Seen(usage=Usage(34, 8, 42))


def test_the_recorded_responses_say_this() -> None:
    seen = [RESPONSES.read_event(event) for event in golden.load("responses-stream").frames()]
    id = "resp_98cc9e8f4eeb1e3d"
    assert seen == [
        *[Seen(opening=True, id=id)] * 2,
        *[Seen()] * 2,
        *[Seen(content=True)] * 8,
        *[Seen()] * 3,
        Seen(end=True, id=id, usage=Usage(33, 8, 41)),
    ]
    assert RESPONSES.read_body(golden.load("responses").body) == Seen(
        usage=Usage(33, 8, 41), id="resp_8c7a995a10cdd592"
    )


@pytest.mark.parametrize(
    ("api", "event", "seen"),
    [
        (MESSAGES, b": a comment\n\n", Seen(idle=True)),
        (MESSAGES, b"event: content_block_delta\r\ndata: {\"type\":\"content_block_delta\"}\r\n\r\n", Seen(content=True)),  # noqa: E501
        (MESSAGES, frame({"type": "ping"}), Seen(idle=True)),
        (MESSAGES, frame({"type": "error", "error": {}}), Seen(error=True)),
        (MESSAGES, b"event: error\n\n", Seen(error=True)),
        (MESSAGES, b"data: [DONE]\n\n", Seen()),
        (MESSAGES, frame({"type": "message_start", "message": {"usage": {"input_tokens": 1, "cache_read_input_tokens": 5}}}), Seen(opening=True, prompt=6)),  # noqa: E501
        (MESSAGES, frame({"type": "message_start", "message": 7}), Seen(opening=True)),
        (MESSAGES, frame({"type": "message_delta", "usage": {"output_tokens": -1}}), Seen(usage=Usage(0, 0, 0))),
        (MESSAGES, frame({"type": "message_delta", "usage": [1]}), Seen()),
        (MESSAGES, frame({"type": 7}), Seen()),
        (RESPONSES, frame({"type": "response.output_text.delta"}), Seen(content=True)),
        (RESPONSES, b"event: response.output_text.delta\ndata: {", Seen(content=True)),
        (RESPONSES, b": keep-alive\n\n", Seen(idle=True)),
        (RESPONSES, frame({"error": {"message": "x"}}), Seen(error=True)),
        (RESPONSES, frame({"type": "error", "message": "x"}), Seen(error=True)),
        (RESPONSES, frame({"type": "response.created", "response": {"id": "x" * 257}}), Seen(opening=True)),
        (RESPONSES, frame({"type": "response.created", "response": {"id": 5}}), Seen(opening=True)),
        (RESPONSES, frame({"type": "response.failed", "response": {"id": "r", "usage": {"output_tokens": MAX_TOKENS + 1}}}), Seen(end=True, id="r", usage=Usage(0, 0, 0))),  # noqa: E501
        (RESPONSES, frame({"type": "response.incomplete", "response": None}), Seen(end=True)),
    ],
)  # fmt: skip
def test_odd_events(api: EventApi, event: bytes, seen: Seen) -> None:
    assert api.read_event(event) == seen


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "usage", "message", "response", "error", "id", "output_tokens"]), inner
        )
    ),
    max_leaves=12,
)
KINDS = ("message_start", "message_delta", "error", "response.created", "response.completed", "x")


@pytest.mark.parametrize("name", APIS)
@given(data=st.binary(max_size=60), value=VALUES, kind=st.sampled_from(KINDS))
def test_whatever_an_engine_says_nothing_is_raised_and_counts_are_plausible(
    name: str, data: bytes, value: Any, kind: str
) -> None:
    api = APIS[name]
    shaped = value | {"type": kind} if isinstance(value, dict) else value
    deep = b"data: " + b'{"usage":' * 3000 + b"\n\n"
    for event in (data + b"\n\n", b"data: " + data + b"\n\n", frame(value), frame(shaped, kind), deep):
        seen = api.read_event(event)
        assert 0 <= seen.prompt <= 3 * MAX_TOKENS
        usage = api.read_body(data_of(event) or b"").usage
        assert usage is None or 0 <= usage.completion_tokens <= MAX_TOKENS
    passed = api.passed_event(json.loads(json.dumps(value)), 400, "r", 3)
    assert json.loads(data_of(passed) or b"")["type"] == "error"


def test_errors_are_written_as_each_api_has_them() -> None:
    error = GatewayError(Code.QUEUE_FULL, "full\nof \N{SNOWMAN}", param="p")
    assert json.loads(data_of(MESSAGES.error_event(error, "r", 3)) or b"") == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": error.message},
        "request_id": "r",
    }
    told = json.loads(data_of(RESPONSES.error_event(error, "r", 3)) or b"")
    assert told == {
        "type": "error", "sequence_number": 3, "code": "queue_full", "message": error.message, "param": "p",
        "error": {"message": error.message, "type": "overloaded_error", "param": "p", "code": "queue_full"},
    }  # fmt: skip
    engines = {"type": "error", "error": {"type": "x", "message": "y"}}
    assert json.loads(data_of(MESSAGES.passed_event(engines, 400, "r", 0)) or b"") == engines
    assert json.loads(data_of(MESSAGES.passed_event({"error": {"message": "y"}}, 404, "r", 0)) or b"")[
        "error"
    ] == {
        "type": "not_found_error",
        "message": "y",
    }


@pytest.mark.parametrize("code", Code)
def test_each_error_has_a_type_of_anthropics(code: Code) -> None:
    named = anthropic_type(code.status)
    assert named in {
        "invalid_request_error", "authentication_error", "permission_error", "not_found_error", "timeout_error",
        "request_too_large", "rate_limit_error", "overloaded_error", "api_error",
    }  # fmt: skip
    assert (named in ("api_error", "overloaded_error", "timeout_error")) == (
        code.status >= 500 or code.status == 408
    )


def test_paths() -> None:
    assert [is_messages(f"/v1/messages{rest}") for rest in ("", "/count_tokens", "x", "-y")] == [
        True,
        True,
        False,
        False,
    ]
    assert is_responses("/v1/responses/r")
    assert not is_responses("/v1/responsesx/r")
    named = {"": None, "/r": "r", "/r/cancel": "r", "/compact": None, "/input_tokens": None}
    assert {rest: response_named("/v1/responses" + rest) for rest in named} == named


LONG = [*[int("9" * 4000)] * 20, 7]


@pytest.mark.parametrize("usage", [{"input_tokens": 3, "output_tokens": 4, "x": LONG}, LONG, "u" * 70_000])
def test_a_part_that_is_large_is_not_read_and_the_event_is_what_it_is(usage: Any) -> None:
    start = {"type": "message_start", "message": {"usage": usage}}
    assert MESSAGES.read_event(frame(start)) == Seen(opening=True)
    assert MESSAGES.read_event(frame({"type": "message_delta", "usage": usage})) == Seen()
    assert MESSAGES.read_body(json.dumps({"usage": usage}).encode()) == Seen()
    done = {"type": "response.completed", "response": {"id": "resp_1", "usage": usage}}
    assert RESPONSES.read_event(frame(done)) == Seen(end=True, id="resp_1")
    assert RESPONSES.read_body(json.dumps({"id": usage, "usage": {"output_tokens": 4}}).encode()) == Seen(
        usage=Usage(0, 4, 4)
    )

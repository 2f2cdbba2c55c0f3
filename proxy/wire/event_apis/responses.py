"""OpenAI's Responses API: https://platform.openai.com/docs/api-reference/responses-streaming."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from proxy.errors import GatewayError
from proxy.wire.event_apis.event_api import (
    CONTENT,
    ERROR,
    NO_PART,
    NOT_JSON,
    NOTHING,
    EventApi,
    Seen,
    is_under,
    plausible,
    value_of,
    words_in,
)
from proxy.wire.frames import Usage

PATH: Final = "/v1/responses"
LONGEST_ID: Final = 256  # characters
_DELTA: Final = re.compile(rb"event: response\.[a-z_.]{1,64}\.delta\n")
_OPENING: Final = frozenset({"response.created", "response.queued", "response.in_progress"})
_END: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_NO_ID: Final = ("compact", "input_tokens")  # methods in the place of an id


class _Event(msgspec.Struct):
    type: str = ""
    response: msgspec.Raw = NO_PART
    error: msgspec.Raw = NO_PART


class _Response(msgspec.Struct):
    id: msgspec.Raw = NO_PART
    usage: msgspec.Raw = NO_PART


_EVENT: Final = msgspec.json.Decoder(_Event)
_RESPONSE: Final = msgspec.json.Decoder(_Response)


def is_responses(path: str) -> bool:
    """Whether a path in its normal form is of this API."""
    return is_under(path, PATH)


def response_named(path: str) -> str | None:
    """The id in a path of this API such as `/v1/responses/ID/cancel`; None: it names no response."""
    segments = path.split("/")
    if len(segments) < 4 or (len(segments) == 4 and segments[3] in _NO_ID):
        return None
    return segments[3]


class ResponsesApi(EventApi):
    keep_alive = b": keep-alive\n\n"

    decoder = _EVENT
    delta = _DELTA

    def read(self, event: Any) -> Seen:
        kind = event.type
        if kind.endswith(".delta"):
            return CONTENT
        if kind in _OPENING:
            return Seen(opening=True, id=_response(event.response).id)
        if kind in _END:
            response = _response(event.response)
            return Seen(end=True, id=response.id, usage=response.usage)
        if kind == "error" or bytes(event.error) != b"null":
            return ERROR
        return NOTHING

    def read_body(self, body: bytes) -> Seen:
        return _response(body)

    def error_event(self, error: GatewayError, request_id: str, number: int) -> bytes:
        return _error(error.body()["error"], number)

    def passed_event(self, error: Any, status: int, request_id: str, number: int) -> bytes:
        inner = error.get("error", error) if isinstance(error, dict) else None
        if not isinstance(inner, dict):
            inner = {}
        words = {"message": words_in(error, status), "type": inner.get("type"), "code": inner.get("code")}
        return _error(words | {"param": inner.get("param")}, number)


def _error(error: dict[str, Any], number: int) -> bytes:
    """The event in both of its shapes: flat as OpenAI documents it, and with the `error` by which OpenAI's clients
    raise."""
    event = {"type": "error", "sequence_number": number, "error": error}
    event |= {name: error[name] for name in ("code", "message", "param")}
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(event)


def _response(data: bytes | msgspec.Raw) -> Seen:
    """The id and usage of a response."""
    try:
        response = _RESPONSE.decode(data)
    except NOT_JSON:
        return NOTHING
    usage, tokens = value_of(response.usage), None
    if isinstance(usage, dict) and "output_tokens" in usage:
        prompt, completion = plausible(usage.get("input_tokens")), plausible(usage["output_tokens"])
        tokens = Usage(prompt, completion, prompt + completion)
    name = value_of(response.id)
    known = isinstance(name, str) and 0 < len(name) <= LONGEST_ID
    return Seen(usage=tokens, id=name if known else None)


RESPONSES: Final = ResponsesApi()

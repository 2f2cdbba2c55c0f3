"""Anthropic's Messages API: https://docs.claude.com/en/docs/build-with-claude/streaming."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from proxy.errors import GatewayError, anthropic_type
from proxy.wire.event_apis.event_api import (
    CONTENT,
    ERROR,
    IDLE,
    NO_PART,
    NOT_JSON,
    NOTHING,
    OPENING,
    EventApi,
    Seen,
    is_under,
    plausible,
    value_of,
    words_in,
)
from proxy.wire.frames import Usage

PATH: Final = "/v1/messages"
_DELTA: Final = re.compile(rb"event: content_block_delta\n")
_IN: Final = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
"""Together they are the prompt: the first one is without cached tokens."""


class _Event(msgspec.Struct):
    type: str = ""
    usage: msgspec.Raw = NO_PART
    message: msgspec.Raw = NO_PART


class _Message(msgspec.Struct):
    usage: msgspec.Raw = NO_PART


_EVENT: Final = msgspec.json.Decoder(_Event)
_MESSAGE: Final = msgspec.json.Decoder(_Message)


def is_messages(path: str) -> bool:
    """Whether a path in its normal form is of this API, whose errors have Anthropic's shape."""
    return is_under(path, PATH)


class MessagesApi(EventApi):
    keep_alive = b'event: ping\ndata: {"type": "ping"}\n\n'

    decoder = _EVENT
    delta = _DELTA

    def read(self, event: Any) -> Seen:
        match event.type:
            case "content_block_delta":
                return CONTENT
            case "ping":
                return IDLE
            case "message_start":
                try:
                    usage = value_of(_MESSAGE.decode(event.message).usage)
                except NOT_JSON:
                    return OPENING
                return Seen(opening=True, prompt=_prompt(usage)) if usage else OPENING
            case "message_delta":
                return Seen(usage=_usage(value_of(event.usage)))
            case "message_stop":
                return Seen(end=True)
            case "error":
                return ERROR
        return NOTHING

    def read_body(self, body: bytes) -> Seen:
        try:
            return Seen(usage=_usage(value_of(_EVENT.decode(body).usage)))
        except NOT_JSON:
            return NOTHING

    def error_event(self, error: GatewayError, request_id: str, number: int) -> bytes:
        return b"event: error\ndata: %b\n\n" % error.anthropic_json(request_id)

    def passed_event(self, error: Any, status: int, request_id: str, number: int) -> bytes:
        if not (isinstance(error, dict) and error.get("type") == "error"):
            inner = {"type": anthropic_type(status), "message": words_in(error, status)}
            error = {"type": "error", "error": inner, "request_id": request_id}
        return b"event: error\ndata: %b\n\n" % msgspec.json.encode(error)


def _prompt(usage: Any) -> int:
    return sum(plausible(usage.get(name)) for name in _IN) if isinstance(usage, dict) else 0


def _usage(usage: Any) -> Usage | None:
    """Usage, as OpenAI counts it. None where there is none."""
    if not isinstance(usage, dict) or "output_tokens" not in usage:
        return None
    prompt, completion = _prompt(usage), plausible(usage["output_tokens"])
    return Usage(prompt, completion, prompt + completion)


MESSAGES: Final = MessagesApi()

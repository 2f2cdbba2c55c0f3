"""What one message says, for each API: OpenAI's chat, completions and embeddings, its Responses, Anthropic's
Messages, and rerank. Event names are those of the APIs' references and of vLLM 0.32's recorded answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from loadgen.drive.capture.messages import (
    Details,
    EngineTimes,
    MessageError,
    Usage,
    decode_message,
    error_of,
    kind_of,
    times_of_engine,
)
from loadgen.record import Kind
from loadgen.spec import Endpoint

T = TypeVar("T")


class Part(NamedTuple):
    """What a message holds of one choice."""

    kind: Kind
    choice: int = 0
    text: str = ""
    other: str = ""  # reasoning, and names and arguments of tool calls
    finish: str | None = None  # chat and completions: the finish_reason, "" for none yet


class Message(NamedTuple):
    """One message, read. `last`: it ends the stream."""

    parts: Sequence[Part] = ()
    usage: Usage | None = None
    error: str | None = None
    last: bool = False
    times: EngineTimes | None = None  # the engine's own


Read = Callable[[bytes], Message]
"""Raises MessageError for bytes that are no message of the API."""


class Dialect(NamedTuple):
    event: Read  # an event's data
    whole: Read  # a whole body; without parts it is no answer
    end: str  # what ends a stream, in words


# OpenAI: chat, completions, embeddings


def _chat_event(data: bytes) -> Message:
    message = decode_message(data)
    parts = [
        Part(kind_of(choice), choice.index, *_said(choice.text, choice.delta), choice.finish_reason or "")
        for choice in message.choices or ()
    ]
    return Message(parts, message.usage, error_of(message), times=times_of_engine(message))


def _chat_whole(body: bytes) -> Message:
    message = decode_message(body)
    parts = [
        Part(Kind.WHOLE, choice.index, *_said(choice.text, choice.message), choice.finish_reason or "")
        for choice in message.choices or ()
    ]
    if message.data:
        parts = [Part(Kind.WHOLE)]
    return Message(parts, message.usage, error_of(message), times=times_of_engine(message))


def _said(text: str | None, message: dict[str, Any] | None) -> tuple[str, str]:
    """The content, and the reasoning and tool calls, of a message or of its delta."""
    if text or not message:
        return text or "", ""
    content = message.get("content") or message.get("refusal")
    content = content if isinstance(content, str) else ""
    other = message.get("reasoning") or message.get("reasoning_content")
    other = other if isinstance(other, str) else ""
    for call in calls if isinstance(calls := message.get("tool_calls"), list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            other += f"{function.get('name') or ''}{function.get('arguments') or ''}"
    return content, other


# Tagged messages: Responses and Messages name the kind of each event in `type`


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    def as_usage(self) -> Usage:
        """Anthropic's input_tokens exclude those of the cache; its message_delta may have output_tokens only."""
        cached = self.cache_read_input_tokens
        total = self.input_tokens
        if total is not None:
            total += (cached or 0) + (self.cache_creation_input_tokens or 0)
        details = self.input_tokens_details or (None if cached is None else Details(cached))
        return Usage(total, self.output_tokens, details)


class _Response(msgspec.Struct):
    status: str | None = None
    output: list[dict[str, Any]] | None = None
    usage: _Usage | None = None
    error: Any = None


class _ResponsesEvent(msgspec.Struct):
    type: str = ""
    delta: Any = None
    item: dict[str, Any] | None = None
    response: _Response | None = None
    error: Any = None
    message: Any = None


_RESPONSES_DELTAS: Final = {
    "response.output_text.delta": Kind.CONTENT,
    "response.refusal.delta": Kind.CONTENT,
    "response.reasoning_text.delta": Kind.REASONING,
    "response.reasoning_summary_text.delta": Kind.REASONING,
    "response.function_call_arguments.delta": Kind.TOOL,
    "response.custom_tool_call_input.delta": Kind.TOOL,
    "response.mcp_call_arguments.delta": Kind.TOOL,
    "response.code_interpreter_call_code.delta": Kind.TOOL,
}
_RESPONSES_LAST: Final = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.cancelled"}
)
_responses_event: Final = msgspec.json.Decoder(_ResponsesEvent)
_response: Final = msgspec.json.Decoder(_Response)


def _read_responses_event(data: bytes) -> Message:
    event = _decoded(_responses_event, data)
    kind = _RESPONSES_DELTAS.get(event.type)
    if kind is not None:
        text = event.delta if isinstance(event.delta, str) else ""
        return Message([_part(kind, text)])
    usage = event.response.usage.as_usage() if event.response is not None and event.response.usage else None
    if event.type in ("response.failed", "response.cancelled", "error") or (not event.type and event.error):
        error = event.response.error if event.response is not None else event.error or event.message
        return Message((), usage, _error_text(error) or event.type, last=True)
    if event.type in _RESPONSES_LAST:
        return Message([Part(Kind.FINISH)], usage, last=True)
    if event.type == "response.output_item.added" and event.item is not None:
        return Message([Part(_item_kind(event.item))], usage)
    return Message([Part(Kind.OTHER)], usage)


def _part(kind: Kind, text: str) -> Part:
    if not text:
        return Part(Kind.OTHER)
    return Part(kind, 0, text) if kind is Kind.CONTENT else Part(kind, 0, "", text)


def _item_kind(item: dict[str, Any]) -> Kind:
    """A tool call's name comes with its item; a message's item has its role only."""
    if item.get("type") == "message":
        return Kind.ROLE
    return Kind.TOOL if item.get("name") else Kind.OTHER


def _read_response(body: bytes) -> Message:
    response = _decoded(_response, body)
    usage = response.usage.as_usage() if response.usage is not None else None
    if response.error is not None or response.status in ("failed", "cancelled"):
        return Message((), usage, _error_text(response.error) or f"status {response.status}")
    parts = [Part(Kind.WHOLE, 0, *_block_texts(item.get("content"), item)) for item in response.output or ()]
    return Message(parts, usage)


class _MessagesEvent(msgspec.Struct):
    type: str = ""
    delta: dict[str, Any] | None = None
    content_block: dict[str, Any] | None = None
    message: Any = None
    usage: _Usage | None = None
    error: Any = None
    content: list[dict[str, Any]] | None = None  # of a whole body


_MESSAGES_DELTAS: Final = {
    "text_delta": ("text", Kind.CONTENT),
    "thinking_delta": ("thinking", Kind.REASONING),
    "input_json_delta": ("partial_json", Kind.TOOL),
}
_messages_event: Final = msgspec.json.Decoder(_MessagesEvent)


def _read_messages_event(data: bytes) -> Message:
    event = _decoded(_messages_event, data)
    usage = None if event.usage is None else event.usage.as_usage()
    match event.type:
        case "content_block_delta":
            delta = event.delta or {}
            name, kind = _MESSAGES_DELTAS.get(str(delta.get("type")), ("", Kind.OTHER))
            text = delta.get(name)
            text = text if isinstance(text, str) else ""
            return Message([_part(kind, text)], usage)
        case "content_block_start":
            block = event.content_block or {}
            return Message([Part(Kind.TOOL if block.get("name") else Kind.OTHER)], usage)
        case "message_start":
            return Message([Part(Kind.ROLE)], _start_usage(event.message))
        case "message_delta":
            return Message([Part(Kind.FINISH)], usage)
        case "message_stop":
            return Message([Part(Kind.DONE)], last=True)
        case "error":
            return Message((), usage, _error_text(event.error) or "error", last=True)
    if event.error is not None:
        return Message((), usage, _error_text(event.error), last=True)
    return Message([Part(Kind.OTHER)], usage)


def _start_usage(message: Any) -> Usage | None:
    usage = message.get("usage") if isinstance(message, dict) else None
    try:
        return msgspec.convert(usage, _Usage).as_usage() if isinstance(usage, dict) else None
    except msgspec.ValidationError as error:
        raise MessageError(f"not a usage: {error}") from None


def _read_message(body: bytes) -> Message:
    message = _decoded(_messages_event, body)
    usage = None if message.usage is None else message.usage.as_usage()
    if message.type == "error" or message.error is not None:
        return Message((), usage, _error_text(message.error) or "error")
    return Message([Part(Kind.WHOLE, 0, *_block_texts(message.content))] if message.content else (), usage)


def _block_texts(content: Any, item: dict[str, Any] | None = None) -> tuple[str, str]:
    """The text of content blocks; and the reasoning and tool calls of the blocks or of their item."""
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    text = "".join(str(block.get("text") or "") for block in blocks if block.get("type") != "reasoning_text")
    other = "".join(str(block.get("thinking") or "") for block in blocks)
    other += "".join(str(block.get("text") or "") for block in blocks if block.get("type") == "reasoning_text")
    for call in [*blocks, *([item] if item else [])]:
        arguments = call.get("arguments") or call.get("input") or ""
        other += str(call.get("name") or "")
        other += arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
    return text, other


# Rerank


class _Ranked(msgspec.Struct):
    results: list[msgspec.Raw] | None = None
    usage: Usage | None = None
    error: Any = None


_ranked: Final = msgspec.json.Decoder(_Ranked)


def _read_ranked(body: bytes) -> Message:
    ranked = _decoded(_ranked, body)
    error = None if ranked.error is None else _error_text(ranked.error)
    return Message([Part(Kind.WHOLE)] if ranked.results else (), ranked.usage, error)


# All of them


def _decoded(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not a message of this API ({error})", data) from None


def _error_text(error: Any) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or error)
    return "" if error is None else str(error)


_CHAT: Final = Dialect(_chat_event, _chat_whole, "[DONE]")
DIALECTS: Final[dict[Endpoint, Dialect]] = {
    "chat": _CHAT,
    "completions": _CHAT,
    "embeddings": _CHAT,
    "responses": Dialect(_read_responses_event, _read_response, "response.completed"),
    "messages": Dialect(_read_messages_event, _read_message, "message_stop"),
    "rerank": Dialect(_chat_event, _read_ranked, "[DONE]"),
}


def error_in(body: bytes) -> str | None:
    """The error of a body of any of these APIs, or None. All have it under `error`."""
    try:
        return error_of(decode_message(body))
    except MessageError:
        return None

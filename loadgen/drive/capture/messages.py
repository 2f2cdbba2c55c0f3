"""What one JSON message of an OpenAI-style response says: its kind for each choice, its usage, its error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec

from loadgen.record import Kind


def cut(data: bytes, size: int, hide: Callable[[str], str]) -> str:
    """The beginning of bytes as text. Secrets are hidden first: half of one would not be found."""
    return hide(data.decode("utf-8", "replace"))[:size]


class MessageError(Exception):
    """The bytes are not a message of this API; the text says why."""

    def __init__(self, why: str, data: bytes = b"") -> None:
        super().__init__(why)
        self._data = data

    def words(self, hide: Callable[[str], str]) -> str:
        """Why, and the beginning of the bytes."""
        return f"{self}: {cut(self._data, 80, hide)}" if self._data else str(self)


Milliseconds = Annotated[float, msgspec.Meta(ge=0, lt=1e12)]  # so no NaN


class Details(msgspec.Struct):
    cached_tokens: int | None = None

    def __post_init__(self) -> None:
        self.cached_tokens = _counted(self.cached_tokens)


class Usage(msgspec.Struct):
    """A count below 0 is none."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None

    def __post_init__(self) -> None:
        self.prompt_tokens = _counted(self.prompt_tokens)
        self.completion_tokens = _counted(self.completion_tokens)


def _counted(count: int | None) -> int | None:
    return None if count is None or count < 0 else count


class Choice(msgspec.Struct):
    """One choice of a chunk or of a whole body. Fields that are only tested for emptiness have loose types."""

    index: int = 0
    delta: dict[str, Any] | None = None
    message: dict[str, Any] | None = None
    text: str | None = None
    finish_reason: str | None = None


class EngineTimes(msgspec.Struct):
    """vLLM's `metrics` of a request, with --enable-per-request-metrics: `time_to_first_token_ms` counts from when
    it was scheduled, so that both together are the engine's part of TTFT."""

    queue_time_ms: Milliseconds | None = None
    time_to_first_token_ms: Milliseconds | None = None


class Message(msgspec.Struct):
    choices: list[Choice] | None = None
    usage: Usage | None = None
    metrics: Any = None  # `EngineTimes`, or something else of another engine
    error: Any = None
    object: str | None = None
    message: Any = None  # vLLM's old error body: {"object": "error", "message": ...}
    data: list[msgspec.Raw] | None = None  # embeddings


_DECODER: Final = msgspec.json.Decoder(Message)
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)


def decode_message(data: bytes) -> Message:
    """Raises MessageError. 1.3 µs for a vLLM chunk of 215 bytes.

    What msgspec refuses and Python's json accepts is read too, as by most clients: NaN, halves of a surrogate
    pair, a count of tokens written as 5.0.
    """
    try:
        return _DECODER.decode(data)
    except _UNREADABLE as error:
        try:
            return msgspec.convert(json.loads(data), Message, strict=False)
        except _UNREADABLE:
            raise MessageError(f"not a message of this API ({error})", data) from None


def times_of_engine(message: Message) -> EngineTimes | None:
    """The engine's own times; None without them. Another engine's `metrics` are ignored."""
    if not isinstance(message.metrics, dict):
        return None
    try:
        return msgspec.convert(message.metrics, EngineTimes)
    except msgspec.ValidationError:
        return None


def error_of(message: Message) -> str | None:
    """The error's text, or None if the message is no error."""
    if message.error not in (None, False, ""):
        if isinstance(message.error, dict):
            return str(message.error.get("message") or message.error)
        return str(message.error)
    if message.object == "error":
        return str(message.message or "error")
    return None


def kind_of(choice: Choice) -> Kind:
    """The kind of a chunk's choice. The definition of a first token depends on it.

    Text, reasoning and a tool call's name or arguments are generated; a role, an empty delta and a finish_reason
    alone are not.
    """
    if choice.text:
        return Kind.CONTENT
    delta = choice.delta
    if delta:
        if delta.get("content") or delta.get("refusal"):
            return Kind.CONTENT
        if delta.get("reasoning") or delta.get("reasoning_content"):
            return Kind.REASONING
        if _calls_a_tool(delta):
            return Kind.TOOL
    if choice.finish_reason is not None:
        return Kind.FINISH
    if delta and delta.get("role"):
        return Kind.ROLE
    return Kind.OTHER


def _calls_a_tool(delta: dict[str, Any]) -> bool:
    calls = delta.get("tool_calls") or ()
    functions = (
        [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    )
    functions.append(delta.get("function_call"))
    return any(isinstance(f, dict) and (f.get("name") or f.get("arguments")) for f in functions)

"""The gateway's answers as structs, for their schemas. Members that only an engine knows are not listed."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct


class ErrorObject(Struct):
    message: str
    type: str
    param: str | None
    code: str


class Error(Struct):
    """An error of the gateway. One after the first byte of a stream is an event of this form, without `[DONE]`."""

    error: ErrorObject


class Usage(Struct):
    prompt_tokens: int
    total_tokens: int


class Message(Struct):
    role: str
    content: str | None = None


class ChatChoice(Struct):
    index: int
    message: Message
    finish_reason: str


class ChatCompletion(Struct):
    id: str
    object: Literal["chat.completion"]
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class TextChoice(Struct):
    index: int
    text: str
    finish_reason: str


class Completion(Struct):
    id: str
    object: Literal["text_completion"]
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class Embedding(Struct):
    """`embedding` is a list of numbers, or base64 where `encoding_format` asks for it."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(Struct):
    object: Literal["list"]
    data: list[Embedding]
    usage: Usage | None = None


class Model(Struct):
    id: str


class ModelList(Struct):
    object: Literal["list"]
    data: list[Model]


class Health(Struct):
    status: Literal["ok"]


class Ready(Struct):
    status: Literal["ready"]


class DeletedStream(Struct):
    id: str
    object: Literal["stream"]
    deleted: bool


class Flushed(Struct):
    object: Literal["cache.flush"]
    model: str | None
    removed: int
    flights: int


class State(Struct):
    version: str
    uptime_s: float
    ready: bool
    flights: int
    readers: int
    queued: int
    resumable: int
    fleet: dict[str, Any]
    models: list[str]
    backends: list[dict[str, Any]]

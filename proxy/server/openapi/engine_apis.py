"""Anthropic's Messages and OpenAI's Responses as the gateway reads them, as structs for their schemas. Requests go
to the engine as they came, so members that only an engine knows are not listed."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType


class MessagesMetadata(Struct):
    """`user_id` holds the session of Claude Code, by which requests are routed."""

    user_id: str | None = None


class MessagesRequest(Struct):
    model: str
    max_tokens: int
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | UnsetType = UNSET
    metadata: MessagesMetadata | None = None
    stream: bool | None = False


class CountTokensRequest(Struct):
    model: str
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | UnsetType = UNSET


class MessagesUsage(Struct):
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class MessagesAnswer(Struct):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    usage: MessagesUsage


class TokenCount(Struct):
    input_tokens: int


class MessagesErrorObject(Struct):
    type: str
    message: str


class MessagesError(Struct):
    """An error of the gateway on these paths. One after the first byte of a stream is an event `error` of this
    form."""

    type: Literal["error"]
    error: MessagesErrorObject
    request_id: str


class ResponsesRequest(Struct):
    """With `previous_response_id` the engine answers that keeps that response, without it any of the model."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = False
    store: bool | None = True
    background: bool | None = False


class ResponsesUsage(Struct):
    input_tokens: int
    output_tokens: int
    total_tokens: int


class Response(Struct):
    """`id` names it where the engine keeps responses."""

    id: str
    object: Literal["response"]
    status: str
    model: str
    output: list[dict[str, Any]]
    previous_response_id: str | None = None
    usage: ResponsesUsage | None = None


class InputItems(Struct):
    object: Literal["list"]
    data: list[dict[str, Any]]


class DeletedResponse(Struct):
    id: str
    deleted: bool

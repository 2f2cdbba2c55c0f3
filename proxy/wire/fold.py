"""Owns the fold: from the frames of a finished stream to the one JSON body the engine would have answered.
Must not know requests' meaning beyond their fields, flights or sockets. What it does not know it does not fold.
Called by `respond.py`, the scheduler (a stored stream) and the gateway's handlers (may it be folded at all?)."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Raw, Struct

_NULL: Final = Raw(b"null")


class Unfoldable(Exception):
    """These frames hold something that only the engine can put into one body; the text says what."""


# -- vLLM, in the order of its members. A member typed None is known and must be null. ---------------------


class _Known(Struct, forbid_unknown_fields=True):
    pass


class _Entry(_Known):
    """One token of a chat's logprobs. A token outside the top ones streams without its defaults."""

    token: Raw
    logprob: Raw = Raw(b"-9999.0")
    bytes: Raw = _NULL
    top_logprobs: Raw = Raw(b"[]")


class _ChatLogprobs(_Known):
    content: list[_Entry]


class _TextLogprobs(_Known):
    text_offset: list[Raw] = []
    token_logprobs: list[Raw] = []
    tokens: list[Raw] = []
    top_logprobs: list[Raw] = []


class _Function(_Known):
    name: str | None = None
    arguments: str | None = None


class _CallDelta(_Known):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: _Function | None = None


class _Delta(_Known):
    role: str | None = None
    content: str | None = None
    tool_calls: list[_CallDelta] = []
    reasoning: str | None = None


class _PromptDetails(_Known):
    cached_tokens: int | None = None
    created_cache_tokens: int | None = None
    multimodal_tokens: dict[str, int] | None = None


class _Usage(_Known):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: None = None  # not null where a reasoning parser is at work: see README


class _ChatChoice(_Known):
    index: int
    delta: _Delta
    logprobs: _ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: None = None


class _TextChoice(_Known):
    index: int
    text: str
    logprobs: _TextLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_token_ids: None = None
    token_ids: None = None

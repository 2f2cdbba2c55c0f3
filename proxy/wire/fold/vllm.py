"""The shapes of vLLM 0.32 and 0.33: the chunks of their streams, and the body that they fold into."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, Literal

from msgspec import Raw
from msgspec.json import Decoder

from proxy.wire.document import long_number
from proxy.wire.fold.known import Folded, Known, Odd, Unfoldable

VERSIONS: Final[dict[str, tuple[str, ...]]] = {"vllm-0.32.": (), "vllm-0.33.": ("weight_versions",)}
"""Versions whose bodies were compared member by member, and the last members of the choices in their bodies."""


class _Entry(Known):
    """One token's logprobs in a chat. For a token outside the top ones a stream omits the defaults."""

    token: Raw
    logprob: Raw = Raw(b"-9999.0")
    bytes: Raw = Raw(b"null")
    top_logprobs: Raw = Raw(b"[]")


class _Entries(Known):
    content: list[_Entry]


class _Columns(Known):
    """The logprobs of a completion."""

    text_offset: list[Raw]
    token_logprobs: list[Raw]
    tokens: list[Raw]
    top_logprobs: list[Raw]


class _Function(Known):
    name: str | None = None
    arguments: str | None = None


class _Call(Known):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: _Function | None = None


class _Delta(Known):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[_Call, ...] = ()


class _ChatChoice(Known):
    index: int
    delta: _Delta
    logprobs: _Entries | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: None = None
    weight_versions: None = None


class _TextChoice(Known):
    index: int
    text: str
    logprobs: _Columns | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_token_ids: None = None
    token_ids: None = None
    weight_versions: None = None


class _PromptDetails(Known):
    cached_tokens: int | None = None
    created_cache_tokens: int | None = None
    multimodal_tokens: dict[str, int] | None = None


class _CompletionDetails(Known):
    reasoning_tokens: int = 0


class _Usage(Known):
    """In vLLM's order; a stream omits null members."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Chunk(Known):
    id: str
    created: int
    model: str
    usage: _Usage | None = None
    system_fingerprint: str | None = None
    prompt_token_ids: None = None
    prompt_text: None = None
    metrics: None = None
    kv_transfer_params: None = None


class _ChatChunk(_Chunk, kw_only=True):
    object: Literal["chat.completion.chunk"]
    choices: list[_ChatChoice]


class _TextChunk(_Chunk, kw_only=True):
    object: Literal["text_completion"]
    choices: list[_TextChoice]


_CHUNKS: Final[dict[Folded, Decoder[Any]]] = {"chat": Decoder(_ChatChunk), "completions": Decoder(_TextChunk)}


def version_of(fingerprint: str | None) -> str | None:
    """The version whose bodies are known that an engine's fingerprint begins with."""
    if fingerprint is not None and fingerprint.startswith("vllm-"):
        return next((version for version in VERSIONS if fingerprint.startswith(version)), None)
    return None


def look(data: bytes, endpoint: Folded, *, forced_tool: bool) -> None:
    """Raise what `body` would for this chunk of an unfinished stream, as far as one chunk shows."""
    for choice in _CHUNKS[endpoint].decode(data).choices:
        if choice.finish_reason not in (None, "stop", "length"):
            raise Odd(f"finish_reason {choice.finish_reason}")
        if endpoint == "chat" and choice.delta.tool_calls and not forced_tool:
            raise Odd("a tool call that was not forced")


def body(
    chunks: Sequence[bytes],
    endpoint: Folded,
    *,
    forced_tool: bool,
    version: str | None = None,
    named: str | None = None,
) -> dict[str, Any]:
    """The body that vLLM would have answered, member by member in its order. `version`: of an engine whose
    fingerprint, `named`, does not show it, because it is configured or off."""
    decode = _CHUNKS[endpoint].decode
    parts: dict[int, list[Any]] = {}
    first = usage = None
    for data in chunks:
        chunk = decode(data)
        first = first or chunk
        if usage is not None:
            raise Unfoldable("a chunk after the usage chunk")
        if (chunk.id, chunk.created, chunk.model) != (first.id, first.created, first.model):
            raise Unfoldable("chunks of different answers")
        if not chunk.choices:
            usage, fingerprint = chunk.usage, chunk.system_fingerprint
            if usage is None:
                raise Unfoldable("a chunk with neither choices nor usage")
        for choice in chunk.choices:
            parts.setdefault(choice.index, []).append(choice)
    if first is None or usage is None:
        raise Unfoldable("no usage chunk")
    told = version_of(fingerprint)
    if told is None and version is not None and fingerprint == named:
        told = version
    if told is None:
        raise Unfoldable(f"an engine whose bodies are not known: {fingerprint}")
    if sorted(parts) != list(range(len(parts))) or not parts:
        raise Unfoldable(f"choices {sorted(parts)}")
    if endpoint == "chat":
        # `completion_tokens_details` is present only with a reasoning parser.
        thinks = usage.completion_tokens_details is not None
        choices = [_chat_choice(i, parts[i], forced_tool, thinks) for i in range(len(parts))]
    else:
        choices = [_text_choice(i, parts[i]) for i in range(len(parts))]
    for choice in choices:
        choice |= dict.fromkeys(VERSIONS[told])
    answer = {
        "id": first.id,
        "object": "chat.completion" if endpoint == "chat" else "text_completion",
        "created": first.created,
        "model": first.model,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": fingerprint,
        "usage": usage,
    }
    if endpoint == "chat":
        answer |= {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
    return answer | {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}


def _finish(parts: Sequence[Any]) -> Any:
    """The last part, which must be the only one with a finish_reason."""
    if [part.finish_reason is not None for part in parts] != [False] * (len(parts) - 1) + [True]:
        raise Unfoldable("a choice that does not end with its only finish_reason")
    if parts[-1].finish_reason not in ("stop", "length"):
        raise Odd(f"finish_reason {parts[-1].finish_reason}")
    return parts[-1]


def _chat_choice(index: int, parts: Sequence[_ChatChoice], forced_tool: bool, thinks: bool) -> dict[str, Any]:
    finish = _finish(parts)
    if parts[0].delta.role is None or any(part.delta.role is not None for part in parts[1:]):
        raise Unfoldable("a choice that does not begin with its only role")
    content = "".join(part.delta.content or "" for part in parts)
    reasoning = "".join(part.delta.reasoning or "" for part in parts)
    calls = _calls([call for part in parts for call in part.delta.tool_calls])
    if forced_tool:
        # Only a complete call can be told from one that the parser gave up on and left in the content.
        if not calls or content.strip() or reasoning or finish.finish_reason != "stop":
            raise Odd("a forced tool call that is not just that call")
        content = ""
    elif calls:
        raise Odd("a tool call that was not forced")
    elif not content:
        raise Odd("no content: parsers differ on whether that is empty or null")
    elif reasoning and not thinks:
        raise Unfoldable("reasoning without its count")
    message: dict[str, Any] = {
        "role": parts[0].delta.role,
        "content": content,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
    }
    if calls:
        message["tool_calls"] = calls
    given = [part.logprobs for part in parts if part.logprobs is not None]
    return {
        "index": index,
        "message": message | {"reasoning": reasoning or None},
        "logprobs": {"content": [entry for some in given for entry in some.content]} if given else None,
        "finish_reason": finish.finish_reason,
        "stop_reason": finish.stop_reason,
        "token_ids": None,
        "routed_experts": None,
    }


def _calls(deltas: Sequence[_Call]) -> list[dict[str, Any]]:
    """The tool calls, merged by index. A body may have the arguments re-encoded (by Python's json), or as they
    came: the fold accepts them only where both are the same."""
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        function = delta.function or _Function()
        if delta.index == len(calls) and delta.id and function.name:
            calls.append(
                {"id": delta.id, "type": "function", "function": {"name": function.name, "arguments": ""}}
            )
        elif delta.index >= len(calls) or delta.index < 0 or delta.id or function.name:
            raise Unfoldable("a tool call in pieces of unknown order")
        calls[delta.index]["function"]["arguments"] += function.arguments or ""
    for call in calls:
        arguments = call["function"]["arguments"]
        try:
            # Long numbers would take quadratic time: 2 MB of them 140 ms.
            readable = arguments.isascii() and not long_number(arguments.encode())
            same = readable and json.dumps(json.loads(arguments)) == arguments
        except ValueError:
            same = False
        if not same:
            raise Odd("tool call arguments that a body may spell in another way")
    return calls


def _text_choice(index: int, parts: Sequence[_TextChoice]) -> dict[str, Any]:
    finish = _finish(parts)
    given = [part.logprobs for part in parts if part.logprobs is not None]
    names = _Columns.__struct_fields__
    return {
        "index": index,
        "text": "".join(part.text for part in parts),
        "logprobs": {n: [value for some in given for value in getattr(some, n)] for n in names} if given else None,
        "finish_reason": finish.finish_reason,
        "stop_reason": finish.stop_reason,
        "token_ids": None,
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "routed_experts": None,
    }

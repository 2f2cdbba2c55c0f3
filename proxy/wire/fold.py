"""Owns the fold: a finished stream's frames to the one JSON body that the engine would have answered instead.
Must not know flights, keys or sockets. What it does not know it does not fold: the engine is asked then.
Called by the gateway's handlers (may it be folded?), `respond.py` and the scheduler (a stored stream)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Raw, Struct

from proxy.wire import llama, vllm
from proxy.wire.known import Folded, Unfoldable
from proxy.wire.sse import data_of, is_done

__all__ = ("FOLDABLE_FIELDS", "Folded", "Unfoldable", "fold", "foldable", "forces_tool")


# -- which requests ------------------------------------------------------------------------------------

_EITHER: Final = frozenset(
    [
        "model",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "n",
        "seed",
        "stop",
        "stop_token_ids",
        "include_stop_str_in_output",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "bad_words",
        "allowed_token_ids",
        "min_tokens",
        "ignore_eos",
        "skip_special_tokens",
        "logprobs",
        "response_format",
        "structured_outputs",
        "truncate_prompt_tokens",
        "cache_salt",
        "priority",
        "stream",
        "stream_options",
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "store",
        "service_tier",
    ]
)
FOLDABLE_FIELDS: Final[dict[str, frozenset[str]]] = {
    "chat": _EITHER
    | {"messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "chat_template_kwargs"},
    "completions": _EITHER | {"prompt", "add_special_tokens"},
}
"""Fields with which the fold was seen to equal vLLM 0.32's own body, and llama.cpp's where it folds those."""

# Fields that change the body in a way the stream does not show, unless they say what silence says.
_SAFE_VALUES: Final[dict[str, frozenset[bytes]]] = {
    **dict.fromkeys(("echo", "return_token_ids", "use_beam_search"), frozenset((b"false", b"null"))),
    **dict.fromkeys(("continue_final_message", "return_tokens_as_token_ids"), frozenset((b"false", b"null"))),
    **dict.fromkeys(("prompt_logprobs", "logprob_token_ids", "suffix"), frozenset((b"null",))),
    **dict.fromkeys(("add_generation_prompt", "include_reasoning"), frozenset((b"true",))),
    "best_of": frozenset((b"1", b"null")),
}


class _Role(Struct):
    role: str = ""


class _Type(Struct):
    type: str = ""


_ROLES: Final = msgspec.json.Decoder(list[_Role])
_FORMAT: Final = msgspec.json.Decoder(_Type | None)
_LIST: Final = msgspec.json.Decoder(list[Raw] | None)
_BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def foldable(endpoint: str, fields: Mapping[str, Raw]) -> bool:
    """Whether the fold is known to be right for a request with these fields, at these values.

    Not with `auto` or `required` tools: vLLM's parsers drop from a stream what they leave in a body (a call
    cut short or malformed), and a body has its arguments encoded anew. Not after a last message by the
    assistant: llama.cpp continues it, and a body then repeats it where a stream does not.
    """
    known = FOLDABLE_FIELDS.get(endpoint)
    if known is None:
        return False
    for name, raw in fields.items():
        if name not in known and bytes(raw) not in _SAFE_VALUES.get(name, ()):
            return False
    try:
        wanted = _FORMAT.decode(fields.get("response_format", b"null"))
        if wanted is not None and wanted.type not in ("text", "json_object", "json_schema"):
            return False
        if endpoint == "chat":
            return _plain_tools(fields) and _asks(bytes(fields.get("messages", b"[]")))
    except _BROKEN:
        return False
    return True


def forces_tool(fields: Mapping[str, Raw]) -> bool:
    """Whether the request names the tool to be called: what `fold` must be told."""
    return bytes(fields.get("tool_choice", b"")).startswith(b"{")


def _plain_tools(fields: Mapping[str, Raw]) -> bool:
    choice = bytes(fields.get("tool_choice", b"null"))
    if forces_tool(fields) or choice == b'"none"':
        return True
    return choice == b"null" and not _LIST.decode(fields.get("tools", b"null"))


def _asks(messages: bytes) -> bool:
    # The look saves a decode of the whole prompt, 0.3 µs a KB, where no assistant has spoken yet.
    return b'"assistant"' not in messages or _ROLES.decode(messages)[-1].role != "assistant"


MANY_FRAMES: Final = 4096
MANY_BYTES: Final = 1024 * 1024
"""Of a stream whose fold takes some ten milliseconds: 2.2 µs a frame and 6 ns a byte."""


def many_frames(pieces: Sequence[bytes]) -> bool:
    """Whether the fold of a stream, which may be in HTTP chunks, is too long for a loop that serves others."""
    size = sum(map(len, pieces))
    return size > MANY_BYTES or (
        size > MANY_FRAMES * 8 and sum(piece.count(b"\r\n") for piece in pieces) > 2 * MANY_FRAMES
    )


def may_fold(stream: bytes) -> bool:
    """Whether a long stream is of an engine whose bodies are known, by a look at its first and its last frames."""
    return b'"system_fingerprint"' in stream[:4096] or any(
        version.encode() in stream[-8192:] for version in vllm.VERSIONS
    )


# -- the fold ------------------------------------------------------------------------------------------


def fold(frames: Iterable[bytes], endpoint: Folded, *, forced_tool: bool = False) -> bytes:
    """The body, equal field by field to the engine's own; id and created are the stream's. Raises Unfoldable.

    The engine is told by its frames: llama.cpp names itself in every one, vLLM in the last, and vLLM's
    version must be one whose bodies are known. 2.2 µs a frame.
    """
    chunks: list[bytes] = []
    done = False
    for frame in frames:
        if done:
            raise Unfoldable("frames after [DONE]")
        if is_done(frame):
            done = True
        elif (data := data_of(frame)) is not None:
            chunks.append(data)
    if not done or not chunks:
        raise Unfoldable("no [DONE]" if chunks else "no chunk")
    dialect = llama if b'"system_fingerprint"' in chunks[0] else vllm
    try:
        body = dialect.body(chunks, endpoint, forced_tool=forced_tool)
    except _BROKEN as e:
        raise Unfoldable(f"a frame of unknown shape: {e}") from None
    return msgspec.json.encode(body)

"""The shapes of llama.cpp's server: the chunks of its streams, and the body that they fold into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from msgspec import Raw
from msgspec.json import Decoder

from proxy.wire.fold.known import Folded, Known, Odd, Unfoldable

_NULL: Final = Raw(b"null")

# One choice only: its usage counts one. No logprobs: a stream lacks those of its last tokens, a body has them.
# No tool calls: not seen.


class _Delta(Known):
    role: str | None = None
    content: str | None = None


class _ChatChoice(Known):
    index: Literal[0]
    delta: _Delta
    finish_reason: str | None = None
    logprobs: None = None


class _TextChoice(Known):
    index: Literal[0]
    text: str
    finish_reason: str | None = None
    logprobs: None = None


class _Chunk(Known):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Raw = _NULL
    timings: Raw = _NULL


class _ChatChunk(_Chunk, kw_only=True):
    object: Literal["chat.completion.chunk"]
    choices: list[_ChatChoice]


class _TextChunk(_Chunk, kw_only=True):
    object: Literal["text_completion"]
    choices: list[_TextChoice]


_CHUNKS: Final[dict[Folded, Decoder[Any]]] = {"chat": Decoder(_ChatChunk), "completions": Decoder(_TextChunk)}


def look(data: bytes, endpoint: Folded, *, forced_tool: bool) -> None:
    """Raise what `body` would for this chunk of an unfinished stream, as far as one chunk shows."""
    for choice in _CHUNKS[endpoint].decode(data).choices:
        if forced_tool or choice.finish_reason not in (None, "stop", "length"):
            raise Odd(f"finish_reason {choice.finish_reason}")


def body(chunks: Sequence[bytes], endpoint: Folded, *, forced_tool: bool) -> dict[str, Any]:
    """The body that llama.cpp would have answered, member by member in its order."""
    if forced_tool:
        raise Unfoldable("tool calls of llama.cpp, which were not seen")
    decode = _CHUNKS[endpoint].decode
    parts: list[Any] = []
    first = last = None
    for data in chunks:
        last = decode(data)
        first = first or last
        if (last.id, last.model, last.system_fingerprint) != (first.id, first.model, first.system_fingerprint):
            raise Unfoldable("chunks of different answers")
        parts += last.choices
    if last is None or b"null" in (bytes(last.usage), bytes(last.timings)):
        raise Unfoldable("a last chunk without usage or timings")
    if [part.finish_reason is not None for part in parts] != [False] * (len(parts) - 1) + [True]:
        raise Unfoldable("a choice that does not end with its only finish_reason")
    finish = parts[-1].finish_reason
    if finish not in ("stop", "length"):
        raise Odd(f"finish_reason {finish}")
    if endpoint == "chat":
        roles = [part.delta.role for part in parts if part.delta.role is not None]
        content = "".join(part.delta.content or "" for part in parts)
        if not content or roles not in ([], ["assistant"]):  # none where the first character was split
            raise Odd("no content, or an unknown role")
        choice = {"finish_reason": finish, "index": 0, "message": {"role": "assistant", "content": content}}
    else:
        text = "".join(part.text for part in parts)
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}
    return {
        "choices": [choice],
        "created": last.created,
        "model": last.model,
        "system_fingerprint": last.system_fingerprint,
        "object": "chat.completion" if endpoint == "chat" else "text_completion",
        "usage": last.usage,
        "id": last.id,
        "timings": last.timings,
    }

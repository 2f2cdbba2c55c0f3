"""The fold: the frames of a finished stream into the one JSON body that the engine would have answered instead.
What it does not know it does not fold: the engine is asked then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Raw, Struct

from proxy.wire.fold import learned, llama, vllm
from proxy.wire.fold.known import Folded, Odd, Unfoldable
from proxy.wire.fold.shape import LLAMA, VLLM, Shape
from proxy.wire.frames import is_error
from proxy.wire.sse import DONE, data_of, encode, is_done

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
"""Fields with which the fold was seen to equal the body of vLLM 0.32 and 0.33, and that of llama.cpp where it
folds them."""

# Fields that change the body in a way that the stream does not show, unless they have their default value.
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
_ANY: Final = msgspec.json.Decoder()
_BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def foldable(endpoint: str, fields: Mapping[str, Raw]) -> bool:
    """Whether the fold is known to be correct for a request with these fields and values.

    Not with `auto` or `required` tools: vLLM's parsers drop from a stream what they leave in a body (a call
    cut short or malformed), and a body has its arguments encoded anew. Not after a last message by the
    assistant: llama.cpp continues it, and a body then repeats it where a stream does not.
    """
    known = FOLDABLE_FIELDS.get(endpoint)
    if known is None:
        return False
    if not fields.keys() <= known:
        for name, raw in fields.items():
            if name not in known and bytes(raw) not in _SAFE_VALUES.get(name, ()):
                return False
    try:
        if "response_format" in fields:
            wanted = _FORMAT.decode(fields["response_format"])
            if wanted is not None and wanted.type not in ("text", "json_object", "json_schema"):
                return False
        if endpoint == "chat":
            if ("tool_choice" in fields or "tools" in fields) and not _plain_tools(fields):
                return False
            messages = bytes(fields.get("messages", b"[]"))
            # The search saves decoding the whole prompt, 0.3 µs per KB, where there is no assistant message yet.
            return messages.find(b'"assistant"') < 0 or _ROLES.decode(messages)[-1].role != "assistant"
    except _BROKEN:
        return False
    return True


def forces_tool(fields: Mapping[str, Raw]) -> bool:
    """Whether the request names the tool to call, which `fold` needs to know."""
    return bytes(fields.get("tool_choice", b"")).startswith(b"{")


def features_of(fields: Mapping[str, Raw]) -> frozenset[str]:
    """The features of a request that change the shape of its answer, not only its text."""
    found = set()
    if bytes(fields.get("n", b"1")) not in (b"1", b"null"):
        found.add("n")
    if any(bytes(fields.get(name, b"null")) not in (b"null", b"false") for name in ("logprobs", "top_logprobs")):
        found.add("logprobs")
    if bytes(fields.get("prompt", b'"')).startswith(b"["):
        found.add("prompts")
    if "tools" in fields or forces_tool(fields):
        found.add("tools")
    return frozenset(found)


_SERVED: Final[dict[str, frozenset[str]]] = {
    "vllm": frozenset({"n", "logprobs", "prompts"}),
    "llama": frozenset(),
    "learned": frozenset(),
}
"""Features with which a stream of each dialect certainly folds at its end. Tools are not among them: whether a
call is as in a body shows only at its end."""


def folds_ahead(shape: Shape, features: frozenset[str]) -> bool:
    """Whether a stream certainly folds before it has ended, so that a client can wait for one body."""
    served = _SERVED.get(shape.dialect)
    return served is not None and features <= served


def _plain_tools(fields: Mapping[str, Raw]) -> bool:
    choice = bytes(fields.get("tool_choice", b"null"))
    if forces_tool(fields) or choice == b'"none"':
        return True
    return choice == b"null" and not _LIST.decode(fields.get("tools", b"null"))


MANY_FRAMES: Final = 4096
MANY_BYTES: Final = 1024 * 1024
"""Size of a stream whose fold takes some ten milliseconds: 2.2 µs per frame and 6 ns per byte."""


def many_frames(pieces: Sequence[bytes]) -> bool:
    """Whether the fold of a stream, possibly in HTTP chunks, takes too long for the event loop."""
    size = sum(map(len, pieces))
    return size > MANY_BYTES or (
        size > MANY_FRAMES * 8 and sum(piece.count(b"\r\n") for piece in pieces) > 2 * MANY_FRAMES
    )


def may_fold(stream: bytes, shape: Shape | None) -> bool:
    """Whether a long stream is of an engine whose bodies are known, by its first and last frames."""
    if shape is not None:
        return shape.dialect != "none"
    return b'"system_fingerprint"' in stream[:4096] or any(
        version.encode() in stream[-8192:] for version in vllm.VERSIONS
    )


# -- the fold ------------------------------------------------------------------------------------------


def fold(
    frames: Iterable[bytes], endpoint: Folded, *, forced_tool: bool = False, shape: Shape | None = None
) -> bytes:
    """The body, equal field by field to the engine's own; id and created are the stream's. Raises Unfoldable.

    `shape`: what is known of the engine. Without it the engine is recognised by its frames: llama.cpp names itself
    in each, vLLM in the last, and vLLM's version must be one whose bodies are known. 2.2 µs per frame; three times
    as much for a learned shape.
    """
    chunks = chunks_of(frames)
    shape = shape or _shape_in(chunks[0])
    try:
        if shape.dialect == "vllm":
            body = vllm.body(
                chunks, endpoint, forced_tool=forced_tool, version=shape.version, named=shape.fingerprint
            )
        elif shape.dialect == "llama":
            body = llama.body(chunks, endpoint, forced_tool=forced_tool)
        elif shape.template is not None and not forced_tool:
            body = learned.body(chunks, endpoint, shape.template)
        else:
            raise Unfoldable(shape.why or "a tool call, of which none was seen")
        folded = msgspec.json.encode(body)
        if shape.dialect == "learned":
            _ANY.decode(folded)  # parts of it are JSON text that was stored
    except _BROKEN as e:
        raise Unfoldable(f"a frame of unknown shape: {e}") from None
    return folded


def look(frame: bytes, endpoint: Folded, *, forced_tool: bool, shape: Shape) -> None:
    """Raise Unfoldable where one frame of an unfinished stream shows that it does not fold."""
    data = data_of(frame)
    if data is None or is_done(frame):
        return
    if is_error(frame):
        raise Odd("an error")
    try:
        if shape.dialect == "vllm":
            vllm.look(data, endpoint, forced_tool=forced_tool)
        elif shape.dialect == "llama":
            llama.look(data, endpoint, forced_tool=forced_tool)
        elif shape.template is not None and not forced_tool:
            learned.look(data, endpoint, shape.template)
        else:
            raise Unfoldable(shape.why or "a tool call, of which none was seen")
    except (KeyError, *_BROKEN) as e:
        raise Unfoldable(f"a frame of unknown shape: {e}") from None


def chunks_of(frames: Iterable[bytes]) -> list[bytes]:
    """The JSON of a stream's chunks. Raises Unfoldable for a stream without any, or without [DONE] at its end."""
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
    return chunks


def _shape_in(chunk: bytes) -> Shape:
    return LLAMA if b'"system_fingerprint"' in chunk else VLLM


# -- which shape ---------------------------------------------------------------------------------------


class _Named(Struct):
    system_fingerprint: str | None = None


_NAMED: Final = msgspec.json.Decoder(_Named)


def shape_told(first: bytes, last: bytes) -> Shape | None:
    """The shape, recognised by a stream's first and last chunks; None: unknown."""
    try:
        if vllm.version_of(_NAMED.decode(last).system_fingerprint) is not None:
            return VLLM
        named = _NAMED.decode(first).system_fingerprint
    except _BROKEN:
        return None
    return LLAMA if named is not None and b'"timings"' in last else None


def shape_seen(frames: Iterable[bytes], answer: bytes, endpoint: Folded, second: bytes | None = None) -> Shape:
    """The shape of an engine that answered one request with this stream and this body. Raises Unfoldable where
    the body is not the stream's fold, also for a known version. `second`: the body of another request, where
    `learned.Unproven` was raised without it."""
    chunks = chunks_of(frames)
    for shape in _candidates(chunks):
        try:
            learned.same(msgspec.json.decode(fold(frames_of(chunks), endpoint, shape=shape)), answer)
        except Unfoldable:
            continue
        return shape
    return Shape("learned", template=learned.learn(chunks, answer, endpoint, second))


def _candidates(chunks: Sequence[bytes]) -> Iterable[Shape]:
    try:
        named = _NAMED.decode(chunks[-1]).system_fingerprint
        if vllm.version_of(named) is not None:
            yield VLLM
        else:
            for version in vllm.VERSIONS:
                yield Shape("vllm", version=version, fingerprint=named)
        yield LLAMA
    except _BROKEN:
        return


def frames_of(chunks: Iterable[bytes]) -> list[bytes]:
    """Chunks as the frames of a stream."""
    return [*map(encode, chunks), DONE]

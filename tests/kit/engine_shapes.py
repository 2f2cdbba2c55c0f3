"""Owns engines of other shapes for the fake engine: vLLM 0.33, other fingerprints, engines that nobody knows.
Must not know the proxy: a shape is a function that changes what vLLM 0.32 would say.
Called by tests of sharing between streams and bodies."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.kit.engine import Engine, Turn
from tests.kit.engine_wire import DONE, dumps, sse

Json = dict[str, Any]


def _as_it_is(answer: Json) -> None:
    pass


@dataclass(frozen=True)
class Shape:
    """What an engine changes in each chunk and in each body of vLLM 0.32's."""

    chunk: Callable[[Json], object] = _as_it_is
    body: Callable[[Json], object] = _as_it_is

    def frame(self, frame: bytes) -> bytes:
        if not frame.startswith(b"data: {"):
            return frame
        chunk = json.loads(frame.removeprefix(b"data: "))
        self.chunk(chunk)
        return sse(chunk)

    def whole(self, answer: Json) -> Json:
        self.body(answer)
        return answer

    async def begin(self, turn: Turn, *texts: str) -> None:
        """The head, the role, and these tokens of a stream that goes on."""
        if not turn.started:
            await turn.start()
            if turn.is_chat:
                await turn.frame(self.frame(turn.shape.role()))
        await turn.frame(*(self.frame(turn.shape.content(text)) for text in texts))

    async def finish(self, turn: Turn, tokens: int, *, reason: str = "stop") -> None:
        """The end of a stream that has had so many tokens."""
        usage = turn.wants_usage
        frames = [turn.shape.finish(reason, fingerprint=not usage)]
        if usage:
            frames.append(turn.shape.usage(turn.prompt_tokens, tokens))
        await turn.end(*map(self.frame, frames), DONE)

    async def answer(self, turn: Turn, *tokens: str) -> None:
        """All of an answer, in the mode that was asked for."""
        if turn.wants_stream:
            await self.begin(turn, *tokens)
            await self.finish(turn, len(tokens))
        else:
            whole = turn.shape.whole(["".join(tokens)], ["stop"], turn.prompt_tokens, len(tokens))
            await turn.respond(200, self.whole(whole))

    async def probe(self, turn: Turn) -> None:
        if turn.method == "POST":
            await self.answer(turn, "a", " b")
        else:
            await turn.respond(404, dumps({"detail": "Not Found"}))

    def of(self, engine: Engine) -> Engine:
        """This engine answers probes in this shape."""
        engine.on_probe = self.probe
        return engine


def _each_choice(change: Callable[[Json], None]) -> Callable[[Json], None]:
    def changed(answer: Json) -> None:
        for choice in answer["choices"]:
            change(choice)

    return changed


def _named(name: str | None) -> Callable[[Json], None]:
    def changed(answer: Json) -> None:
        if "system_fingerprint" in answer:
            answer["system_fingerprint"] = name

    return changed


def _unnamed(chunk: Json) -> None:
    chunk.pop("system_fingerprint", None)


def _chunk_33(chunk: Json) -> None:
    chat = chunk["object"] == "chat.completion.chunk"
    for choice in chunk["choices"]:
        if not chat or choice["finish_reason"] is not None:
            choice["weight_versions"] = None
    if chunk["choices"] and not (chat and chunk["choices"][0]["delta"].get("role")):
        chunk["kv_transfer_params"] = None
    _named("vllm-0.33.0-b2fd26cc")(chunk)


def _body_33(body: Json) -> None:
    _each_choice(lambda choice: choice.update(weight_versions=None))(body)
    _named("vllm-0.33.0-b2fd26cc")(body)


def _rust_chunk(chunk: Json) -> None:
    """vLLM's Rust front end: no null in a stream, and no fingerprint."""
    for name in ("system_fingerprint", "prompt_token_ids", "prompt_text"):
        chunk.pop(name, None)
    for choice in chunk["choices"]:
        for name in [name for name, value in choice.items() if value is None]:
            del choice[name]
    if "usage" in chunk:
        chunk["usage"]["prompt_tokens_details"] = None


def _rust_body(body: Json) -> None:
    usage = body.pop("usage") | {"prompt_tokens_details": None}
    usage.pop("completion_tokens_details")
    chat = body["object"] == "chat.completion"
    for name in ("service_tier", "system_fingerprint", "prompt_logprobs", "prompt_text", "metrics"):
        body.pop(name, None)
    names = ("prompt_token_ids", "kv_transfer_params", "ec_transfer_params")
    kept: Json = {name: body.pop(name) for name in names if name in body}
    body |= {"usage": usage, "system_fingerprint": None}
    if chat:
        body["prompt_logprobs"] = None
    body |= kept
    for choice in body["choices"]:
        choice.pop("routed_experts")
        for name in ("refusal", "annotations", "audio", "function_call"):
            choice.get("message", {}).pop(name, None)


def _new(chunk: Json) -> None:
    chunk["region"] = "here"
    chunk["trace"] = None


def _new_chunk(chunk: Json) -> None:
    _unnamed(chunk)
    _new(chunk)


def _new_body(body: Json) -> None:
    _new(body)
    _named("another-engine")(body)
    body["moderation"] = None


def _differs(body: Json) -> None:
    _named("another-engine")(body)
    body["took_ms"] = 12


VLLM_32 = Shape()
VLLM_33 = Shape(_chunk_33, _body_33)
FINGERPRINT_NONE = Shape(_unnamed, _named(None))
FINGERPRINT_CUSTOM = Shape(_named("prod-7"), _named("prod-7"))
RUST = Shape(_rust_chunk, _rust_body)
NEW_CONSTANTS = Shape(_new_chunk, _new_body)
DIFFERS = Shape(_named("another-engine"), _differs)
"""Its bodies say what no stream tells."""

"""Owns the fold: a stream's frames into the one JSON body that the engine would have answered.
Must not know flights or HTTP. What it does not know it refuses: a wrong answer is worse than asking again.
Called by respond and the scheduler; `foldable` by the gateway, before two modes are given one key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from proxy.wire.openai import Endpoint
from proxy.wire.sse import data_of, is_done

Generating = Literal["chat", "completions"]


class Unfoldable(Exception):
    """These frames cannot be made into the engine's own body with certainty; says why."""


_COMMON: Final = frozenset(
    {
        "model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "seed", "stop",
        "presence_penalty", "frequency_penalty", "repetition_penalty", "logprobs", "stream", "stream_options",
        "user", "metadata", "ignore_eos", "min_tokens", "logit_bias",
    }
)  # fmt: skip
FOLDABLE_FIELDS: Final[dict[str, frozenset[str]]] = {
    "chat": _COMMON
    | {"messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "response_format"},
    "completions": _COMMON | {"prompt"},
}
"""Request fields with which the fold was compared, field by field, with vLLM 0.32's own answer."""


def foldable(endpoint: str, fields: Mapping[str, msgspec.Raw]) -> bool:
    """Whether a request's stream can also answer those who want one body."""
    if not fields.keys() <= FOLDABLE_FIELDS[endpoint]:
        return False
    if "tools" in fields and bytes(fields["tools"]) not in (b"null", b"[]"):
        # With auto and required, vLLM's parsers decide between content "" and null differently in the two modes.
        choice = msgspec.json.decode(fields.get("tool_choice", b'"auto"'))
        if choice != "none" and not isinstance(choice, dict):
            return False
    options = fields.get("stream_options")
    if options is None:
        return True
    members = msgspec.json.decode(options)
    return members is None or members.keys() <= {"include_usage"}


def fold(frames: Iterable[bytes], endpoint: Endpoint) -> bytes:
    """The body. `frames` are a whole stream's raw frames with usage. Raises Unfoldable."""
    if endpoint == "embeddings":
        raise Unfoldable("embeddings do not stream")
    read = [_chunk(frame) for frame in frames if not is_done(frame)]
    chunks = [chunk for chunk in read if chunk is not None]
    if not chunks:
        raise Unfoldable("there is no chunk")
    body = _Body(endpoint, llama=any("timings" in chunk for chunk in chunks))
    for chunk in chunks:
        body.add(dict(chunk))
    return msgspec.json.encode(body.whole())


def _chunk(frame: bytes) -> dict[str, Any] | None:
    data = data_of(frame)
    if data is None:
        return None  # a comment
    try:
        chunk = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError) as e:
        raise Unfoldable(f"a frame is not JSON: {e}") from None
    if not isinstance(chunk, dict):
        raise Unfoldable("a frame is not an object")
    return chunk


def _none(member: Mapping[str, Any], *names: str) -> None:
    """These may be there, but only empty."""
    for name in names:
        if member.get(name) is not None:
            raise Unfoldable(f"{name} is not folded")


def _rest(members: Mapping[str, Any], where: str) -> None:
    if members:
        raise Unfoldable(f"unknown in {where}: {', '.join(sorted(members))}")


class _Choice:
    """One choice in the making."""

    def __init__(self) -> None:
        self.content: str | None = None
        self.reasoning: str | None = None
        self.text = ""
        self.calls: dict[int, dict[str, Any]] = {}
        self.logprobs: dict[str, list[Any]] | None = None
        self.finish: str | None = None
        self.stop: Any = None

    def chat(self, delta: dict[str, Any]) -> None:
        if delta.pop("role", "assistant") != "assistant":
            raise Unfoldable("a role that is not the assistant's")
        content, reasoning = delta.pop("content", None), delta.pop("reasoning", None)
        if content is not None:
            self.content = (self.content or "") + content
        if reasoning is not None:
            self.reasoning = (self.reasoning or "") + reasoning
        for call in delta.pop("tool_calls", None) or []:
            self._call(dict(call))
        _none(delta, "refusal", "audio", "function_call", "annotations", "reasoning_content")
        _rest({k: v for k, v in delta.items() if v is not None}, "a delta")

    def _call(self, call: dict[str, Any]) -> None:
        kept = self.calls.setdefault(
            call.pop("index"), {"id": None, "type": "function", "function": {"name": None, "arguments": ""}}
        )
        function = dict(call.pop("function", None) or {})
        kept["id"] = call.pop("id", None) or kept["id"]
        kept["type"] = call.pop("type", None) or kept["type"]
        kept["function"]["name"] = function.pop("name", None) or kept["function"]["name"]
        kept["function"]["arguments"] += function.pop("arguments", None) or ""
        _rest(call, "a tool call")
        _rest(function, "a tool call's function")

    def probs(self, logprobs: dict[str, Any] | None) -> None:
        if logprobs is None:
            return
        if self.logprobs is None:
            self.logprobs = {name: [] for name in logprobs}
        if logprobs.keys() != self.logprobs.keys():
            raise Unfoldable("logprobs change their shape")
        for name, values in logprobs.items():
            if not isinstance(values, list):
                raise Unfoldable(f"logprobs.{name} is no list")
            self.logprobs[name] += values


class _Body:
    """One answer in the making, in the dialect of the engine that sent it."""

    def __init__(self, endpoint: Generating, *, llama: bool) -> None:
        self._chat = endpoint == "chat"
        self._llama = llama
        self._head: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._usage: dict[str, Any] | None = None
        self._fingerprint: str | None = None
        self._timings: Any = None

    def add(self, chunk: dict[str, Any]) -> None:
        kind = chunk.pop("object", None)
        if kind != ("chat.completion.chunk" if self._chat else "text_completion"):
            raise Unfoldable(f"a frame is a {kind!r}")
        for name in ("id", "created", "model"):
            value = chunk.pop(name, None)
            if self._head.setdefault(name, value) != value and name != "created":
                raise Unfoldable(f"{name} changes in mid-stream")
        for choice in chunk.pop("choices", None) or []:
            self._choice(dict(choice))
        usage = chunk.pop("usage", None)
        self._usage = usage if usage is not None else self._usage
        self._fingerprint = chunk.pop("system_fingerprint", None) or self._fingerprint
        self._timings = chunk.pop("timings", None) or self._timings
        _none(chunk, "prompt_token_ids", "prompt_text")
        _rest({k: v for k, v in chunk.items() if v is not None}, "a chunk")

    def _choice(self, choice: dict[str, Any]) -> None:
        kept = self._choices.setdefault(choice.pop("index"), _Choice())
        if kept.finish is not None:
            raise Unfoldable("a choice goes on after its end")
        if self._chat:
            kept.chat(dict(choice.pop("delta", None) or {}))
        else:
            kept.text += choice.pop("text", None) or ""
            choice.pop("prompt_token_ids", None)  # vLLM streams a prompt given as ids back; its body has null
        kept.probs(choice.pop("logprobs", None))
        kept.finish = choice.pop("finish_reason", None)
        kept.stop = choice.pop("stop_reason", None)
        _none(choice, "token_ids")
        _rest({k: v for k, v in choice.items() if v is not None}, "a choice")

    def whole(self) -> dict[str, Any]:
        if self._usage is None:
            raise Unfoldable("there is no usage")
        if sorted(self._choices) != list(range(len(self._choices))) or not self._choices:
            raise Unfoldable("a choice is missing")
        if any(choice.finish is None for choice in self._choices.values()):
            raise Unfoldable("a choice has no end")
        if self._llama and not self._chat:
            raise Unfoldable("llama.cpp's completion bodies are not folded")
        make = self._llama_choice if self._llama else self._vllm_choice
        choices = [make(index, choice) for index, choice in sorted(self._choices.items())]
        kind = "chat.completion" if self._chat else "text_completion"
        if self._llama:
            return {
                "choices": choices,
                "created": self._head["created"],
                "model": self._head["model"],
                "system_fingerprint": self._fingerprint,
                "object": kind,
                "usage": self._usage,
                "id": self._head["id"],
                "timings": self._timings,
            }
        body = {
            "id": self._head["id"],
            "object": kind,
            "created": self._head["created"],
            "model": self._head["model"],
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": self._fingerprint,
            "usage": self._vllm_usage(),
        }
        if self._chat:
            body |= {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        return body | {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}

    def _vllm_usage(self) -> dict[str, Any]:
        usage = dict(self._usage or {})
        details = usage.get("prompt_tokens_details")
        if details is not None:
            usage["prompt_tokens_details"] = {
                "cached_tokens": details.get("cached_tokens"),
                "created_cache_tokens": details.get("created_cache_tokens"),
                "multimodal_tokens": details.get("multimodal_tokens"),
            }
        else:
            usage["prompt_tokens_details"] = None
        usage.setdefault("completion_tokens_details", None)
        return usage

    def _vllm_choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        end = {
            "logprobs": choice.logprobs,
            "finish_reason": choice.finish,
            "stop_reason": choice.stop,
            "token_ids": None,
        }
        if not self._chat:
            end |= {"prompt_logprobs": None, "prompt_token_ids": None, "routed_experts": None}
            return {"index": index, "text": choice.text, **end}
        message: dict[str, Any] = {
            "role": "assistant",
            "content": choice.content,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
        }
        if choice.calls:
            message["tool_calls"] = [choice.calls[i] for i in sorted(choice.calls)]
        message["reasoning"] = choice.reasoning
        return {"index": index, "message": message, **end, "routed_experts": None}

    def _llama_choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        if choice.calls or choice.logprobs or choice.reasoning:
            raise Unfoldable("llama.cpp's tool calls, logprobs and reasoning are not folded")
        message = {"role": "assistant", "content": choice.content or ""}
        return {"finish_reason": choice.finish, "index": index, "message": message}

"""Requests of the chaos run and the one right answer to each: prompts, texts, vectors, in vLLM's shapes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Literal

Json = dict[str, Any]
Endpoint = Literal["chat", "completions", "embeddings", "tokenize"]

MODEL: Final = "m1"
PATHS: Final[dict[str, Endpoint]] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/tokenize": "tokenize",  # passed through
}
DIMENSIONS: Final = 8
NONCE: Final = re.compile(r"⟨([0-9a-z.]+)⟩")
"""Identifies a sample: no two samples have the same, so one that is sent twice is detected."""
CLIENT: Final = re.compile(rb"client-[0-9a-f]{16}")
"""A client's `x-request-id`, from which the engine makes the `id` of its answer, as vLLM does."""
_SPEC: Final = re.compile(rb"chaos-([0-9a-f]{16}) t=(\d+) gap=(\d+) ")
_WORDS: Final = (
    "red",
    "größer",
    "日本",
    "🙂",
    'say "so"',
    "line\nend",
    "back\\slash",
    "blue",
    "old",
    "round",
    "é",
    "<b>",
)
_FINGERPRINT: Final = "vllm-0.32.0-a22773f2"
_CREATED: Final = 1795386835


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. Requests with the same tag and endpoint have the same prompt."""

    tag: int
    endpoint: Endpoint = "chat"
    stream: bool = True
    n: int = 1
    sampled: bool = False  # temperature 1: each answer is a new sample
    usage: bool = False  # request the usage chunk of a stream
    tokens: int = 8
    gap_ms: int = 5  # between two tokens
    texts: int = 1  # of embeddings
    request_id: str = ""

    @property
    def path(self) -> str:
        return next(path for path, endpoint in PATHS.items() if endpoint == self.endpoint)

    @property
    def prompt(self) -> str:
        return f"chaos-{self.tag:016x} t={self.tokens} gap={self.gap_ms} and some words more"

    @property
    def inputs(self) -> list[str]:
        return [f"{self.prompt} {at}" for at in range(self.texts)]

    def body(self) -> bytes:
        if self.endpoint == "embeddings":
            return dumps({"model": MODEL, "input": self.inputs})
        if self.endpoint == "tokenize":
            return dumps({"model": MODEL, "prompt": self.prompt})
        body: Json = {"model": MODEL, "temperature": 1 if self.sampled else 0, "max_tokens": self.tokens}
        if self.endpoint == "chat":
            body["messages"] = [{"role": "user", "content": self.prompt}]
        else:
            body["prompt"] = self.prompt
        if self.n > 1:
            body["n"] = self.n
        if self.stream:
            body["stream"] = True
        if self.usage:
            body["stream_options"] = {"include_usage": True}
        return dumps(body)


@dataclass(frozen=True, slots=True)
class Spec:
    """The parameters in a prompt."""

    tag: int
    tokens: int
    gap: float  # seconds


FLOODS: Final = 1000
"""Prompts with tags below this are answered by floods, if the engine is started with them."""


def read_spec(body: bytes) -> Spec | None:
    """None if the prompt is not one of ours."""
    found = _SPEC.search(body)
    return Spec(int(found[1], 16), int(found[2]), int(found[3]) / 1000) if found else None


def tags_of(body: bytes) -> set[int]:
    """The tags in a body: an array of embeddings has texts of several clients."""
    return {int(found[1], 16) for found in _SPEC.finditer(body)}


def dumps(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def words(tag: int, tokens: int, choice: int = 0, nonce: str = "") -> list[str]:
    """The tokens of one choice. Those of a sample depend on its nonce, which is the first token."""
    digest = blake2b(f"{tag} {nonce or choice}".encode()).digest()
    found = [_WORDS[digest[at % len(digest)] % len(_WORDS)] + " " for at in range(tokens)]
    if nonce:
        found[0] = f"⟨{nonce}⟩"
    return found


def vector(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """Numbers that JSON represents exactly."""
    digest = blake2b(text.encode()).digest()
    return [(digest[at % len(digest)] - 128) / 64 for at in range(dimensions)]


def tokenized(tag: int, tokens: int) -> Json:
    """vLLM's answer to /tokenize."""
    found = [(tag >> at % 48) & 0xFFFF for at in range(tokens)]
    return {"count": tokens, "max_model_len": 4096, "tokens": found, "token_strs": None}


def prompt_tokens(tag: int) -> int:
    return 10 + tag % 50


def usage(tag: int, completion: int) -> Json:
    before = prompt_tokens(tag)
    return {"prompt_tokens": before, "total_tokens": before + completion, "completion_tokens": completion}


class Shape:
    """The JSON of one generation, as vLLM 0.32 writes it."""

    def __init__(self, endpoint: Endpoint, name: str, tag: int) -> None:
        self.chat = endpoint == "chat"
        self.tag = tag
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{name}"

    def frames(self, columns: list[list[str]], *, usage_asked: bool, continuous: bool) -> list[Json]:
        """The chunks of a stream without `[DONE]`; the tokens of the choices alternate."""
        found: list[Json] = []
        if self.chat:
            found += [
                self._chunk(self._choice(at, {"role": "assistant", "content": ""})) for at in range(len(columns))
            ]
            if continuous:
                for frame in found:
                    frame["usage"] = usage(self.tag, 0)
        for step in range(len(columns[0])):
            for at, column in enumerate(columns):
                last = step == len(column) - 1
                part = {"content": column[step]} if self.chat else column[step]
                frame = self._chunk(self._choice(at, part, "length" if last else None))
                if last and not usage_asked:
                    frame["system_fingerprint"] = _FINGERPRINT
                if continuous:
                    frame["usage"] = usage(self.tag, step + 1)
                found.append(frame)
        if usage_asked:
            total = usage(self.tag, sum(map(len, columns)))
            found.append({**self._chunk(), "usage": total, "system_fingerprint": _FINGERPRINT})
        return found

    def _chunk(self, *choices: Json) -> Json:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": _CREATED, "model": MODEL, "choices": list(choices)}

    def _choice(self, index: int, part: Json | str, finish: str | None = None) -> Json:
        said = {"delta": part} if self.chat else {"text": part}
        return {"index": index, **said, "logprobs": None, "finish_reason": finish}

    def whole(self, columns: list[list[str]]) -> Json:
        """The same as one JSON body."""
        choices = []
        for at, column in enumerate(columns):
            text = "".join(column)
            said: Json = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
            choices.append({"index": at, **said, "logprobs": None, "finish_reason": "length", "stop_reason": None})
        kind = "chat.completion" if self.chat else "text_completion"
        head: Json = {"id": self.id, "object": kind, "created": _CREATED, "model": MODEL, "choices": choices}
        total = usage(self.tag, sum(map(len, columns)))
        return {**head, "service_tier": None, "system_fingerprint": _FINGERPRINT, "usage": total}


def embeddings(name: str, vectors: list[Any], tag: int) -> Json:
    data = [{"index": at, "object": "embedding", "embedding": one} for at, one in enumerate(vectors)]
    counted = {"prompt_tokens": 4 * len(vectors), "total_tokens": 4 * len(vectors), "completion_tokens": 0}
    return {
        "id": f"embd-{name}",
        "object": "list",
        "created": _CREATED,
        "model": MODEL,
        "data": data,
        "usage": {**counted, "prompt_tokens_details": None},
    }


def post(body: bytes, path: str = "/v1/chat/completions", *more: str, length: int | None = None) -> bytes:
    """The bytes of a POST with additional header lines. `length`: a false content-length."""
    size = len(body) if length is None else length
    lines = [
        f"POST {path} HTTP/1.1",
        "host: 127.0.0.1",
        "content-type: application/json",
        f"content-length: {size}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

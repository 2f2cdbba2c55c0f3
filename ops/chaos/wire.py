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
    "/tokenize": "tokenize",  # passed through as it is
}
DIMENSIONS: Final = 8
NONCE: Final = re.compile(r"⟨([0-9a-z.]+)⟩")
"""What marks one sample: no two samples have the same, so one that is told twice is seen."""
CLIENT: Final = re.compile(rb"client-[0-9a-f]{16}")
"""A client's `x-request-id`; the engine makes the answer's `id` from it, as vLLM does."""
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
    """One request of the load. Two with the same tag and endpoint have the same prompt."""

    tag: int
    endpoint: Endpoint = "chat"
    stream: bool = True
    n: int = 1
    sampled: bool = False  # temperature 1: each answer is a sample of its own
    usage: bool = False  # of a stream: the usage chunk is asked for
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
    """What a prompt asks of the engine."""

    tag: int
    tokens: int
    gap: float  # seconds


FLOODS: Final = 1000
"""Tags below it are answered by floods, where the engine is told to make them."""


def read_spec(body: bytes) -> Spec | None:
    """None where the prompt is not one of ours."""
    found = _SPEC.search(body)
    return Spec(int(found[1], 16), int(found[2]), int(found[3]) / 1000) if found else None


def tags_of(body: bytes) -> set[int]:
    """Whose prompts these are: an array of embeddings has texts of several clients."""
    return {int(found[1], 16) for found in _SPEC.finditer(body)}


def dumps(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def words(tag: int, tokens: int, choice: int = 0, nonce: str = "") -> list[str]:
    """The tokens of one choice. A sample's depend on its nonce, which is its first token."""
    digest = blake2b(f"{tag} {nonce or choice}".encode()).digest()
    found = [_WORDS[digest[at % len(digest)] % len(_WORDS)] + " " for at in range(tokens)]
    if nonce:
        found[0] = f"⟨{nonce}⟩"
    return found


def vector(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """Numbers that JSON tells exactly."""
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
        """The chunks of a stream, `[DONE]` not among them; the choices' tokens take turns."""
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
        """The same as one body."""
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
    """A POST as its bytes, with more header lines. `length`: what it says of its body, where that is not so."""
    size = len(body) if length is None else length
    lines = [
        f"POST {path} HTTP/1.1",
        "host: 127.0.0.1",
        "content-type: application/json",
        f"content-length: {size}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

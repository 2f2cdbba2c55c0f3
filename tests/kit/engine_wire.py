"""Owns the bytes of the fake engine: reading a request, and answers shaped as vLLM 0.32 shapes them.
Must not know sockets, asyncio or the proxy: the proxy's own codecs are what the tests put on trial.
Called by the engine's turns and scripts; `tests/golden` is what the shapes are copied from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from http import HTTPStatus
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "golden"
CREATED = 1795386835
FINGERPRINT = "vllm-0.32.0-a22773f2"
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"

Json = dict[str, Any]
Headers = Iterable[tuple[str, str]]


def golden_request(name: str) -> bytes:
    return (GOLDEN / f"{name}.request.http").read_bytes()


def golden_response(name: str) -> bytes:
    return (GOLDEN / f"{name}.response.http").read_bytes()


# Requests


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # as sent, with its query
    headers: Mapping[str, str]  # lower-case names; repeated ones joined by ", "
    raw_headers: tuple[tuple[str, str], ...]  # as sent, in order
    body: bytes


class BadRequest(Exception):
    """The gateway under test sent something that is not HTTP/1.1."""


class RequestReader:
    """Bytes in, whole requests out, under any split."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Request]:
        self._buffer += data
        requests = []
        while (request := self._take()) is not None:
            requests.append(request)
        return requests

    def _take(self) -> Request | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *rest = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        parts = first.split(" ")
        if len(parts) != 3 or parts[2] != "HTTP/1.1":
            raise BadRequest(f"not a request line: {first!r}")
        raw = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in rest))
        headers: dict[str, str] = {}
        for name, value in raw:
            key = name.lower()
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
        if "host" not in headers:
            raise BadRequest("a request without Host")
        if {"content-length", "transfer-encoding"} <= headers.keys():
            raise BadRequest("a request with both Content-Length and Transfer-Encoding")
        body, stop = self._body(headers, end + 4)
        if body is None:
            return None
        del self._buffer[:stop]
        return Request(parts[0], parts[1], headers, raw, body)

    def _body(self, headers: Mapping[str, str], at: int) -> tuple[bytes | None, int]:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while (line := self._buffer.find(b"\r\n", at)) >= 0:
                size = int(self._buffer[at:line].split(b";")[0], 16)
                at = line + 2 + size + 2
                if len(self._buffer) < at:
                    break
                if not size:
                    return body, at
                body += self._buffer[line + 2 : at - 2]
            return None, 0
        stop = at + int(headers.get("content-length", "0"))
        return (bytes(self._buffer[at:stop]), stop) if len(self._buffer) >= stop else (None, 0)


# Answers


def head(status: int, headers: Headers) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += ["date: Sun, 22 Nov 2026 22:33:55 GMT", "server: uvicorn"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def dumps(obj: object) -> bytes:
    return json.dumps(obj, ensure_ascii=False, separators=(",", ":")).encode()


def sse(obj: object) -> bytes:
    return b"data: " + dumps(obj) + b"\n\n"


def error_body(message: str, *, status: int = 500, type_: str = "InternalServerError") -> Json:
    return {"error": {"message": message, "type": type_, "param": None, "code": status}}


def error_frame(message: str, *, status: int = 500) -> bytes:
    """What vLLM sends in the middle of a 200 when the generation fails; `[DONE]` follows it."""
    return sse(error_body(message, status=status))


class Shape:
    """The JSON of one generation's answer, chat or completions by its path."""

    def __init__(self, *, chat: bool, model: str, number: int) -> None:
        self.chat = chat
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{number:016x}"
        self.model = model

    def _envelope(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": CREATED,
            "model": self.model,
            "choices": choices,
        }

    def _chunk(self, choices: list[Json]) -> Json:
        return self._envelope("chat.completion.chunk" if self.chat else "text_completion", choices)

    def role(self, index: int = 0) -> bytes:
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return sse({**self._chunk([choice]), "prompt_token_ids": None, "prompt_text": None})

    def content(self, text: str, index: int = 0) -> bytes:
        return sse(self._chunk([self._choice(index, text, None)]))

    def finish(self, reason: str, text: str = "", index: int = 0, *, fingerprint: bool = True) -> bytes:
        """vLLM puts the fingerprint here, unless usage is asked for: then on the usage chunk."""
        chunk = self._chunk([self._choice(index, text, reason)])
        return sse({**chunk, "system_fingerprint": FINGERPRINT} if fingerprint else chunk)

    def _choice(self, index: int, text: str, reason: str | None) -> Json:
        choice: Json = {"index": index}
        if self.chat:
            choice["delta"] = {"content": text} if text or reason is None else {}
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": reason}
        if reason is not None or not self.chat:
            choice["stop_reason"] = None
        if not self.chat:
            choice["prompt_token_ids"] = None
        return choice | {"token_ids": None}

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        details: Json = {"cached_tokens": 0}
        if self.chat:
            details["created_cache_tokens"] = 0
        usage = _counts(prompt_tokens, completion_tokens) | {"prompt_tokens_details": details}
        return sse({**self._chunk([]), "usage": usage, "system_fingerprint": FINGERPRINT})

    def whole(self, texts: list[str], reasons: list[str], prompt_tokens: int, tokens: int) -> Json:
        """The non-streaming answer: one text and one finish reason per choice."""
        details = {"cached_tokens": 0, "created_cache_tokens": 0 if self.chat else None}
        usage = _counts(prompt_tokens, tokens) | {
            "prompt_tokens_details": details | {"multimodal_tokens": None},
            "completion_tokens_details": None,
        }
        choices = [self._whole_choice(i, text, reasons[i]) for i, text in enumerate(texts)]
        answer = self._envelope("chat.completion" if self.chat else "text_completion", choices)
        answer |= {"service_tier": None, "system_fingerprint": FINGERPRINT, "usage": usage}
        if self.chat:
            answer |= {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        return answer | {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}

    def _whole_choice(self, index: int, text: str, reason: str) -> Json:
        choice: Json = {"index": index}
        if self.chat:
            message: Json = {"role": "assistant", "content": text}
            message |= dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
            choice["message"] = message
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": reason, "stop_reason": None, "token_ids": None}
        if not self.chat:
            choice |= {"prompt_logprobs": None, "prompt_token_ids": None}
        return choice | {"routed_experts": None}


def _counts(prompt: int, completion: int) -> Json:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def models_body(names: Iterable[str], root: str | None = None) -> Json:
    def model(name: str) -> Json:
        return {
            "id": name,
            "object": "model",
            "created": CREATED,
            "owned_by": "vllm",
            "root": root or name,
            "parent": None,
            "max_model_len": 4096,
            "permission": [],
        }

    return {"object": "list", "data": [model(name) for name in names]}


def embeddings_body(inputs: list[Any], model: str, number: int, dimensions: int = 8) -> Json:
    """One deterministic unit-range vector per input, in order."""

    def vector(item: Any) -> list[float]:
        return [byte / 128 - 1 for byte in blake2b(dumps(item), digest_size=dimensions).digest()]

    data = [{"index": i, "object": "embedding", "embedding": vector(item)} for i, item in enumerate(inputs)]
    tokens = sum(len(item.split()) if isinstance(item, str) else len(item) for item in inputs)
    return {
        "id": f"embd-{number:016x}",
        "object": "list",
        "created": CREATED,
        "model": model,
        "data": data,
        "usage": _counts(tokens, 0),
    }

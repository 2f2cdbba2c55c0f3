"""Requests and answers of the benchmark, byte for byte: the prompt carries what is requested, so the client knows
the exact answer. Knows neither sockets nor time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

MODEL: Final = "bench"
_SPEC: Final = re.compile(rb"bench-([0-9a-f]{16}) t=(\d+) itl=(\d+) ")
_FILL: Final = "The quick brown fox jumps over the lazy dog, and the lazy dog looks up. " * 9
_FINGERPRINT: Final = '"system_fingerprint":"vllm-0.32.0-a22773f2"'


@dataclass(frozen=True, slots=True)
class Spec:
    """One request to the mock engine. It is encoded in the prompt, since proxies drop unknown fields."""

    nonce: int
    tokens: int = 128
    itl_us: int = 0  # microseconds between two tokens; 0: all at once
    stream: bool = True
    usage: bool = False
    shared: bool = False  # temperature 0: the answer may be shared, looked up and stored

    def body(self) -> bytes:
        """The request body: 0.9 KB, the size of a small chat."""
        members = [
            f'"model":"{MODEL}","messages":[{{"role":"system","content":"You are a helpful assistant."}},'
            f'{{"role":"user","content":"bench-{self.nonce:016x} t={self.tokens} itl={self.itl_us} {_FILL}"}}]',
            f'"max_tokens":{max(1, self.tokens)}',
        ]
        if self.stream:
            members.append('"stream":true')
        if self.usage:
            members.append('"stream_options":{"include_usage":true}')
        if self.shared:
            members.append('"temperature":0')
        return ("{" + ",".join(members) + "}").encode()

    @property
    def events(self) -> int:
        """SSE events of the answer: role, tokens, finish, usage if requested, [DONE]."""
        return self.tokens + 3 + self.usage


def read_spec(body: bytes) -> Spec | None:
    """The spec in a request body; None if there is none."""
    found = _SPEC.search(body)
    if found is None:
        return None
    return Spec(
        int(found[1], 16),
        int(found[2]),
        int(found[3]),
        stream=b'"stream":true' in body or b'"stream": true' in body,
        usage=b'"include_usage":true' in body or b'"include_usage": true' in body,
    )


def _front(nonce: int) -> bytes:
    return (
        f'data: {{"id":"chatcmpl-{nonce:016x}","object":"chat.completion.chunk","created":1795386835,'
        f'"model":"{MODEL}","choices":['
    ).encode()


@lru_cache(maxsize=64)
def _backs(tokens: int, usage: bool) -> tuple[bytes, ...]:
    """The rest of each event after the front: equal for all streams of one length."""
    found = [
        '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        ',"prompt_token_ids":null,"prompt_text":null'
    ]
    found += [
        f'{{"index":0,"delta":{{"content":" token{at:06d}"}},"logprobs":null,"finish_reason":null,'
        f'"token_ids":null}}]'
        for at in range(tokens)
    ]
    # vLLM puts the fingerprint on the usage chunk if there is one.
    finish = '{"index":0,"delta":{},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]'
    found.append(finish if usage else f"{finish},{_FINGERPRINT}")
    if usage:
        found.append(f'],"usage":{_usage(tokens)},{_FINGERPRINT}')
    return tuple(f"{back}}}\n\n".encode() for back in found)


def events(spec: Spec) -> list[bytes]:
    """The events of the stream in the form of vLLM 0.32: 230 bytes per token."""
    front = _front(spec.nonce)
    return [*(front + back for back in _backs(spec.tokens, spec.usage)), b"data: [DONE]\n\n"]


def _usage(tokens: int) -> str:
    return f'{{"prompt_tokens":180,"total_tokens":{180 + tokens},"completion_tokens":{tokens}}}'


def whole(spec: Spec) -> bytes:
    """The answer as one JSON body, 0.4 KB with its one token of text."""
    return (
        f'{{"id":"chatcmpl-{spec.nonce:016x}","object":"chat.completion","created":1795386834,"model":"{MODEL}",'
        f'"choices":[{{"index":0,"message":{{"role":"assistant","content":"token","refusal":null}},'
        f'"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}}],'
        f'"service_tier":null,{_FINGERPRINT},"usage":{_usage(spec.tokens)}}}'
    ).encode()


def expected(spec: Spec) -> bytes:
    """The answer's body, without chunked framing."""
    return b"".join(events(spec)) if spec.stream else whole(spec)

"""Owns streams and bodies recorded from llama.cpp's server (xllamacpp 2026.10, SmolLM2-135M), put together anew.
Must not know the gateway. Ids, times and the timings' numbers are shortened; every byte else is as it came.
Called by the tests of the wire."""

from __future__ import annotations

import re

HEAD = '"created":1795488325,"id":"chatcmpl-7B","model":"smollm2","system_fingerprint":"b0-unknown"'
TAIL = f'{HEAD},"object":"chat.completion.chunk"'
TEXT_TAIL = '"created":1795488333,"model":"smollm2","system_fingerprint":"b0-unknown","object":"text_completion"'
DETAILS = '"prompt_tokens_details":{"cached_tokens":33}'
USAGE = f'"usage":{{"completion_tokens":2,"prompt_tokens":34,"total_tokens":36,{DETAILS}}}'
TIMINGS = '"timings":{"cache_n":33,"prompt_n":1,"prompt_ms":54.201,"predicted_n":2,"predicted_per_second":7.8}'


def _chunk(index: int, delta: str, finish: str = "null", more: str = "") -> str:
    return f'{{"choices":[{{"finish_reason":{finish},"index":{index},"delta":{delta}}}],{TAIL}{more}}}'


def _chat(index: int, *, usage: bool) -> list[str]:
    return [
        _chunk(index, '{"role":"assistant","content":null}'),
        _chunk(index, '{"content":"1"}'),
        _chunk(index, '{"content":"."}'),
        _chunk(index, "{}", '"length"', "" if usage else f",{TIMINGS}"),
        *([f'{{"choices":[],{TAIL},{USAGE},{TIMINGS}}}'] if usage else []),
    ]


def _text(text: str, finish: str = "null", front: str = "", back: str = "") -> str:
    choice = f'{{"text":{text},"index":0,"logprobs":null,"finish_reason":{finish}}}'
    return f'{{"choices":[{choice}],{TEXT_TAIL}{front},"id":"chatcmpl-IL"{back}}}'


def stream(kind: str, *, usage: bool) -> bytes:
    """`chat`, `n2` (its choices one within the other, each with a usage chunk of its own) or `completions`."""
    if kind == "chat":
        chunks = _chat(0, usage=usage)
    elif kind == "n2":
        zero, one = _chat(0, usage=usage), _chat(1, usage=usage)
        chunks = [*one[:2], *zero[:2], *one[2:], *zero[2:]]
    else:  # asked for or not, the usage comes with the last chunk
        chunks = [_text('","'), _text('" the"'), _text('""', '"length"', f",{USAGE}", f",{TIMINGS}")]
    return "".join(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"]).encode()


def body(kind: str) -> bytes:
    """The answer to the same request without a stream."""
    if kind == "chat":
        choice = '{"finish_reason":"length","index":0,"message":{"role":"assistant","content":"1."}}'
        tail = TAIL.replace(',"id":"chatcmpl-7B"', "").replace(".chunk", "")
        return f'{{"choices":[{choice}],{tail},{USAGE},"id":"chatcmpl-7B",{TIMINGS}}}'.encode()
    choice = '{"text":", the","index":0,"logprobs":null,"finish_reason":"length"}'
    return f'{{"choices":[{choice}],{TEXT_TAIL},{USAGE},"id":"chatcmpl-IL",{TIMINGS}}}'.encode()


def scrub(frame: bytes) -> bytes:
    return re.sub(rb'"created":\d+', b'"created":0', frame)

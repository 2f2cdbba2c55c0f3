"""Which prompts refer to media that an engine fetches."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.wire.media import refers
from proxy.wire.openai import decode


def chat(part: Any) -> bytes:
    return json.dumps(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, part]}]}
    ).encode()


@pytest.mark.parametrize("name", ["image_url", "audio_url", "video_url", "new_url"])
@pytest.mark.parametrize(
    "url", ["http://cam/latest.jpg", "HTTPS://cam/a", "file:///tmp/a", " data:x", "", "//cam/a"]
)
@pytest.mark.parametrize("plain", [False, True])
def test_a_url_that_an_engine_may_fetch(name: str, url: str, plain: bool) -> None:
    body = chat({"type": name, name: url if plain else {"url": url, "detail": "low"}})
    assert refers(decode("chat", body))
    escaped = body.replace(b'_url"', b'_\\u0075rl"')
    assert json.loads(escaped) == json.loads(body)
    assert refers(decode("chat", escaped))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "DATA:image/png;base64,AAAA"}},
        {"type": "image_url", "image_url": "data:,x"},
        {"type": "text", "text": "see http://cam/latest.jpg as image_url"},
        {"type": "text", "text": '{"image_url": "http://cam"}'},
        {"type": "image_url", "image_url": None},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ],
)
def test_what_is_in_the_request_itself(part: Any) -> None:
    assert not refers(decode("chat", chat(part)))


def test_other_endpoints_and_deep_prompts() -> None:
    assert not refers(decode("completions", b'{"prompt": "image_url http://x"}'))
    assert not refers(decode("embeddings", b'{"input": ["image_url http://x"]}'))
    deep = b'{"messages": [{"image_url": ' + b"[" * 200 + b'{"image_url":"http://x"}' + b"]" * 200 + b"}]}"
    assert refers(decode("chat", deep))

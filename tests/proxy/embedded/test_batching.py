"""What is batched, and what is not, in front of the engine that comes along: llama.cpp, through the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from math import hypot
from operator import mul
from typing import Any

import pytest

from proxy.app import App
from proxy.embedded.engine import EmbeddedEngine
from tests.kit.client import Answer, get, post_json
from tests.kit.running import gateway

CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"


@pytest.fixture
async def app() -> AsyncIterator[App]:
    engine = EmbeddedEngine()
    try:
        async with gateway(await engine.start(), batch_window_ms=20.0) as app:
            yield app
    finally:
        await engine.stop()


async def at_once(url: str, path: str, bodies: list[dict[str, Any]]) -> list[Answer]:
    return list(await asyncio.gather(*(post_json(url, path, {"model": "smollm2", **body}) for body in bodies)))


def alike(one: Any, other: Any) -> bool:
    """The same but for numerics: llama.cpp's vectors depend on what it computes beside them (a cosine of 0.96 was
    seen, alone against in an array); of two inputs here they are at most 0.89 alike."""
    same = one["usage"] == other["usage"] and len(one["data"]) == len(other["data"])
    pairs = [(a["embedding"], b["embedding"]) for a, b in zip(one["data"], other["data"], strict=True)]
    return same and all(sum(map(mul, a, b)) / (hypot(*a) * hypot(*b)) > 0.93 for a, b in pairs)


async def test_sampled_twins_get_samples_of_their_own_and_texts_vectors_of_their_own(app: App) -> None:
    """One engine for all of it: to start one takes longer than to ask it."""
    (engine,) = app.engines
    # So many tokens that two samples are not equal by chance.
    twin = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 24, "temperature": 1.5}
    answers = await at_once(app.url, CHAT, [twin] * 4)
    assert [answer.status for answer in answers] == [200] * 4
    assert {answer.head["x-gateway-cache"] for answer in answers} == {"bypass"}  # asked for one by one
    texts = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
    assert len(set(texts)) >= 3, texts
    assert {len(answer.json()["choices"]) for answer in answers} == {1}

    inputs: list[Any] = ["cat", ["cat", "dog and mouse"], [[1, 2, 3], [4]], [1, 2, 3], "word " * 6000, ""]
    through = await at_once(app.url, EMBED, [{"input": given} for given in inputs])
    direct = [await post_json(engine, EMBED, {"model": "smollm2", "input": given}) for given in inputs]
    assert [answer.status for answer in through] == [answer.status for answer in direct]
    assert [answer.status for answer in through] == [200, 200, 200, 200, 500, 400]
    for one, other in zip(through, direct, strict=True):
        assert one.status != 200 or alike(one.json(), other.json())
    assert 'gateway_embed_items_total{source="joined"} 0' in (await get(app.url, "/metrics")).body.decode()

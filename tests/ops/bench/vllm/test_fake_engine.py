"""The fake engine: a fixed number of slots, further requests wait, and its metrics report both."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from ops.bench.vllm.fake_engine import BLOCK, FakeEngine
from ops.bench.vllm.real import counted


def body(prompt: str, tokens: int = 2) -> dict[str, Any]:
    return {
        "model": "toy",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": True,
    }


async def test_it_streams_as_many_tokens_as_were_asked_for() -> None:
    async with TestClient(TestServer(FakeEngine(1, 0.0, 0.0).app())) as client:
        answer = await client.post("/v1/chat/completions", json=body("x", 3))
        frames = [part.removeprefix("data: ") for part in (await answer.text()).split("\n\n") if part]
        assert frames.pop() == "[DONE]"
        choices = [json.loads(frame)["choices"][0] for frame in frames]
        assert [choice["delta"]["content"] for choice in choices] == ["0 ", "1 ", "2 "]
        assert [choice["finish_reason"] for choice in choices] == [None, None, "length"]


async def test_more_than_it_has_places_for_wait_and_who_leaves_gives_its_place_up() -> None:
    async with TestClient(TestServer(FakeEngine(1, 3600.0, 0.0).app())) as client:

        async def load() -> tuple[float, float]:
            page = await (await client.get("/metrics")).text()
            return counted(page, "vllm:num_requests_running"), counted(page, "vllm:num_requests_waiting")

        async def reaches(running: float, waiting: float) -> None:
            while await load() != (running, waiting):
                pass

        posts = [asyncio.create_task(client.post("/v1/chat/completions", json=body("x"))) for _ in range(3)]
        await reaches(1, 2)
        for left, post in zip(((1, 1), (1, 0), (0, 0)), posts, strict=True):
            post.cancel()
            await asyncio.wait([post])
            await reaches(*left)


async def test_its_cache_knows_the_beginnings_that_it_had_block_by_block() -> None:
    async with TestClient(TestServer(FakeEngine(1, 0.0, 0.0).app())) as client:

        async def hits(prompt: str) -> float:
            page = await (await client.get("/metrics")).text()
            before = counted(page, "vllm:prefix_cache_hits_total")
            await (await client.post("/v1/chat/completions", json=body(prompt))).read()
            page = await (await client.get("/metrics")).text()
            return counted(page, "vllm:prefix_cache_hits_total") - before

        text = "a" * 4 * BLOCK
        assert await hits(text) == 0
        assert await hits(text) == 4 * BLOCK
        assert await hits(text[: 3 * BLOCK] + "b" * BLOCK) == 3 * BLOCK
        assert await hits("b" + text) == 0

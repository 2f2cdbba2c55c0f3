"""In front of a real vLLM with `--enable-force-include-usage`: what it gives unasked reaches every client."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from proxy.embedded.redis import EmbeddedRedis
from tests.kit.client import Answer, post_json, streaming
from tests.kit.running import gateway, until
from tests.real.conftest import up
from tests.real.test_vllm import body, unnamed

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def alike(answer: Answer) -> bytes:
    """Without what differs from run to run: names, times, and what the prefix cache knew by then."""
    return re.sub(rb'"(cached_tokens|created_cache_tokens)":\d+', rb'"\1":0', unnamed(answer.body))


def usages(answer: Answer) -> list[dict[str, Any]]:
    return [json.loads(event[6:])["usage"] for event in answer.events()[:-1]]


@pytest.mark.parametrize("case", ["chat", "logprobs", "completion", "n=2 with a seed"])
async def test_a_client_that_asked_for_no_usage_sees_what_the_engine_forces(
    vllm_that_forces: str, case: str
) -> None:
    """Private, shared, attached and replayed streams are what the engine sends, each chunk with its usage."""
    engine = await up(vllm_that_forces)
    redis = EmbeddedRedis(8)
    url = await redis.start()
    try:
        async with gateway(engine, redis=url, probe="on") as app:
            path, ask = body(case, stream=True)
            await post_json(engine, path, ask)  # from here on all find the prompt in the prefix cache alike
            direct = await post_json(engine, path, ask)
            private = await post_json(app.url, path, ask, (("x-gateway-share", "off"),))
            async with streaming(app.url, path, ask) as first:
                await until(lambda: app.group.subscribers == 1)
                attached = asyncio.create_task(post_json(app.url, path, ask))
                shared, joined = await first.read(), await attached
            await until(lambda: len(app.group) == 0)
            replayed = await post_json(app.url, path, ask)
    finally:
        await redis.stop()
    answers = [private, shared, joined, replayed]
    assert [answer.head["x-gateway-cache"] for answer in answers] == ["bypass", "miss", "attached", "hit"]
    assert {alike(answer) for answer in answers} == {alike(direct)}
    assert all(usage["prompt_tokens"] > 0 for usage in usages(replayed))
    assert replayed.body.count(b'"choices":[]') == 1

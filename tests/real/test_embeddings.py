"""Embeddings across clients in front of a real vLLM that embeds.

`VLLM_EMBED_URL` names it (`python ops/vllm.py serve --embed --dtype float32`); without one this is left out, for a
second vLLM takes most of a minute to start.
"""

from __future__ import annotations

import asyncio
import os
import struct
from base64 import b64decode
from typing import Any

import pytest

from proxy.app import App
from tests.kit.client import Answer, get, post_json
from tests.kit.missing import needs
from tests.kit.running import gateway, until

EMBED = "/v1/embeddings"
ENGINE = os.environ.get("VLLM_EMBED_URL", "")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(120),
    needs(
        ENGINE,
        "VLLM_EMBED_URL, a vLLM that embeds,",
        f"VLLM_EMBED_URL=http://HOST:8000 python -m pytest -m vllm {__file__}",
    ),
]

TEXTS = [f"{n} {'words of a text ' * (1 + n % 5)}" for n in range(24)]


async def ask(url: str, given: Any, **more: Any) -> Answer:
    return await post_json(url, EMBED, {"model": "minilm", "input": given, **more})


async def together(app: App, inputs: list[Any], **more: Any) -> list[Answer]:
    """All at once, while a call is under way: what then goes up is as few arrays as may be."""
    first = asyncio.create_task(ask(app.url, ["first"], **more))
    await until(lambda: app.embedder is not None and len(app.embedder) > 0)
    answers = await asyncio.gather(*(ask(app.url, given, **more) for given in inputs))
    await first
    return list(answers)


def floats(answer: Answer, form: str) -> list[list[float]]:
    data = [datum["embedding"] for datum in answer.json()["data"]]
    if form == "float":
        return data
    return [list(struct.unpack(f"<{len(b64decode(one)) // 4}f", b64decode(one))) for one in data]


async def arrays(app: App) -> float:
    page = (await get(app.url, "/metrics")).body.decode().splitlines()
    return next(float(line.split()[-1]) for line in page if line.startswith("gateway_embed_array_items_count"))


@pytest.mark.parametrize("form", ["float", "base64"])
async def test_every_client_gets_the_vectors_that_it_would_have_had_alone(form: str) -> None:
    async with gateway(ENGINE, embed_batch_calls=1) as app:
        answers = await together(app, [*TEXTS, TEXTS[:3]], encoding_format=form)
        assert await arrays(app) <= 4
    for given, through in zip([*TEXTS, TEXTS[:3]], answers, strict=True):
        direct = await ask(ENGINE, given, encoding_format=form)
        assert through.json().keys() == direct.json().keys()
        assert through.json()["usage"].keys() == direct.json()["usage"].keys()
        for one, other in zip(floats(through, form), floats(direct, form), strict=True):
            assert one == pytest.approx(other, abs=1e-5)  # another batch, other sums: numerics, and no more


async def test_usage_of_ids_is_exact_and_of_texts_sums_to_the_engine_s_count() -> None:
    ids = [[101, *range(2000, 2000 + n), 102] for n in range(1, 9)]
    async with gateway(ENGINE, embed_batch_calls=1) as app:
        answers = await together(app, ids)
        told = [answer.json()["usage"]["prompt_tokens"] for answer in answers]
        assert told == [len(one) for one in ids]
        answers = await together(app, TEXTS)
        told = [answer.json()["usage"]["prompt_tokens"] for answer in answers]
    alone = [(await ask(ENGINE, text)).json()["usage"]["prompt_tokens"] for text in TEXTS]
    assert abs(sum(told) - sum(alone)) <= 1  # whatever joined the one that was under way is not in these sums


async def test_one_text_that_is_too_long_fails_its_owner_alone() -> None:
    async with gateway(ENGINE, embed_batch_calls=1) as app:
        answers = await together(app, ["a", "word " * 3000, "b", ["c", "word " * 300], "d"])
        assert [answer.status for answer in answers] == [200, 400, 200, 400, 200]
        direct = await ask(ENGINE, "word " * 3000)
        assert answers[1].json() == direct.json()

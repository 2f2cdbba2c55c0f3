"""Tokens of twins that went up as one request: counted by each choice's token ids, else told as an estimate."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.kit.client import post_json
from tests.kit.engine import Engine
from tests.kit.engine_turn import Turn
from tests.kit.running import HELLO, gateway, lines

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SAMPLED = HELLO | {"temperature": 0.9}
COUNTS = [20, 3, 1, 20, 7]


def numbered(turn: Turn, *, ids: bool) -> dict[str, Any]:
    """Choices of texts whose length says nothing of their tokens, as vLLM writes them."""
    texts = ["x" * (100 // count) for count in COUNTS]
    body: dict[str, Any] = turn.shape.whole(texts, ["stop"] * len(COUNTS), 5, sum(COUNTS))
    for choice, count in zip(body["choices"], COUNTS, strict=True):
        choice["token_ids"] = list(range(count)) if ids else None
        if not turn.is_chat:
            choice["prompt_token_ids"] = [1, 2, 3, 4, 5] if ids else None
    if turn.is_chat:
        body["prompt_token_ids"] = [1, 2, 3, 4, 5] if ids else None
    return body


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("ids", [True, False])
async def test_five_twins_are_each_told_their_own_tokens(
    engine: Engine, tmp_path: Path, path: str, ids: bool
) -> None:
    async def script(turn: Turn) -> None:
        assert turn.json()["return_token_ids"] is True
        await turn.respond(200, numbered(turn, ids=ids))

    engine.auto(script)
    log = tmp_path / "log"
    ask = SAMPLED if path == CHAT else {"model": "m1", "prompt": "hello", "temperature": 0.9}
    async with gateway(engine, batch_window_ms=50.0, log_to=log) as app:
        answers = await asyncio.gather(*(post_json(app.url, path, ask) for _ in COUNTS))
        assert len(engine.requests) == 1
    bodies = [answer.json() for answer in answers]
    counts = [body["usage"]["completion_tokens"] for body in bodies]
    assert sum(counts) == sum(COUNTS)
    assert (sorted(counts) == sorted(COUNTS)) is ids
    for body in bodies:
        assert body["choices"][0]["token_ids"] is None
        assert (body if path == CHAT else body["choices"][0])["prompt_token_ids"] is None
    sources = {line["token_source"] for line in lines(log) if line["msg"] == "request"}
    assert sources == {"usage" if ids else "estimated"}


async def test_a_long_prompt_s_ids_are_not_asked_for(engine: Engine) -> None:
    async def script(turn: Turn) -> None:
        assert "return_token_ids" not in turn.json()
        await turn.respond(200, numbered(turn, ids=False))

    engine.auto(script)
    ask = SAMPLED | {"messages": [{"role": "user", "content": "x" * 220_000}]}
    async with gateway(engine, batch_window_ms=200.0) as app:
        answers = await asyncio.gather(*(post_json(app.url, CHAT, ask) for _ in COUNTS))
        assert {answer.status for answer in answers} == {200}


@pytest.mark.parametrize("counts", [True, False])
async def test_a_stream_s_tokens_are_the_engine_s_count_or_an_estimate(
    engine: Engine, tmp_path: Path, counts: bool
) -> None:
    async def script(turn: Turn) -> None:
        await turn.start()
        for index in range(2):
            frame = turn.shape.content("a", index)
            if counts:
                usage = b',"usage":{"prompt_tokens":5,"completion_tokens":%d,"total_tokens":9}}\n\n' % (index + 3)
                frame = frame.removesuffix(b"}\n\n") + usage
            await turn.frame(frame)
        await turn.finish(choices=(0, 1), completion_tokens=7, prompt_tokens=5)

    engine.auto(script)
    log = tmp_path / "log"
    async with gateway(engine, batch_window_ms=50.0, log_to=log) as app:
        await asyncio.gather(*(post_json(app.url, CHAT, SAMPLED | {"stream": True}) for _ in range(2)))
        assert engine.generations == 1
    told = [(line["token_source"], line["completion_tokens"]) for line in lines(log) if line["msg"] == "request"]
    assert sorted(told) == ([("usage", 3), ("usage", 4)] if counts else [("estimated", 3), ("estimated", 4)])

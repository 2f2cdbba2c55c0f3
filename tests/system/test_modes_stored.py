"""Streams and bodies of one prompt in the store: each is kept beside the other, on engines that fold or do not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.app import App
from tests.kit import engine_shapes as shapes
from tests.kit.client import post_json, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.engine_shapes import Shape
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, gateway, until

CHAT = "/v1/chat/completions"
ENGINES = {
    "0.32": shapes.VLLM_32,
    "0.33": shapes.VLLM_33,
    "no fingerprint": shapes.FINGERPRINT_NONE,
    "the Rust front end": shapes.RUST,
    "new constants": shapes.NEW_CONSTANTS,
    "what does not fold": shapes.DIFFERS,
}


@pytest.fixture
async def redis_url() -> AsyncIterator[str]:
    async with redis_server() as path:
        yield f"unix://{path}"


class Asked:
    """A gateway that is asked one after the other, each time once the answer before is stored."""

    def __init__(self, app: App, shape: Shape, engine: Engine, ask: dict[str, Any]) -> None:
        async def script(turn: Turn) -> None:
            await shape.answer(turn, "one", " two")

        engine.auto(script)
        self._app, self._ask = app, ask

    async def __call__(self, *modes: str) -> list[str]:
        """The verdicts of these requests."""
        verdicts = []
        for mode in modes:
            answer = await post_json(self._app.url, CHAT, self._ask | {"stream": mode == "stream"})
            assert answer.status == 200
            assert b"two" in answer.body
            assert (b"data: [DONE]" in answer.body) == (mode == "stream")
            verdicts.append(answer.head["x-gateway-cache"])
            await until(lambda: len(self._app.group) == 0)
        return verdicts


@pytest.mark.parametrize("probe", ["on", "off"])
@pytest.mark.parametrize("name", ENGINES)
async def test_four_bodies_after_a_stored_stream_cost_one_generation_at_most(
    engine: Engine, redis_url: str, name: str, probe: str
) -> None:
    shape = ENGINES[name]
    async with gateway(shape.of(engine), probe=probe, redis=redis_url) as app:
        asked = Asked(app, shape, engine, HELLO)
        verdicts = await asked("stream", "whole", "whole", "whole", "whole")
        folds = name in ("0.32", "0.33") or (probe == "on" and shape is not shapes.DIFFERS)
        assert verdicts == ["miss", "hit" if folds else "miss", "hit", "hit", "hit"]
        assert await asked("stream") == ["hit"]
        assert engine.generations == 1 + (not folds)


@pytest.mark.parametrize("name", ENGINES)
async def test_a_body_that_was_a_hit_stays_one_after_a_stream(engine: Engine, redis_url: str, name: str) -> None:
    shape = ENGINES[name]
    async with gateway(shape.of(engine), probe="on", redis=redis_url) as app:
        asked = Asked(app, shape, engine, HELLO)
        assert await asked("whole", "whole", "stream", "whole", "stream", "whole") == [
            "miss", "hit", "miss", "hit", "hit", "hit",
        ]  # fmt: skip
        assert engine.generations == 2


async def test_what_was_learned_of_an_engine_goes_with_its_streams_to_another_gateway(
    engine: Engine, redis_url: str
) -> None:
    shape = shapes.NEW_CONSTANTS
    async with gateway(shape.of(engine), probe="on", redis=redis_url) as app:
        assert await Asked(app, shape, engine, HELLO)("stream") == ["miss"]
    async with gateway(engine, probe="off", redis=redis_url) as app:
        assert await Asked(app, shape, engine, HELLO)("whole", "stream") == ["hit", "hit"]
    assert engine.generations == 1


async def test_a_stored_body_is_found_while_a_stream_of_the_same_runs(engine: Engine, redis_url: str) -> None:
    async with gateway(engine, probe="on", redis=redis_url) as app:
        assert await Asked(app, shapes.VLLM_32, engine, HELLO)("whole") == ["miss"]
        engine.auto(None)
        async with streaming(app.url, CHAT, HELLO | {"stream": True}) as stream:
            turn = await engine.next_request()
            await turn.send("a")
            await stream.event()
            answer = await post_json(app.url, CHAT, HELLO)
            assert answer.head["x-gateway-cache"] == "hit"
            assert not turn.done
            await turn.finish()

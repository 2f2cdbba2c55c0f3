"""Embeddings: the engine's own vectors, shared and kept; a stub only where it is asked for, and marked as one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kit.client import post_json
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script
from tests.kit.running import gateway

ASK = {"model": "m1", "input": "hello"}


async def cannot(turn: Turn) -> None:
    await turn.respond(404, {"detail": "Not Found"})


async def no_such_model(turn: Turn) -> None:
    error = {"message": "The model does not exist.", "type": "NotFoundError", "param": "model", "code": 404}
    await turn.respond(404, {"error": error})


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
async def test_an_embedding_is_the_engine_s(engine: Engine, path: str) -> None:
    engine.auto(echo_script())
    async with gateway(engine, embed_stub=True) as app:
        answer = await post_json(app.url, path, ASK)
        assert answer.status == 200
        assert "stub" not in answer.json()
        assert "x-gateway-stub" not in answer.head
        assert engine.requests[0].path == "/v1/embeddings"


async def test_a_stub_is_marked_in_the_body_and_in_a_header(engine: Engine) -> None:
    engine.auto(cannot)
    async with gateway(engine, embed_stub=True) as app:
        answer = await post_json(app.url, "/embed", ASK)
        assert (answer.status, answer.json()["stub"], answer.head["x-gateway-stub"]) == (200, True, "1")


async def test_with_no_engine_at_all_the_stub_still_answers(engine: Engine) -> None:
    async with gateway(engine, embed_stub=True, refresh_seconds=60.0) as app:
        await engine.drop_connections()
        engine.stop_listening()
        assert (await post_json(app.url, "/embed", ASK)).json()["stub"] is True


@pytest.mark.parametrize(
    ("path", "settings", "script", "status"),
    [
        ("/embed", {}, cannot, 501),
        ("/v1/embeddings", {"embed_stub": True}, cannot, 404),  # the engine's own answer, never a vector
        ("/embed", {"embed_stub": True}, no_such_model, 404),  # an engine can embed, but not with this model
    ],
)
async def test_no_vector_is_invented_unasked(
    engine: Engine, path: str, settings: dict[str, Any], script: Any, status: int
) -> None:
    engine.auto(script)
    async with gateway(engine, **settings) as app:
        answer = await post_json(app.url, path, ASK)
        assert answer.status == status
        assert "data" not in answer.json()

"""Embeddings that are no texts in and JSON out: they share nothing, and pass through as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.client import post_json
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_wire import embeddings_body
from tests.kit.redis_server import redis_server
from tests.kit.running import gateway

VECTORS = bytes(range(256))
TALK = {"model": "m1", "messages": [{"role": "user", "content": "The cat sat."}]}


async def binary(turn: Turn) -> None:
    await turn.respond(200, VECTORS, [("content-type", "application/octet-stream"), ("metadata", '{"data": []}')])


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
@pytest.mark.parametrize("form", ["bytes", "bytes_only"])
async def test_vectors_as_bytes_come_as_the_engine_sends_them(engine: Engine, path: str, form: str) -> None:
    engine.auto(binary)
    ask = {"model": "m1", "input": ["a", "b"], "encoding_format": form, "endianness": "big"}
    async with gateway(engine) as app:
        for _ in range(2):
            answer = await post_json(app.url, path, ask)
            assert (answer.status, answer.body, answer.head["metadata"]) == (200, VECTORS, '{"data": []}')
            assert answer.head["content-type"] == "application/octet-stream"
    assert [(turn.path, turn.json()) for turn in engine.requests] == [("/v1/embeddings", ask)] * 2


async def test_messages_go_to_the_engine_which_has_their_template(engine: Engine) -> None:
    engine.auto(lambda turn: turn.respond(200, b'{"data": []}', [("content-type", "application/json")]))
    ask = {**TALK, "add_special_tokens": False}
    async with gateway(engine) as app:
        answer = await post_json(app.url, "/v1/embeddings", ask)
        assert (answer.status, answer.json()) == (200, {"data": []})
        empty = await post_json(app.url, "/v1/embeddings", {"model": "m1", "note": "messages"})
        assert (empty.status, empty.json()["error"]["param"]) == (400, "input")
    (turn,) = engine.requests
    assert turn.body == json.dumps(ask).encode()


@pytest.mark.parametrize("vectors", [1, 2], ids=["one conversation", "an input each"])
async def test_objects_as_input_have_as_many_vectors_as_the_engine_says(engine: Engine, vectors: int) -> None:
    """vLLM takes messages for one conversation, others take each object for an input: it is no fault of theirs."""
    engine.auto(lambda turn: turn.respond(200, embeddings_body(["a"] * vectors, "m1", 1)))
    talk = [{"role": "system", "content": "Represent it."}, {"role": "user", "content": "cat"}]
    async with gateway(engine, breaker_failures=1, retries=0) as app:
        for n in range(3):
            answer = await post_json(app.url, "/v1/embeddings", {"model": "m1", "input": talk, "seed": n})
            assert answer.status == 200
            assert len(answer.json()["data"]) == vectors
    assert len(engine.requests) == 3


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
async def test_each_path_heeds_what_its_client_wants_to_share(engine: Engine, path: str) -> None:
    engine.auto(echo_script())
    ask = {"model": "m1", "input": "a"}
    async with redis_server() as redis, gateway(engine, redis=f"unix://{redis}") as app:
        for headers in ([("x-gateway-share", "off")], [("cache-control", "no-store")]):
            for _ in range(2):
                assert (await post_json(app.url, path, ask, headers)).head["x-gateway-cache"] in ("bypass", "miss")
        assert len(engine.requests) == 4
        wrong = await post_json(app.url, path, ask, [("x-gateway-share", "bogus")])
        assert (wrong.status, wrong.json()["error"]["code"]) == (400, "invalid_header")


async def test_what_is_denied_is_denied_in_messages_too(engine: Engine, tmp_path: Path) -> None:
    rules = tmp_path / "deny"
    rules.write_text("cat sat\n")
    async with gateway(engine, deny_file=str(rules)) as app:
        answer = await post_json(app.url, "/v1/embeddings", TALK)
    assert (answer.status, b"denied content" in answer.body) == (400, True)
    assert engine.requests == []

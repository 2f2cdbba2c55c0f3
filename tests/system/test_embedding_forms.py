"""Embeddings that are no texts in and JSON out: they share nothing, and pass through as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.client import post_json
from tests.kit.engine import Engine, Turn
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


async def test_what_is_denied_is_denied_in_messages_too(engine: Engine, tmp_path: Path) -> None:
    rules = tmp_path / "deny"
    rules.write_text("cat sat\n")
    async with gateway(engine, deny_file=str(rules)) as app:
        answer = await post_json(app.url, "/v1/embeddings", TALK)
    assert (answer.status, b"denied content" in answer.body) == (400, True)
    assert engine.requests == []

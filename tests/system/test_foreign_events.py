"""Answers with more than was asked for: their own clients get them as they are, and no later one is given them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kit.client import post_json
from tests.kit.engine import Engine, Turn
from tests.kit.engine_wire import embeddings_body, sse
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, HELLO_STREAM, gateway, until

CHAT = "/v1/chat/completions"


def chunk(text: str, index: int = 0, reason: str | None = None) -> bytes:
    return sse({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": reason}]})


STORED = b'gateway_cache_operations_total{op="store"} 1'

FOREIGN = {
    "text": b"data: boom\n\n",
    "type": sse({"type": "error", "message": "x", "code": 500}),
    "detail": sse({"detail": "Internal Server Error"}),
    "list": sse([{"error": {"message": "x"}}]),
    "index 1": chunk("x", 1),
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("ended", [False, True])
async def test_a_stream_with_an_event_of_no_answer_is_passed_on_and_not_stored(
    engine: Engine, foreign: bytes, ended: bool
) -> None:
    async def script(turn: Turn) -> None:
        await turn.send("a", "b")
        if not ended:
            await turn.frame(foreign)
        await turn.frame(chunk("", 0, "stop"))
        if ended:
            await turn.frame(foreign)
        await turn.end(b"data: [DONE]\n\n")

    await asked_twice(engine, script)


@pytest.mark.parametrize("reason", ["eos_token", "Stop", "cache_threshold"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_end_by_a_reason_that_is_not_known_is_passed_on_and_not_stored(
    engine: Engine, reason: str, stream: bool
) -> None:
    """It is neither retried nor the engine's fault: two callers with such answers would open its breaker."""

    async def script(turn: Turn) -> None:
        if stream:
            await turn.send("a", "b")
            await turn.frame(chunk("", 0, reason))
            await turn.end(b"data: [DONE]\n\n")
        else:
            message = {"role": "assistant", "content": "ab"}
            await turn.respond(200, {"choices": [{"index": 0, "message": message, "finish_reason": reason}]})

    engine.auto(script)
    async with redis_server() as path, gateway(engine, redis=f"unix://{path}", breaker_failures=2) as app:
        for generations in (1, 2, 3, 4):
            answer = await post_json(app.url, CHAT, HELLO_STREAM if stream else HELLO)
            assert (answer.status, answer.head["x-gateway-cache"]) == (200, "miss")
            assert f'"finish_reason":"{reason}"'.encode() in answer.body.replace(b": ", b":")
            assert answer.body.endswith(b"data: [DONE]\n\n") is stream
            assert engine.generations == generations
            await until(lambda: len(app.group) == 0)


@pytest.mark.parametrize("headers", [(), (("x-gateway-share", "off"),)], ids=["shared", "private"])
@pytest.mark.parametrize("stream", [False, True])
async def test_vllm_s_repetition_is_an_end(
    engine: Engine, stream: bool, headers: tuple[tuple[str, str], ...]
) -> None:
    """Of a request with `repetition_detection`: the answer is complete, and stored."""

    async def script(turn: Turn) -> None:
        if stream:
            await turn.send("a", "a")
            await turn.frame(chunk("", 0, "repetition"))
            await turn.end(b"data: [DONE]\n\n")
        else:
            message = {"role": "assistant", "content": "aa"}
            await turn.respond(200, {"choices": [{"index": 0, "message": message, "finish_reason": "repetition"}]})

    engine.auto(script)
    async with redis_server() as path, gateway(engine, redis=f"unix://{path}") as app:
        verdicts = []
        for _ in range(2):
            answer = await post_json(app.url, CHAT, HELLO_STREAM if stream else HELLO, headers)
            assert answer.status == 200
            assert b"repetition" in answer.body
            verdicts.append(answer.head["x-gateway-cache"])
            if not headers:
                await until(lambda: STORED in app.metrics.render("")[0])
        assert verdicts == (["bypass"] * 2 if headers else ["miss", "hit"])
        assert engine.generations == (2 if headers else 1)


async def test_a_stream_that_goes_on_after_its_finish_is_not_stored(engine: Engine) -> None:
    """The texts after the finish look like those before it."""

    async def script(turn: Turn) -> None:
        await turn.send("a", "b", "c")
        await turn.frame(chunk("", 0, "stop"))
        await turn.send("d", "e")
        await turn.end(b"data: [DONE]\n\n")

    await asked_twice(engine, script)


async def asked_twice(engine: Engine, script: Any) -> None:
    """Its second answer is generated anew."""
    engine.auto(script)
    async with redis_server() as path, gateway(engine, redis=f"unix://{path}") as app:
        for generations in (1, 2):
            answer = await post_json(app.url, CHAT, HELLO_STREAM)
            assert (answer.status, answer.head["x-gateway-cache"]) == (200, "miss")
            assert answer.events()[-1] == b"data: [DONE]\n\n"
            assert engine.generations == generations
            await until(lambda: len(app.group) == 0)


async def test_what_comes_after_the_end_in_the_same_read_does_not_count(engine: Engine) -> None:
    async def script(turn: Turn) -> None:
        await turn.start()
        await turn.frame(chunk("a") + chunk("", 0, "stop") + b"data: [DONE]\n\n" + chunk("", 0, "abort"))
        await turn.end()

    engine.auto(script)
    async with gateway(engine) as app:
        answer = await post_json(app.url, CHAT, HELLO_STREAM)
        assert (answer.status, answer.events()[-1]) == (200, b"data: [DONE]\n\n")


async def test_a_choice_with_an_index_that_none_has_ends_the_stream_in_an_error(engine: Engine) -> None:
    async def script(turn: Turn) -> None:
        await turn.send("a")
        await turn.frame(chunk("x", -1))
        await turn.finish()

    engine.auto(script)
    async with gateway(engine) as app:
        answer = await post_json(app.url, CHAT, HELLO_STREAM)
        assert b"upstream_incomplete" in answer.events()[-1]
        assert b"[DONE]" not in answer.body


async def test_a_body_with_more_choices_than_were_asked_for_is_passed_on_and_not_stored(engine: Engine) -> None:
    async def script(turn: Turn) -> None:
        choices = [{"index": n, "message": {"content": "x"}, "finish_reason": "stop"} for n in range(2)]
        await turn.respond(content={"choices": choices})

    engine.auto(script)
    async with redis_server() as path, gateway(engine, redis=f"unix://{path}") as app:
        for _ in range(2):
            answer = await post_json(app.url, CHAT, HELLO)
            assert (answer.status, answer.head["x-gateway-cache"]) == (200, "miss")
            assert len(answer.json()["choices"]) == 2
            await until(lambda: len(app.group) == 0)


@pytest.mark.parametrize("odd", ['["x"]', "[1e999]", "[true]"])
async def test_a_vector_without_numbers_is_no_one_s(engine: Engine, odd: str) -> None:
    async def script(turn: Turn) -> None:
        made = json.dumps(embeddings_body(["x"], "m1", 1) | {"data": [{"index": 0, "embedding": "VECTOR"}]})
        await turn.respond(content=made.replace('"VECTOR"', odd).encode())

    engine.auto(script)
    async with gateway(engine) as app:
        for _ in range(2):
            answer = await post_json(app.url, "/v1/embeddings", {"model": "m1", "input": ["one"]})
            assert (answer.status, answer.json()["error"]["code"]) == (502, "upstream_incomplete")

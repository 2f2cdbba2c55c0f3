"""The engine's headers reach the client in every mode of sharing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.kit.client import get, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_turn import Turn
from tests.kit.running import HELLO, gateway, until

CHAT = "/v1/chat/completions"
SAID = (
    ("retry-after", "37"),
    ("retry-after-ms", "37000"),
    ("x-should-retry", "false"),
    ("x-ratelimit-remaining-requests", "3"),
    ("endpoint-load-metrics", "TEXT named_metrics.kv_cache_usage_perc=0.5"),
)
LOAD_FORMAT = "endpoint-load-metrics-format"
SHARED, ALONE = {"temperature": 0}, {"temperature": 0.7}
REFUSAL = {"error": {"message": "busy", "type": "overloaded", "param": None, "code": 429}}


def said(head: Any) -> dict[str, str]:
    return {name: head[name] for name, _ in SAID if name in head}


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("sampling", [SHARED, ALONE], ids=["shared", "alone"])
async def test_an_error_is_passed_on_with_its_headers_whatever_the_temperature(
    engine: Engine, status: int, stream: bool, sampling: dict[str, Any]
) -> None:
    async def script(turn: Turn) -> None:
        await turn.respond(status, REFUSAL, SAID)

    engine.auto(script)
    async with gateway(engine, retries=0) as app:
        answer = await post_json(app.url, CHAT, HELLO | sampling | {"stream": stream})
        assert (answer.status, answer.json()) == (status, REFUSAL)
        assert said(answer.head) == dict(SAID)
        assert answer.head["vary"] == "Origin"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("sampling", [SHARED, ALONE], ids=["shared", "alone"])
async def test_a_good_answer_is_passed_on_with_what_its_head_says_of_the_engine(
    engine: Engine, stream: bool, sampling: dict[str, Any]
) -> None:
    async def script(turn: Turn) -> None:
        if turn.wants_stream:
            await turn.start(headers=(*SAID, ("set-cookie", "a=b")))
            await turn.finish("hello")
        else:
            await turn.respond(200, turn.shape.whole(["hello"], ["stop"], 1, 1), (*SAID, ("set-cookie", "a=b")))

    engine.auto(script)
    async with gateway(engine) as app:
        answer = await post_json(app.url, CHAT, HELLO | sampling | {"stream": stream})
        assert answer.status == 200
        assert said(answer.head) == dict(SAID)
        assert ("set-cookie" in answer.head) is (sampling is ALONE)


async def test_readers_that_attach_get_the_same_headers_and_a_hit_gets_none(engine: Engine) -> None:
    async with gateway(engine, probe="on") as app, streaming(app.url, CHAT, HELLO | {"stream": True}) as first:
        turn = await engine.next_request()
        other = asyncio.ensure_future(post_json(app.url, CHAT, HELLO))
        await until(lambda: app.group.subscribers == 2)
        await turn.start(headers=SAID)
        await turn.finish("hello")
        assert said(await first.read_head()) == dict(SAID)
        answer = await other
        assert answer.head["x-gateway-cache"] == "attached"
        assert said(answer.head) == dict(SAID)
        assert answer.head["content-type"] == "application/json"


async def test_merged_clients_get_the_headers_of_their_one_refusal(engine: Engine) -> None:
    async def script(turn: Turn) -> None:
        await turn.respond(503, REFUSAL, SAID)

    engine.auto(script)
    async with gateway(engine, retries=0, batch_window_ms=20.0) as app:
        answers = await asyncio.gather(*(post_json(app.url, CHAT, HELLO | ALONE) for _ in range(3)))
        assert [(answer.status, said(answer.head)) for answer in answers] == [(503, dict(SAID))] * 3


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_is_limited_here_is_told_of_our_limit_alone(engine: Engine, stream: bool) -> None:
    async def script(turn: Turn) -> None:
        if turn.wants_stream:
            await turn.start(headers=SAID)
            await turn.finish("hello")
        else:
            await turn.respond(200, turn.shape.whole(["hello"], ["stop"], 1, 1), SAID)

    engine.auto(script)
    async with gateway(engine, rate_limit_rps=50.0) as app:
        answer = await post_json(app.url, CHAT, HELLO | {"stream": stream})
        told = [value for name, value in answer.head.headers if name.lower() == "x-ratelimit-remaining-requests"]
        assert len(told) == 1
        assert told != ["3"]
        assert answer.head["endpoint-load-metrics"] == dict(SAID)["endpoint-load-metrics"]


@pytest.mark.parametrize("sampling", [SHARED, ALONE], ids=["shared", "alone"])
async def test_a_client_that_asks_the_engine_for_its_load_gets_it(
    engine: Engine, sampling: dict[str, Any]
) -> None:
    async def script(turn: Turn) -> None:
        asked = turn.headers.get(LOAD_FORMAT)
        report = [] if asked is None else [("endpoint-load-metrics", f"{asked} load")]
        await turn.respond(200, turn.shape.whole(["hello"], ["stop"], 1, 1), report)

    engine.auto(script)
    async with gateway(engine) as app:
        plain = await post_json(app.url, CHAT, HELLO | sampling)
        answer = await post_json(app.url, CHAT, HELLO | sampling, [(LOAD_FORMAT, "TEXT")])
    assert "endpoint-load-metrics" not in plain.head
    assert answer.head["endpoint-load-metrics"] == "TEXT load"


@pytest.mark.parametrize("sampling", [SHARED, ALONE], ids=["shared", "alone"])
@pytest.mark.parametrize("given", ["mine-7", None, 7, "a\nb", "é", "x" * 200])
async def test_the_id_that_a_client_chooses_in_its_body_is_the_engine_s(
    engine: Engine, sampling: dict[str, Any], given: object
) -> None:
    """vLLM takes the id in a header before the one in the body. What is no plain token names nothing."""
    seen: list[str | None] = []

    async def script(turn: Turn) -> None:
        seen.append(turn.headers.get("x-request-id"))
        await turn.respond(200, turn.shape.whole(["hello"], ["stop"], 1, 1))

    engine.auto(script)
    async with gateway(engine) as app:
        body = HELLO | sampling | {"request_id": given}
        answer = await post_json(app.url, CHAT, body)
        await post_json(app.url, CHAT, body | {"seed": 1}, [("X-Request-Id", "of-the-header")])
        await post_json(app.url, "/pooling", {"model": "m1", "input": "a", "request_id": given})
        await post_json(app.url, "/pooling", {"model": "m1", "input": "a"}, [("X-Request-Id", "of-the-header")])
    of_chat, of_header, of_pooling, of_pooling_header = seen
    own = answer.head["x-request-id"]
    assert of_chat == ("mine-7" if given == "mine-7" else own)
    assert of_header != "mine-7"
    assert (of_pooling is None) is (given is not None)
    assert of_pooling_header == "of-the-header"


async def test_an_engine_that_lists_its_models_to_the_key_of_a_client_is_asked_with_it(engine: Engine) -> None:
    async def script(turn: Turn) -> None:
        known = turn.headers.get("authorization") == "Bearer mine"
        await turn.respond(200 if known else 401, {"path": turn.path} if known else REFUSAL)

    engine.take("/v1/models")
    engine.auto(script)
    for path, unlisted in (("/v1/models", 200), ("/v1/models/org/a", 404)):
        async with gateway(engine, forward_authorization=True) as app:
            answer = await get(app.url, path, [("Authorization", "Bearer mine")])
            assert (answer.status, answer.json()) == (200, {"path": path})
            assert (await get(app.url, path)).status == 401
        async with gateway(engine) as app:
            assert (await get(app.url, path, [("Authorization", "Bearer mine")])).status == unlisted

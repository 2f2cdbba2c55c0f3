"""Embeddings across clients over loopback: arrays, the store of items, encodings, leaving, limits, figures."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.app import App
from proxy.embedded.redis import EmbeddedRedis
from tests.kit.client import Answer, call, get, post_json, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script, replay
from tests.kit.engine_wire import embeddings_body, golden_request, golden_response
from tests.kit.running import gateway, lines, until

PATH = "/v1/embeddings"


@pytest.fixture
async def redis() -> AsyncIterator[str]:
    server = EmbeddedRedis(8)
    yield await server.start()
    await server.stop()


def ask(given: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m1", "input": given, **more}


async def asked(app: App, given: Any, headers: Any = (), **more: Any) -> Answer:
    return await post_json(app.url, PATH, ask(given, **more), headers)


async def embed(turn: Turn) -> None:
    given = turn.json()["input"]
    await turn.respond(200, embeddings_body([given] if isinstance(given, str) else given, "m1", turn.number))


def values(answer: Answer) -> list[Any]:
    return [datum["embedding"] for datum in answer.json()["data"]]


def of(*items: Any) -> list[Any]:
    return [datum["embedding"] for datum in embeddings_body(list(items), "m1", 1)["data"]]


async def waiting(app: App, items: int) -> None:
    await until(lambda: app.embedder is not None and len(app.embedder.arrays) == items)


async def test_clients_that_wait_together_are_one_array_and_each_gets_its_own(engine: Engine) -> None:
    async with gateway(engine, embed_batch_calls=1) as app:
        first = asyncio.create_task(asked(app, ["first"]))
        turn = await engine.next_request()
        others = [asyncio.create_task(asked(app, text)) for text in ("a", ["b", "c"], "a")]
        await waiting(app, 3)
        await embed(turn)
        turn = await engine.next_request()
        assert sorted(turn.json()["input"]) == ["a", "b", "c"]
        await embed(turn)
        answers = [await other for other in others]
        assert [values(answer) for answer in answers] == [of("a"), of("b", "c"), of("a")]
        assert sorted(answer.head["x-gateway-cache"] for answer in answers) == ["attached", "miss", "miss"]
        assert values(await first) == of("first")


async def test_a_partly_known_request_asks_only_for_the_rest(engine: Engine, redis: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with gateway(engine, redis=redis, log_to=log) as app:
        engine.auto(embed)
        told = []
        began = time.time()
        for given in (["a", "b"], ["b", "c", "a"], ["c", "b"], ["c"], "c"):
            answer = await asked(app, given)
            told.append((answer.head["x-gateway-cache"], answer.head["x-gateway-cached-items"]))
            assert values(answer) == of(*given)
            await until(lambda: app.embedder is not None and not len(app.embedder))
        assert told == [("miss", "0/2"), ("miss", "2/3"), ("hit", "2/2"), ("hit", "1/1"), ("hit", "1/1")]
        assert [turn.json()["input"] for turn in engine.requests] == [["a", "b"], ["c"]]
        assert 0 <= int(answer.head["age"] or "") <= time.time() - began
        page = (await get(app.url, "/metrics")).body.decode()
    for line in (
        'gateway_embed_items_total{source="cache"} 6',
        'gateway_embed_items_total{source="asked"} 3',
        'gateway_cache_operations_total{op="store"} 3',  # what came from the store is not stored again
        "gateway_embed_array_items_count{} 2",
        "gateway_embed_array_items_sum{} 3",
    ):
        assert line in page.replace("_items_count ", "_items_count{} ").replace("_items_sum ", "_items_sum{} "), (
            page
        )
    counted = [
        (line["items"], line.get("items_cached"))
        for line in lines(log)
        if line["msg"] == "request" and "items" in line
    ]
    assert counted == [(2, 0), (3, 2), (2, 2), (1, 1), (1, 1)]


async def test_no_cache_asks_anew_and_replaces_what_is_stored(engine: Engine, redis: str) -> None:
    async with gateway(engine, redis=redis) as app:
        engine.auto(embed)
        for headers in ((), (("cache-control", "no-cache"),), ()):
            answer = await asked(app, "a", headers)
            await until(lambda: app.embedder is not None and not len(app.embedder))
        assert len(engine.requests) == 2
        assert answer.json()["id"] == f"embd-{2:016x}"


async def test_encodings_are_kept_apart_and_each_is_the_engine_s(engine: Engine, redis: str) -> None:
    engine.auto(echo_script())
    async with gateway(engine, redis=redis) as app:
        for _ in range(2):
            for form in ("float", "base64"):
                through = await asked(app, ["a"], encoding_format=form)
                direct = await post_json(engine.url, PATH, ask(["a"], encoding_format=form))
                assert values(through) == values(direct)
                await until(lambda: app.embedder is not None and not len(app.embedder))
        assert through.head["x-gateway-cache"] == "hit"


@pytest.mark.parametrize(
    "name",
    [
        "embed-one",
        "embed-list",
        "embed-ids",
        "embed-base64",
        "embed-error-dimensions",
        "embed-error-empty",
        "embed-error-too-long",
    ],
)
async def test_a_recorded_answer_to_one_client_comes_through_byte_for_byte(name: str) -> None:
    async with Engine(script=replay(name)) as engine, gateway(engine) as app:
        body = golden_request(name).partition(b"\r\n\r\n")[2]
        answer = await call(app.url, "POST", PATH, body)
        assert answer.body == golden_response(name).partition(b"\r\n\r\n")[2]
        assert engine.requests[0].json() == json.loads(body)


async def test_what_shares_nothing_goes_up_alone_as_it_came(engine: Engine) -> None:
    headers = (("x-gateway-share", "off"),)
    async with gateway(engine, embed_batch_calls=1) as app:
        tasks = [asyncio.create_task(asked(app, "a", headers, user="u")) for _ in range(2)]
        turns = [await engine.next_request() for _ in tasks]
        for turn in turns:
            assert turn.json() == ask("a", user="u")
            await embed(turn)
        assert {(await task).head["x-gateway-cache"] for task in tasks} == {"bypass"}


async def test_two_credentials_share_no_array(engine: Engine) -> None:
    async with gateway(engine) as app:
        tasks = [asyncio.create_task(asked(app, "a", (("authorization", f"Bearer {n}"),))) for n in range(2)]
        for turn in [await engine.next_request() for _ in tasks]:
            assert turn.json()["input"] == "a"
            await embed(turn)
        for task in tasks:
            await task


async def test_one_item_an_array_is_as_if_there_were_none(engine: Engine) -> None:
    async with gateway(engine, embed_batch_items=1) as app:
        tasks = [asyncio.create_task(asked(app, text)) for text in "ab"]
        for turn in [await engine.next_request() for _ in tasks]:
            await embed(turn)
        for answer in [await task for task in tasks]:
            assert "x-gateway-cached-items" not in answer.head


async def test_a_poisoned_input_fails_its_owner_alone(engine: Engine) -> None:
    async def choosy(turn: Turn) -> None:
        if "long" in turn.json()["input"]:
            await turn.respond(400, {"error": {"message": "too long", "code": 400}})
        else:
            await embed(turn)

    async with gateway(engine, embed_batch_calls=1) as app:
        first = asyncio.create_task(asked(app, ["first"]))
        turn = await engine.next_request()
        others = [asyncio.create_task(asked(app, [text])) for text in ("a", "b", "long", "c")]
        await waiting(app, 4)
        engine.auto(choosy)
        await embed(turn)
        answers = [await other for other in others]
        assert [answer.status for answer in answers] == [200, 200, 400, 200]
        assert answers[2].json()["error"]["message"] == "too long"
        await first
        page = (await get(app.url, "/metrics")).body.decode()
        assert "gateway_embed_arrays_split_total 2" in page.replace("{}", "")
        assert "gateway_embed_refused_items_total 1" in page.replace("{}", "")


async def test_an_engine_that_takes_one_input_at_a_time_refuses_an_array_of_several_clients_once(
    engine: Engine,
) -> None:
    async def one_by_one(turn: Turn) -> None:
        if len(turn.json()["input"]) > 1:
            await turn.respond(400, {"error": {"message": "one input, please", "code": 400}})
        else:
            await embed(turn)

    async with gateway(engine, embed_batch_calls=1) as app:
        for round_, refused in ((0, 3), (1, 3)):
            engine.auto(None)
            first = asyncio.create_task(asked(app, ["first"]))
            turn = await engine.next_request()
            others = [asyncio.create_task(asked(app, [f"{text}{round_}"])) for text in "abcd"]
            await waiting(app, 4)
            engine.auto(one_by_one)
            await embed(turn)
            assert [(await other).status for other in [first, *others]] == [200] * 5
            assert sum(len(turn.json()["input"]) > 1 for turn in engine.requests) == refused


async def test_an_input_that_left_may_have_been_the_bad_one(engine: Engine) -> None:
    async with gateway(engine, embed_batch_calls=1) as app:
        (backend,) = app.backends.all
        first = asyncio.create_task(asked(app, ["first"]))
        turn = await engine.next_request()
        good, bad = (asyncio.create_task(asked(app, [text])) for text in ("good", "bad"))
        await waiting(app, 2)
        await embed(turn)
        both = await engine.next_request()
        assert both.json()["input"] == ["good", "bad"]
        bad.cancel()
        await until(lambda: len(app.group) == 2)  # the request that stays, and its array
        await both.respond(400, {"error": {"message": "bad", "code": 400}})
        await embed(await engine.next_request())
        assert [(await task).status for task in (first, good)] == [200, 200]
        assert backend.abilities.mixes


async def test_who_leaves_is_not_asked_for_and_the_last_one_stops_the_engine(engine: Engine) -> None:
    async with gateway(engine, embed_batch_calls=1) as app:
        async with streaming(app.url, PATH, ask(["first"])):
            turn = await engine.next_request()
            async with streaming(app.url, PATH, ask(["gone"])):
                await waiting(app, 1)
            stays = asyncio.create_task(asked(app, "stays"))
            await until(lambda: app.group.subscribers == 2)
            await waiting(app, 1)
        await turn.cancelled()
        turn = await engine.next_request()
        assert turn.json()["input"] == "stays"
        await embed(turn)
        assert values(await stays) == of("stays")


async def test_only_what_is_asked_is_charged(engine: Engine, redis: str) -> None:
    """60 tokens a minute. Reserved for the last request are 9; the two before it used 6 and 1, not 6 and 7."""
    limits: dict[str, Any] = {"rate_limit_tokens_per_minute": 60}
    engine.auto(embed)
    async with gateway(engine, redis=redis, **limits) as app:
        assert app.admission is not None
        meters = app.admission.limiter.local
        words = "one two three four five six"
        taken = []
        for given in ([words], [words, "seven"], [words, "seven"]):
            answer = await asked(app, given)
            assert answer.status == 200
            await until(lambda: meters.streams == 0 and app.embedder is not None and not len(app.embedder))
            taken.append(int(answer.head["x-ratelimit-remaining-tokens"]))
    assert answer.json()["usage"]["prompt_tokens"] == 7
    assert taken[2] >= 60 - 6 - 1 - 9, taken

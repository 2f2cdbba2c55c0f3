"""OpenAI's Responses over loopback: each engine keeps its own responses, as vLLM does in memory; requests that
refer to one reach its engine, and only from its tenant."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from proxy.access.ratelimit import Limit, Limits
from proxy.app import App
from proxy.server.handlers import responses
from tests import golden
from tests.kit.client import Answer, call, get, post_json, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script
from tests.kit.late import late
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, gateway, lines, until
from tests.proxy.access.ratelimit.test_admission import levels
from tests.proxy.access.test_policy import bearer, entry

if TYPE_CHECKING:
    import openai
else:
    openai = late("openai")

PATH = "/v1/responses"
STREAM = golden.load("responses-stream")
BODY = golden.load("responses")
ASK: dict[str, Any] = {"model": "m1", "input": "Name a colour", "temperature": 0}
ASK_STREAM = ASK | {"stream": True}
COMMENT = b": keep-alive\n\n"
JSON = [("content-type", "application/json")]
NUMBERS = count()


class Keeper:
    """An engine's script: it answers from memory, and knows only what it generated."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}

    async def __call__(self, turn: Turn) -> None:
        parts = turn.path.partition("?")[0].split("/")[3:]
        if parts:
            kept = self.kept.get(parts[0])
            if kept is None:
                await turn.respond(
                    404, {"error": {"message": f"Response with id '{parts[0]}' not found.", "code": 404}}
                )
            elif turn.method == "DELETE":
                del self.kept[parts[0]]
                await turn.respond(200, {"id": parts[0], "deleted": True})
            else:
                await turn.respond(200, kept | ({"status": "cancelled"} if parts[1:] == ["cancel"] else {}))
            return
        ask = turn.json()
        previous = ask.get("previous_response_id")
        if previous is not None and previous not in self.kept:
            await turn.respond(
                404, {"error": {"message": f"Response with id '{previous}' not found.", "code": 404}}
            )
            return
        id = ask.get("request_id") or f"resp_{next(NUMBERS)}"
        self.kept[id] = BODY.json() | {"id": id, "previous_response_id": previous}
        if ask.get("background"):
            await turn.respond(200, self.kept[id] | {"status": "queued", "output": [], "usage": None})
        elif turn.wants_stream:
            await turn.start()
            await turn.end(*named(id))
        else:
            await turn.respond(200, self.kept[id])


def named(id: str) -> list[bytes]:
    """The recorded events, of a response of this id."""
    return [frame.replace(b"resp_98cc9e8f4eeb1e3d", id.encode()) for frame in STREAM.frames()]


@asynccontextmanager
async def engines() -> AsyncIterator[list[Engine]]:
    async with Engine(Keeper()) as one, Engine(Keeper()) as two:
        yield [one, two]


def keys_file(tmp_path: Path) -> str:
    path = tmp_path / "keys.toml"
    path.write_text(entry("ka", "team-a") + entry("kb", "team-b"))
    path.chmod(0o600)
    return str(path)


@pytest.fixture(autouse=True, scope="module")
def client() -> None:
    """It is imported before a loop runs, which the import would hold up for seconds."""
    _ = openai.AsyncOpenAI


def client_of(app: App, key: str = "k") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=key, base_url=f"{app.url}/v1", max_retries=0)


CHAT = "/v1/chat/completions"
TEXT = {"type": "text", "text": "z"}


def code_of(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["error"]["code"]


@pytest.mark.parametrize("keyed", [False, True], ids=["open", "keys"])
async def test_conversations_stay_with_the_engine_that_keeps_them_and_the_log_has_their_tokens(
    tmp_path: Path, keyed: bool
) -> None:
    log = tmp_path / "log"
    settings = {"api_keys_file": keys_file(tmp_path)} if keyed else {}
    async with (
        engines() as both,
        gateway(*both, routing="round-robin", log_to=log, **settings) as app,
        client_of(app, "ka") as client,
    ):
        for number in range(4):
            if number % 2:
                await client.responses.create(**ASK)  # so that the next one begins at the other engine
            first = await client.responses.create(**ASK)
            assert first.output_text == "The colour I am referring to is a"
            events = [
                event
                async for event in await client.responses.create(**ASK, stream=True, previous_response_id=first.id)
            ]
            created, completed = events[0], events[-1]
            assert created.type == "response.created"
            assert completed.type == "response.completed"
            assert completed.response.usage is not None
            third = await client.responses.create(**ASK, previous_response_id=created.response.id)
            for id in first.id, created.response.id, third.id:
                assert (await client.responses.retrieve(id)).id == id
            assert (await client.responses.cancel(third.id)).status == "cancelled"
            assert (await get(app.url, f"{PATH}/{third.id}/input_items?limit=2", bearer("ka"))).status == 200
            assert (await call(app.url, "DELETE", f"{PATH}/{third.id}", b"", bearer("ka"))).status == 200
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(third.id)
            background = await client.responses.create(**ASK, background=True, store=True)
            assert background.status == "queued"
            assert (await client.responses.retrieve(background.id)).id == background.id
        assert min(len(engine.requests) for engine in both) > 8
    told = [line for line in lines(log) if line["msg"] == "request" and line["endpoint"] == "responses"]
    assert len(told) == 18
    for line in told:
        whole = [line.get(name) for name in ("prompt_tokens", "completion_tokens", "token_source")]
        assert whole in ([33, 8, "usage"], [None, None, None])  # of the background's, nothing is known yet
        assert line["ttft_ms"] is not None
    assert [line["completion_tokens"] for line in told if line["stream"]] == [8] * 4


async def test_a_gateway_beside_it_finds_them_in_redis_and_with_redis_away_says_so(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"api_keys_file": keys_file(tmp_path)}
    async with engines() as both, redis_server() as path:
        async with gateway(*both, redis=f"unix://{path}", **settings) as one:
            ids = [(await post_json(one.url, PATH, ASK, bearer("ka"))).json()["id"] for _ in range(4)]
            async with gateway(*both, redis=f"unix://{path}", **settings) as two:
                for id in ids:
                    assert (await get(two.url, f"{PATH}/{id}", bearer("ka"))).status == 200
                    assert code_of(await get(two.url, f"{PATH}/{id}", bearer("kb"))) == (404, "response_not_found")
        async with gateway(*both, redis="redis://127.0.0.1:1", **settings) as other:
            assert code_of(await get(other.url, f"{PATH}/{ids[0]}", bearer("ka"))) == (503, "cache_unavailable")


async def test_no_tenant_reaches_anothers_response_by_any_path(tmp_path: Path) -> None:
    async with engines() as both, gateway(*both, api_keys_file=keys_file(tmp_path)) as app:
        id = (await post_json(app.url, PATH, ASK, bearer("ka"))).json()["id"]
        asked = sum(len(engine.requests) for engine in both)
        tries = [
            ("GET", f"{PATH}/{id}", b""),
            ("GET", f"/v1//responses/./{id}/?stream=true", b""),
            ("GET", f"/v1/%72esponses/{id}/input_items", b""),
            ("POST", f"{PATH}/{id}/cancel", b""),
            ("DELETE", f"{PATH}/{id}", b""),
            ("POST", PATH, json.dumps(ASK | {"previous_response_id": id}).encode()),
            ("POST", PATH, json.dumps(ASK_STREAM | {"previous_response_id": id}).encode()),
            ("POST", f"{PATH}/compact", json.dumps(ASK | {"previous_response_id": id}).encode()),
            ("GET", f"{PATH}/{'x' * 3000}", b""),
        ]
        for method, path, body in tries:
            answer = await call(app.url, method, path, body, [*bearer("kb"), *(JSON if body else [])])
            assert code_of(answer) == (404, "response_not_found"), path
            assert "known for you" in answer.json()["error"]["message"]
        named_by_client = await post_json(app.url, PATH, ASK | {"request_id": id, "store": False}, bearer("kb"))
        assert code_of(named_by_client) == (400, "invalid_value")
        assert sum(len(engine.requests) for engine in both) == asked
        assert (await get(app.url, f"{PATH}/{id}", bearer("ka"))).status == 200


async def test_without_keys_an_unknown_id_is_looked_for_at_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    async with engines() as both:
        async with gateway(*both) as before:
            ids = [(await post_json(before.url, PATH, ASK)).json()["id"] for _ in range(3)]
        async with gateway(*both) as app:  # it knows none of them
            for id in ids:
                assert (await post_json(app.url, PATH, ASK | {"previous_response_id": id})).status == 200
            assert code_of(await get(app.url, f"{PATH}/resp_nowhere")) == (404, "response_not_found")
            monkeypatch.setattr(responses, "ASKS", Limits(streams=0))
            assert code_of(await get(app.url, f"{PATH}/resp_nowhere")) == (503, "queue_full")
            monkeypatch.undo()
        async with gateway(*both) as app:
            both[1].auto(lambda turn: turn.respond(500))
            assert code_of(await get(app.url, f"{PATH}/resp_nowhere")) == (503, "no_backend")
        async with gateway(both[0]) as app:  # the only engine answers for itself
            assert (await get(app.url, f"{PATH}/resp_nowhere")).json()["error"]["code"] == 404


async def test_one_client_cannot_use_up_the_questions_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "OWN_ASKS", Limits(Limit(0.001, 2)))
    monkeypatch.setattr(responses, "ASKS", Limits(Limit(0.001, 5)))
    async with engines() as both, gateway(*both, trusted_proxies=("127.0.0.1",)) as app:

        async def code(client: str) -> str:
            answer = await get(app.url, f"{PATH}/resp_nowhere", [("x-forwarded-for", client)])
            assert answer.status == 404 or answer.head["retry-after"] == "1"
            return str(code_of(answer)[1])

        for client in ("10.0.0.1", "10.0.0.2"):
            codes = [await code(client) for _ in range(3)]
            assert codes == ["response_not_found", "response_not_found", "rate_limit_exceeded"]
        assert [await code(f"10.0.0.{n}") for n in (3, 4)] == ["response_not_found", "queue_full"]


async def test_after_its_engine_is_gone_the_client_reads_that(tmp_path: Path) -> None:
    async with engines() as both, gateway(*both, retries=0, refresh_seconds=0.05) as app:
        answer = await post_json(app.url, PATH, ASK)
        id = answer.json()["id"]
        keeper = next(engine for engine in both if engine.requests)
        keeper.stop_listening()
        await keeper.drop_connections()
        await until(lambda: any(backend.missed for backend in app.backends.all))
        for method, path, body in (
            ("GET", f"{PATH}/{id}", b""),
            ("POST", PATH, json.dumps(ASK | {"previous_response_id": id}).encode()),
        ):
            told = await call(app.url, method, path, body, JSON if body else [])
            assert code_of(told) == (404, "response_not_found")
            assert "gone" in told.json()["error"]["message"]
        assert (await post_json(app.url, PATH, ASK)).status == 200  # at the other one


async def test_a_response_is_known_as_soon_as_it_is_created_and_waits_for_its_own_engine_only() -> None:
    async with engines() as both:
        for engine in both:
            engine.auto(None)
        async with (
            gateway(*both, max_inflight=1, routing="round-robin") as app,
            streaming(app.url, PATH, ASK_STREAM) as client,
        ):
            await until(lambda: bool(both[0].requests or both[1].requests))
            here, there = both if both[0].requests else both[::-1]
            turn = await here.next_request()
            await turn.start()
            await turn.frame(*named("resp_early")[:2])
            await client.event()
            waiting = asyncio.create_task(get(app.url, f"{PATH}/resp_early"))
            await until(lambda: len(app.scheduler.queue) == 1)  # its engine is full
            beside = asyncio.create_task(post_json(app.url, PATH, ASK))
            await (await there.next_request()).respond(200, BODY.body)
            assert (await beside).status == 200  # it does not wait behind the other
            await turn.end(*named("resp_early")[2:])
            await client.read()
            await (await here.next_request()).respond(200, BODY.body)
            assert (await waiting).status == 200


async def test_of_several_ids_in_one_answer_the_first_is_its_own(engine: Engine, tmp_path: Path) -> None:
    async with gateway(engine, api_keys_file=keys_file(tmp_path)) as app:
        post = asyncio.create_task(post_json(app.url, PATH, ASK_STREAM, bearer("ka")))
        turn = await engine.next_request()
        await turn.start()
        await turn.end(named("resp_first")[0], *named("resp_second")[1:])
        assert (await post).status == 200
        engine.auto(Keeper())
        for id, known in (("resp_first", True), ("resp_second", False)):
            answer = await get(app.url, f"{PATH}/{id}", bearer("ka"))
            assert (answer.json()["error"]["code"] == 404) is known  # the engine's own, or ours


async def test_equal_requests_are_never_one_generation(engine: Engine) -> None:
    engine.auto(Keeper())
    async with gateway(engine, share="all") as app:
        answers = await asyncio.gather(*(post_json(app.url, PATH, ASK | {"store": False}) for _ in range(3)))
        assert len({answer.json()["id"] for answer in answers}) == 3
        assert [answer.head["x-gateway-cache"] for answer in answers] == ["bypass"] * 3


@pytest.mark.parametrize("how", ["ends", "drops", "stops"])
async def test_a_stream_that_is_cut_ends_with_an_error_event_and_openais_client_raises(
    engine: Engine, how: str
) -> None:
    settings: dict[str, Any] = {"token_timeout": 0.1} if how == "stops" else {}
    async with gateway(engine, **settings) as app, client_of(app) as client:
        kinds = []

        async def read() -> None:
            async for event in await client.responses.create(**ASK, stream=True):
                kinds.append(event.type)

        reading = asyncio.create_task(read())
        turn = await engine.next_request()
        await turn.start()
        await turn.frame(*named("resp_cut")[:6], b"event: response.output_text.delta\ndata: {")
        if how == "ends":
            await turn.end()
        elif how == "drops":
            await turn.drop(reset=True)
        with pytest.raises(openai.APIError) as raised:
            await reading
        assert len(kinds) == 6
        assert raised.value.code == ("upstream_token_timeout" if how == "stops" else "upstream_truncated")
        body = raised.value.body
        assert isinstance(body, dict)


async def test_keep_alives_come_in_queue_and_prefill_though_the_first_events_have_come(engine: Engine) -> None:
    frames = named("resp_slow")
    settings: dict[str, Any] = {"keepalive_seconds": 0.04, "max_inflight": 1, "token_timeout": 0.2}
    async with gateway(engine, **settings) as app, streaming(app.url, PATH, ASK_STREAM) as one:
        turn = await engine.next_request()
        async with streaming(app.url, PATH, ASK_STREAM) as two:
            for client in (one, two):
                await client.read_head()
                assert await client.chunk() == COMMENT
            await turn.start()
            await turn.frame(*frames[:2])
            seen = b""
            while seen.count(COMMENT) < 10:  # for longer than the time between two tokens may be: it is prefill
                seen += await one.chunk() or b"the end"
            await turn.end(*frames[2:])
            seen += b"".join([event.raw async for event in one.events()])
            assert seen.replace(COMMENT, b"") == b"".join(frames)
            await (await engine.next_request()).respond(
                400, {"error": {"message": "no", "code": "bad", "param": "x"}}
            )
            (told,) = [event.json() async for event in two.events() if event.raw != COMMENT]
            assert (told["type"], told["code"], told["message"], told["param"]) == ("error", "bad", "no", "x")
            assert told["error"]["message"] == "no"


async def test_tokens_are_charged_by_the_engines_count_and_a_background_one_by_the_estimate(
    engine: Engine,
) -> None:
    async with gateway(engine, rate_limit_tokens_per_minute=10_000) as app:
        post = asyncio.create_task(post_json(app.url, PATH, ASK | {"background": True, "max_output_tokens": 500}))
        turn = await engine.next_request()
        await turn.respond(200, BODY.json() | {"status": "queued", "usage": None})
        assert (await post).status == 200
        await until(lambda: levels(app).streams == 0)
        assert levels(app).tokens > 450
        post = asyncio.create_task(post_json(app.url, PATH, ASK_STREAM))
        turn = await engine.next_request()
        await turn.start()
        await turn.end(*(frame.replace(b'"output_tokens":8', b'"output_tokens":1000000') for frame in named("r")))
        assert (await post).status == 200
        await until(lambda: levels(app).streams == 0)
        assert levels(app).tokens > 0.9 * 10**6


async def test_a_large_request_that_is_read_in_another_process_goes_to_its_engine_too() -> None:
    async with engines() as both, gateway(*both, routing="round-robin", max_body_bytes=2**24) as app:
        ids = [(await post_json(app.url, PATH, ASK)).json()["id"] for _ in range(2)]
        for id in ids * 2:
            ask = ASK_STREAM | {"previous_response_id": id, "input": "word " * 500_000}
            answer = await post_json(app.url, PATH, ask)
            assert (answer.status, answer.head["content-type"][:17]) == (200, "text/event-stream")


async def test_a_conversation_that_a_fallback_began_goes_on_with_its_model() -> None:
    async def busy(turn: Turn) -> None:
        await turn.respond(503, b'{"error": {}}')

    async with Engine(busy, models=["m1"]) as one, Engine(Keeper(), models=["m2"]) as two:
        falls = (("m1", ("m2",)),)
        async with gateway(one, two, models=(("chat", (("m1", 1.0),)),), model_fallbacks=falls, retries=0) as app:
            for name in ("m1", "chat"):
                first = await post_json(app.url, PATH, ASK | {"model": name})
                assert (first.status, first.head["x-gateway-fallback"]) == (200, "m1")
                ask = ASK | {"model": name, "previous_response_id": first.json()["id"]}
                second = await post_json(app.url, PATH, ask)
                assert (second.status, second.head["x-gateway-model"]) == (200, "m2")
                assert json.loads(two.requests[-1].body)["model"] == "m2"


@pytest.mark.parametrize("header", ["cache-control", "x-gateway-share", "x-session-id"])
async def test_a_header_that_is_no_text_costs_a_large_request_no_reading_process(header: str) -> None:
    async with Engine(echo_script()) as engine, gateway(engine) as app:
        body = json.dumps(HELLO | {"messages": [{"role": "user", "content": [TEXT] * 15_000}]}).encode()
        honest = await call(app.url, "POST", CHAT, body, [("content-type", "application/json")])
        assert honest.status == 200
        assert app.large is not None
        pids = list(app.large.pool.pids)
        odd = [("content-type", "application/json"), (header, "\xff")]
        answer = await call(app.url, "POST", CHAT, body, odd)
        assert answer.status in (200, 400)
        assert list(app.large.pool.pids) == pids

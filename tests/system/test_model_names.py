"""Aliases, weights, fallbacks, adapters that come meanwhile: what the engine gets and what the client is told."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from proxy.app import App, running
from proxy.config.settings import Settings
from proxy.errors import SettingsError
from proxy.telemetry.log import Log
from proxy.upstream import State
from tests.kit.client import Answer, call, get, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_turn import Turn
from tests.kit.forms import FORM_TYPE, form_of
from tests.kit.running import DEFAULTS, HELLO, HELLO_STREAM, gateway, lines, until

CHAT = "/v1/chat/completions"
ALIASES: Any = (("gpt-4o", (("m1", 1.0),)), ("deep", (("gpt-4o", 1.0),)))
CANARY: Any = (("chat", (("m1", 1.0), ("m2", 1.0))),)
LONG = "," * 30_000  # so many that it is read in another process
FALLS: Any = (("m1", ("m2",)),)


@asynccontextmanager
async def engines(*models: str | tuple[str, ...]) -> AsyncIterator[list[Engine]]:
    """One engine for each entry, with the models of it; each answers by `echo_script`."""
    async with AsyncExitStack() as stack:
        named = [(each,) if isinstance(each, str) else each for each in models]
        yield [await stack.enter_async_context(Engine(echo_script(), models=names)) for names in named]


async def ask(app: App, model: str, headers: Any = (), **more: Any) -> Answer:
    return await post_json(app.url, CHAT, HELLO | {"model": model} | more, headers)


def sent(engine: Engine) -> list[str]:
    return [turn.json()["model"] for turn in engine.requests]


# -- aliases ------------------------------------------------------------------------------------------------


async def test_every_endpoint_knows_an_alias_and_only_the_model_of_the_body_changes(engine: Engine) -> None:
    engine.auto(echo_script())
    large = {"model": "gpt-4o", "messages": [{"role": "user", "content": LONG}], "temperature": 0}
    form = form_of(b"x", {"model": "gpt-4o", "language": "de"})
    async with gateway(engine, models=ALIASES) as app:
        for stream in (False, True):
            answer = await ask(app, "deep", stream=stream, odd=[1.0, {"model": "gpt-4o"}])
            assert (answer.status, answer.head["x-gateway-model"]) == (200, "m1")
            assert b'"model":"m1"' in answer.body.replace(b" ", b"")
            body = engine.requests[-1].json()
            assert body["model"] == "m1"
            assert body["odd"] == [1.0, {"model": "gpt-4o"}]
            assert engine.requests[-1].body.count(b'"m1"') == 1
        assert (await post_json(app.url, CHAT, large)).head["x-gateway-model"] == "m1"
        assert engine.requests[-1].json() == large | {"model": "m1"}
        assert (await post_json(app.url, CHAT, large | {"stream": True})).head["x-gateway-cache"] == "miss"
        assert (await post_json(app.url, "/v1/completions", {"model": "gpt-4o", "prompt": "a"})).status == 200
        assert (await post_json(app.url, "/v1/embeddings", {"model": "gpt-4o", "input": "a"})).status == 200
        assert (await post_json(app.url, "/embed", {"model": "gpt-4o", "input": "b"})).status == 200
        engine.auto(lambda turn: turn.respond(200, b"{}"))
        for path in ("/v1/responses", "/v1/messages", "/v1/rerank", "/tokenize"):
            answer = await post_json(app.url, path, {"model": "gpt-4o", "a": [1.0], "n": 2})
            assert answer.head["x-gateway-model"] == "m1"
            assert engine.requests[-1].json() == {"model": "m1", "a": [1.0], "n": 2}
        answer = await post_json(app.url, "/v1/responses", large)
        assert engine.requests[-1].json() == large | {"model": "m1"}
        answer = await call(app.url, "POST", "/v1/audio/transcriptions", form, [FORM_TYPE])
        assert (answer.status, answer.head["x-gateway-model"]) == (200, "m1")
        assert engine.requests[-1].body == form_of(b"x", {"model": "m1", "language": "de"})
        assert {turn.json()["model"] for turn in engine.requests[:-1]} == {"m1"}
        listed = (await get(app.url, "/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["m1", "gpt-4o", "deep"]
        one = await get(app.url, "/v1/models/deep")
        assert one.json() == listed[0] | {"id": "deep"}
        plain = await ask(app, "m1")
        assert "x-gateway-model" not in plain.head
        assert (await ask(app, "none")).head.get("x-gateway-model") is None


async def test_names_of_one_model_share_an_answer(engine: Engine) -> None:
    async with gateway(engine, models=ALIASES) as app:
        tasks = [asyncio.create_task(ask(app, name, stream=True)) for name in ("m1", "gpt-4o", "deep")]
        turn = await engine.next_request()
        await until(lambda: sum(len(flight.subscribers) for flight in app.group.live) == 3)
        await turn.send("one")
        await turn.finish()
        answers = await asyncio.gather(*tasks)
    assert len(engine.requests) == 1
    assert len({answer.body for answer in answers}) == 1
    assert [answer.head.get("x-gateway-model") for answer in answers] == [None, "m1", "m1"]


async def test_a_key_names_what_its_client_may_send(engine: Engine, tmp_path: Path) -> None:
    engine.auto(echo_script())
    keys = tmp_path / "keys.toml"
    keys.write_text(
        f'[[keys]]\nname = "app"\nsha256 = "{sha256(b"secret-key-1").hexdigest()}"\nmodels = ["gpt-4o"]\n'
    )
    log = tmp_path / "log"
    auth = [("Authorization", "Bearer secret-key-1")]
    async with gateway(engine, models=ALIASES, api_keys_file=str(keys), log_to=log) as app:
        assert (await ask(app, "gpt-4o", auth)).status == 200
        refused = await ask(app, "m1", auth)
        assert (refused.status, refused.json()["error"]["code"]) == (404, "model_not_found")
        assert (await post_json(app.url, "/v1/responses", {"model": "m1"}, auth)).status == 404
        listed = (await get(app.url, "/v1/models", auth)).json()["data"]
        assert [model["id"] for model in listed] == ["gpt-4o"]
    (line,) = [line for line in lines(log) if line.get("endpoint") == "chat" and line["status"] == 200]
    assert (line["model_id"], line["asked_model"]) == ("m1", "gpt-4o")


# -- weights ------------------------------------------------------------------------------------------------


async def test_weights_divide_sessions_and_a_session_keeps_its_model() -> None:
    async with engines("m1", "m2") as (one, two), gateway(one, two, models=CANARY) as app:
        first = [await ask(app, "chat", [("x-session-id", f"s{n}")]) for n in range(40)]
        again = [await ask(app, "chat", [("x-session-id", f"s{n}")], stream=True) for n in range(40)]
        raw = await post_json(app.url, "/v1/responses", {"model": "chat"}, [("x-session-id", "s0")])
        prompts = [await ask(app, "chat", messages=[{"role": "user", "content": str(n)}]) for n in range(40)]
        strange = {
            (await post_json(app.url, "/v1/responses", body, [("x-session-id", "caf\xe9")])).head[
                "x-gateway-model"
            ]
            for body in ({"model": "chat"}, {"model": "chat", "input": LONG})
        }
        same = {(await ask(app, "chat")).head["x-gateway-model"] for _ in range(10)}
    models = [answer.head["x-gateway-model"] for answer in first]
    assert models == [answer.head["x-gateway-model"] for answer in again]
    assert raw.head["x-gateway-model"] == models[0]
    for count in (Counter(models), Counter(answer.head["x-gateway-model"] for answer in prompts)):
        assert min(count["m1"], count["m2"]) > 5, count
    assert len(same) == len(strange) == 1
    assert set(sent(one)) == {"m1"}
    assert set(sent(two)) == {"m2"}


# -- fallbacks ----------------------------------------------------------------------------------------------


async def test_another_model_answers_where_no_engine_of_one_is_up(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with (
        engines("m1", "m2") as (one, two),
        gateway(one, two, model_fallbacks=FALLS, models=ALIASES, log_to=log, refresh_seconds=30.0) as app,
    ):
        before = await ask(app, "m1")
        assert "x-gateway-fallback" not in before.head
        one.stop_listening()
        await one.drop_connections()
        for stream in (False, True):
            for name in ("m1", "gpt-4o"):
                answer = await ask(app, name, stream=stream)
                assert (answer.status, answer.head["x-gateway-model"]) == (200, "m2")
                assert answer.head["x-gateway-fallback"] == "m1"
                assert b'"model":"m2"' in answer.body.replace(b" ", b"")
        two.auto(lambda turn: turn.respond(200, b"{}"))
        raw = await post_json(app.url, "/v1/responses", {"model": "m1", "input": "a"})
        assert (raw.status, raw.head["x-gateway-fallback"], two.requests[-1].json()["model"]) == (200, "m1", "m2")
        large = {"model": "gpt-4o", "input": LONG}
        assert (await post_json(app.url, "/v1/responses", large)).status == 200
        assert two.requests[-1].json() == large | {"model": "m2"}
        two.auto(echo_script())
        chat = {"model": "gpt-4o", "messages": [{"role": "user", "content": LONG}], "seed": 1}
        answer = await post_json(app.url, CHAT, chat)
        assert (answer.status, answer.head["x-gateway-fallback"]) == (200, "m1")
        assert two.requests[-1].json() == chat | {"model": "m2"}
        assert (await post_json(app.url, "/embed", {"model": "m1", "input": "b"})).head[
            "x-gateway-fallback"
        ] == "m1"
        metrics = (await get(app.url, "/metrics")).body.decode()
    assert 'gateway_model_fallbacks_total{model="m1",to="m2"} 8' in metrics
    told = [line for line in lines(log) if line.get("msg") == "model fallback"]
    assert told[0]["model"] == "m1"
    assert told[0]["to"] == "m2"
    logged = [line for line in lines(log) if "fallback_from" in line]
    assert {(line["model_id"], line["fallback_from"]) for line in logged} == {("m2", "m1")}


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_refusal_of_the_engines_falls_back_after_the_retries(status: int) -> None:
    async with (
        engines("m1", "m2") as (one, two),
        gateway(one, two, model_fallbacks=FALLS, retries=1, retry_backoff_ms=0.0, breaker_failures=0) as app,
    ):
        one.auto(lambda turn: turn.respond(status, b'{"error": {}}'))
        for stream in (False, True):
            answer = await ask(app, "m1", stream=stream, seed=int(stream))
            assert (answer.status, answer.head["x-gateway-fallback"]) == (200, "m1")
        assert len(one.requests) == 4
        raw = await post_json(app.url, "/v1/responses", {"model": "m1", "input": "a"})
        refused = status in (429, 503)  # else it may have run
        assert ("x-gateway-fallback" in raw.head) == refused
        assert len(one.requests) == 5


async def test_an_engine_with_an_open_breaker_is_not_asked_before_the_fallback() -> None:
    async with (
        engines("m1", "m2") as (one, two),
        gateway(one, two, model_fallbacks=FALLS, retries=0, breaker_failures=1, breaker_seconds=60.0) as app,
    ):
        one.auto(lambda turn: turn.respond(503, b'{"error": {}}'))
        assert (await ask(app, "m1")).status == 200
        breaker = app.backends.all[0].breaker
        await until(lambda: breaker.state is State.OPEN)
        before = len(one.requests)
        answer = await ask(app, "m1", seed=2)
        assert (answer.status, answer.head["x-gateway-fallback"]) == (200, "m1")
        assert len(one.requests) == before


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500])
async def test_an_answer_about_the_request_is_the_clients(status: int) -> None:
    async with engines("m1", "m2") as (one, two), gateway(one, two, model_fallbacks=FALLS) as app:
        one.auto(lambda turn: turn.respond(status, b'{"error": {"message": "no"}}'))
        for stream in (False, True):
            answer = await ask(app, "m1", stream=stream)
            assert answer.status == status
            assert "x-gateway-fallback" not in answer.head
        assert two.requests == []


async def test_after_the_first_byte_nothing_falls_back() -> None:
    async with engines("m1", "m2") as (one, two), gateway(one, two, model_fallbacks=FALLS, resume="off") as app:
        one.auto(None)
        task = asyncio.create_task(post_json(app.url, CHAT, HELLO_STREAM))
        turn = await one.next_request()
        await turn.send("one")
        await turn.drop(reset=True)
        answer = await task
    assert answer.status == 200
    assert b"upstream_truncated" in answer.body
    assert two.requests == []


async def test_a_stored_answer_is_only_ever_its_own_models() -> None:
    async with (
        engines("m1", "m2") as (one, two),
        gateway(one, two, model_fallbacks=FALLS, redis="auto", refresh_seconds=30.0) as app,
    ):
        assert (await ask(app, "m1")).head["x-gateway-cache"] == "miss"
        assert app.cache is not None
        await until(lambda: app.cache is not None and len(app.group) == 0)
        one.stop_listening()
        await one.drop_connections()
        other = [{"role": "user", "content": "other"}]
        assert (await ask(app, "m1", messages=other)).head["x-gateway-cache"] == "miss"
        await until(lambda: len(app.group) == 0)
        second = await ask(app, "m1", messages=other)
        assert (second.head["x-gateway-cache"], second.head["x-gateway-model"]) == ("hit", "m2")
        direct = await ask(app, "m2", messages=other)
        assert (direct.head["x-gateway-cache"], direct.body) == ("hit", second.body)
        stored = await ask(app, "m1")  # its engine is down, its answer is not
        assert stored.head["x-gateway-cache"] == "hit"
        assert "x-gateway-fallback" not in stored.head
        await one.listen()
        for backend in app.backends.all:
            app.backends.record_health(backend, down="")
        back = await ask(app, "m1", messages=other)
        assert (back.head["x-gateway-cache"], b'"m1"' in back.body) == ("miss", True)


async def test_with_every_model_down_the_client_gets_one_typed_error() -> None:
    falls = (("m1", ("m2", "m3")),)
    async with (
        engines("m1", "m2", "m3") as made,
        gateway(*made, model_fallbacks=falls, retries=0, refresh_seconds=30.0) as app,
    ):
        for engine in made:
            engine.stop_listening()
            await engine.drop_connections()
        answer = await ask(app, "m1")
        again = await ask(app, "m1")
    assert answer.status in (502, 503)
    assert again.status == 503
    assert again.json()["error"]["code"] == "no_backend"


async def test_a_client_that_has_waited_long_gets_comments_as_without_a_fallback() -> None:
    async with (
        engines("m1", "m2") as (one, two),
        gateway(one, two, model_fallbacks=FALLS, keepalive_seconds=0.05) as app,
    ):
        one.auto(None)
        async with streaming(app.url, CHAT, HELLO_STREAM) as client:
            turn = await one.next_request()
            assert (await client.read_head()).status == 200
            assert await client.chunk() == b": keep-alive\n\n"
            await turn.send("one")
            await turn.finish()
            assert (await client.read()).body.endswith(b"data: [DONE]\n\n")


# -- adapters -----------------------------------------------------------------------------------------------


async def test_an_adapter_that_was_loaded_meanwhile_answers_at_once() -> None:
    async with (
        engines("base", "base", "base") as made,
        gateway(*made, refresh_seconds=30.0, routing="round-robin") as app,
    ):

        async def script(turn: Any) -> None:
            engine = next(engine for engine in made if turn in engine.requests)
            if turn.json()["model"] not in engine.models:
                await turn.respond(404, {"error": {"message": "no such model", "param": "model"}})
            elif turn.path == CHAT:
                await echo_script()(turn)
            else:
                await turn.respond(200, b"{}")

        for engine in made:
            engine.auto(script)
        await ask(app, "base")
        made[2].models.append("lora")
        polls = sum(engine.polls["/v1/models"] for engine in made)
        answers = await asyncio.gather(
            *(ask(app, "lora", stream=n % 2 == 0, seed=n) for n in range(6)),
            *(post_json(app.url, "/v1/responses", {"model": "lora"}) for _ in range(3)),
        )
        assert [answer.status for answer in answers] == [200] * 9
        assert sum(engine.polls["/v1/models"] for engine in made) - polls == 3, "one look for all of them"
        unknown = await asyncio.gather(*(ask(app, f"none-{n}") for n in range(5)))
        assert [answer.status for answer in unknown] == [404] * 5
        assert sum(engine.polls["/v1/models"] for engine in made) - polls >= 6


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
async def test_an_engine_that_lacks_the_path_does_not_answer_for_an_unknown_model(path: str, stream: bool) -> None:
    async def embeds(turn: Turn) -> None:
        await turn.respond(404, {"detail": "Not Found"})

    async with engines("m1", "m2") as made:
        for engine in made:
            engine.auto(embeds)
        async with gateway(*made) as app:
            ask = HELLO | {"model": "none", "max_tokens": 8, "stream": stream}
            told = await post_json(app.url, path, ask)
            assert (told.status, told.json()["error"]["type"]) == (
                404,
                "not_found_error" if "messages" in path else "invalid_request_error",
            )
            assert "'none'" in told.json()["error"]["message"]
            nameless = await post_json(app.url, "/v1/rerank", {"query": "x"})
            assert (nameless.status, nameless.json()) == (404, {"detail": "Not Found"})
        async with gateway(made[0]) as app:  # the only engine answers for itself
            assert (await post_json(app.url, path, ask)).json() == {"detail": "Not Found"}


# -- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"models": (("gpt-4o", (("nowhere", 1.0),)),)},
            "models: 'gpt-4o' names 'nowhere', which no engine lists",
        ),
        ({"models": (("m1", (("m2", 1.0),)),)}, "models: 'm1' is a model of an engine too"),
        ({"model_fallbacks": (("m1", ("nowhere",)),)}, "model_fallbacks: 'm1' names 'nowhere'"),
    ],
)
async def test_names_that_do_not_fit_the_engines_end_the_start(changes: Any, says: str) -> None:
    async with engines("m1", "m2") as made:
        with pytest.raises(SettingsError, match=says):
            async with gateway(*made, **changes):
                pass


async def test_while_an_engine_is_away_an_unknown_model_is_a_warning(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with engines("m1", "m2") as (one, two):
        two.stop_listening()
        async with gateway(one, two, models=(("chat", (("m2", 1.0),)),), log_to=log):
            pass
    told = [line["detail"] for line in lines(log) if line.get("msg") == "settings"]
    assert told == ["models: 'chat' names 'm2', which no engine lists (not every engine has answered)"]


async def test_an_unknown_model_is_told_once_with_the_name_that_it_is_written_for() -> None:
    names = (("latest", (("chat", 1.0),)), ("chat", (("m1", 0.5), ("nowhere", 0.5))), ("new", (("latest", 1.0),)))
    async with engines("m1") as made:
        with pytest.raises(SettingsError) as raised:
            async with gateway(*made, models=names):
                pass
    assert str(raised.value) == "models: 'chat' names 'nowhere', which no engine lists"


async def test_names_change_while_running_and_wrong_ones_change_nothing(tmp_path: Path) -> None:
    async with engines("m1", "m2") as (one, two):
        path = tmp_path / "x.toml"
        path.write_text("")
        first = Settings(**DEFAULTS | {"backends": (one.url, two.url), "config": str(path), "models": ALIASES})
        now = [first]
        fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
        log = Log(fd)
        async with running(first, log, lambda: now[0]) as app:
            assert (await ask(app, "gpt-4o")).head["x-gateway-model"] == "m1"
            now[0] = replace(first, models=(("gpt-4o", (("m2", 1.0),)),), model_fallbacks=FALLS)
            await app.reload()
            assert (await ask(app, "gpt-4o")).head["x-gateway-model"] == "m2"
            assert (await ask(app, "deep")).status == 200  # the scripted engine takes any name
            large = {"model": "gpt-4o", "messages": [{"role": "user", "content": LONG}]}
            assert (await post_json(app.url, CHAT, large)).head["x-gateway-model"] == "m2"
            for wrong in ((("m1", (("m2", 1.0),)),), (("x", (("nowhere", 1.0),)),)):
                now[0] = replace(first, models=wrong)
                await app.reload()
                assert (await ask(app, "gpt-4o")).head["x-gateway-model"] == "m2"
        log.close(30)
        os.close(fd)
    told = [line for line in lines(tmp_path / "log") if line.get("setting") == "config"]
    assert [line["what"] for line in told if "what" in line] == [
        "engines: 0 added, 0 removed; 1 aliases, fallbacks of 1 models"
    ]
    reasons = [line["detail"] for line in told if line["msg"] == "settings refused"]
    assert [reason.partition(" is a model")[2] != "" for reason in reasons] == [True, False]
    assert "names 'nowhere', which no engine lists" in reasons[1]

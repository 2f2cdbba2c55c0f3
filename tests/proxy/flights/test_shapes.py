"""Probes: how an engine's answers become known, what that costs it, and what a probe is not taken in by."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from proxy.app import App
from tests.kit import engine_shapes as shapes
from tests.kit.client import get, post_json, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.engine_shapes import Shape
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until

CHAT = "/v1/chat/completions"


def asked(engine: Engine) -> list[tuple[str, bool, str]]:
    """What was asked of it in probes: path, whether streamed, model."""
    posts = [(turn.path, turn.json()) for turn in engine.probes if turn.method == "POST"]
    return [(path.rpartition("v1/")[2], body.get("stream") is True, body["model"]) for path, body in posts]


async def metric(app: App, name: str) -> list[str]:
    page = (await get(app.url, "/metrics")).body.decode()
    return [line for line in page.splitlines() if line.startswith(name)]


async def test_an_engine_is_asked_for_one_tiny_stream_and_body_when_it_comes_up(engine: Engine) -> None:
    async with gateway(engine, probe="on") as app:
        assert asked(engine) == [("chat/completions", True, "m1"), ("chat/completions", False, "m1")]
        bodies = [turn.json() for turn in engine.probes if turn.method == "POST"]
        assert all(body["max_tokens"] <= 8 and body["temperature"] == 0 and "seed" in body for body in bodies)
        assert bodies[0]["messages"] == bodies[1]["messages"]
        assert engine.generations == 0
        assert await metric(app, "gateway_backend_folds") == [f'gateway_backend_folds{{backend="{engine.url}"}} 1']
        (count,) = await metric(app, "gateway_probes_total")
        assert 'outcome="known"' in count
        assert count.endswith(" 1")
        assert not await metric(app, 'gateway_requests_total{endpoint="chat"')
        assert not await metric(app, "gateway_upstream_requests_total{")


async def test_an_engine_that_nobody_knows_is_asked_on_both_endpoints(engine: Engine) -> None:
    async with gateway(shapes.NEW_CONSTANTS.of(engine), probe="on"):
        kinds = {(path, streamed) for path, streamed, _ in asked(engine)}
        assert kinds == {(path, how) for path in ("chat/completions", "completions") for how in (True, False)}
        assert len(asked(engine)) <= 6  # a body more of each, where only bodies name the engine


async def test_with_probes_off_nothing_is_asked_and_streams_tell_of_known_versions(
    engine: Engine,
) -> None:
    async with gateway(engine, probe="off") as app:
        stream = asyncio.create_task(post_json(app.url, CHAT, HELLO_STREAM))
        await (await engine.next_request()).finish("a")
        await stream
        async with streaming(app.url, CHAT, HELLO_STREAM) as reader:
            turn = await engine.next_request()
            await turn.send("one")
            await reader.event()
            whole = asyncio.create_task(post_json(app.url, CHAT, HELLO))
            await until(lambda: app.group.subscribers == 2)
            await turn.finish()
            assert (await whole).head["x-gateway-cache"] == "attached"
        assert engine.probes == []
        assert engine.generations == 2


async def test_adapters_answer_as_their_model_and_names_of_one_model_alike(engine: Engine) -> None:
    engine.take("/v1/models")
    names = [("base", None, "/m"), ("alias", None, "/m"), ("lora", "base", "/l"), ("other", None, "/o")]
    listed = [{"id": name, "owned_by": "x", "parent": parent, "root": root} for name, parent, root in names]

    async def script(turn: Turn) -> None:
        await turn.respond(200, {"object": "list", "data": listed})

    engine.auto(script)
    async with gateway(engine, probe="on") as app:
        assert {model for _, _, model in asked(engine)} == {"base", "other"}
        abilities = app.backends.all[0].abilities
        assert all(abilities.knows(name, "chat") for name, _, _ in names)


async def test_an_engine_that_embeds_only_is_asked_for_no_token(engine: Engine) -> None:
    async def probe(turn: Turn) -> None:
        if turn.path == "/version":
            await turn.respond(200, {"version": "0.32.0"})
        else:
            await turn.respond(404, {"detail": "Not Found"})

    engine.on_probe = probe
    async with gateway(engine, probe="on") as app:
        assert asked(engine) == []
        assert app.backends.all[0].abilities.told() == []


async def test_a_probe_shows_the_engine_s_own_key_and_whose_it_is(engine: Engine, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-engine")
    async with gateway(engine, probe="on", backend_api_key_file=str(key)):
        assert {turn.headers.get("authorization") for turn in engine.probes} == {"Bearer sk-engine"}
        assert all(turn.headers["x-request-id"].startswith("gateway-probe-") for turn in engine.probes)


async def test_an_engine_at_work_is_asked_when_it_is_done(engine: Engine) -> None:
    async with gateway(engine, probe="on", refresh_seconds=0.1) as app:
        stream = asyncio.create_task(post_json(app.url, CHAT, HELLO_STREAM | {"temperature": 1}))
        turn = await engine.next_request()
        await turn.send("one")
        engine.stop_listening()
        await until(lambda: app.backends.all[0].up is False)
        before = len(engine.probes)
        await engine.listen()
        await until(lambda: bool(app.backends.all[0].up))
        looks = engine.polls["/health"]
        await until(lambda: engine.polls["/health"] > looks + 1)
        assert not app.shapes.settled
        assert len(engine.probes) == before
        await turn.finish()
        assert (await stream).status == 200
        await until(lambda: app.shapes.settled)
        assert len(engine.probes) > before


LIES: dict[str, Any] = {
    "a body of other tokens": lambda body: body["choices"][0]["message"].update(content="lie"),
    "another count": lambda body: body["usage"].update(completion_tokens=99),
    "what no stream tells": lambda body: body.update(took_ms=1),
    "no choices": lambda body: body.update(choices=[]),
}


@pytest.mark.parametrize("lie", LIES)
async def test_what_is_not_the_fold_of_its_stream_is_not_folded_and_told_once(
    engine: Engine, tmp_path: Path, lie: str
) -> None:
    def change(body: dict[str, Any]) -> None:
        if body["object"] == "chat.completion":
            LIES[lie](body)

    shape = Shape(body=change)
    log = tmp_path / "log"
    async with gateway(shape.of(engine), probe="on", log_to=log) as app:
        async with streaming(app.url, CHAT, HELLO_STREAM) as stream:
            turn = await engine.next_request()
            await turn.send("one")
            await stream.event()
            whole = asyncio.create_task(post_json(app.url, CHAT, HELLO))
            await (await engine.next_request()).answer("a body")
            assert (await whole).json()["choices"][0]["message"]["content"] == "a body"
            await turn.finish()
        assert await metric(app, "gateway_backend_folds") == [f'gateway_backend_folds{{backend="{engine.url}"}} 0']
        state = json.loads((await get(app.url, "/-/state")).body) if lie == "another count" else None
        assert state is None or any("chat" in what for what in state["backends"][0]["unshared"])
    (told,) = [line for line in lines(log) if line["msg"] == "streamed and whole answers are not shared"]
    assert told["backend"] == engine.url
    assert told["detail"].startswith("chat: ")


async def test_an_engine_that_comes_back_is_another_one(engine: Engine) -> None:
    async with gateway(engine, probe="on", refresh_seconds=0.1) as app:
        before = len(engine.probes)
        engine.stop_listening()
        await until(lambda: app.backends.all[0].up is False)
        shapes.NEW_CONSTANTS.of(engine)
        await engine.listen()
        await until(lambda: bool(app.backends.all[0].up))
        await until(lambda: len(engine.probes) > before and app.shapes.settled)
        assert await metric(app, "gateway_backend_folds") == [f'gateway_backend_folds{{backend="{engine.url}"}} 1']


@pytest.mark.parametrize("how", ["500", "drop", "half", "silence of a stream"])
async def test_a_probe_that_goes_wrong_is_tried_a_few_times_and_ends(engine: Engine, how: str) -> None:
    async def probe(turn: Turn) -> None:
        if turn.method == "GET":
            await turn.respond(404, b"{}")
        elif how == "500":
            await turn.respond(500, {"error": "no"})
        elif how == "drop":
            await turn.drop()
        elif how == "half":
            await turn.start()
            await turn.end(b"data: {")
        else:
            await turn.start()
            await turn.end()

    engine.on_probe = probe
    async with gateway(engine, probe="on") as app:
        tries = [turn for turn in engine.probes if turn.method == "POST"]
        assert 2 <= len(tries) <= 12
        assert app.backends.all[0].breaker.state.name == "CLOSED"
        post = asyncio.create_task(post_json(app.url, CHAT, HELLO))
        await (await engine.next_request()).answer("well")
        assert (await post).status == 200


async def test_a_version_that_changes_unseen_is_asked_anew(engine: Engine) -> None:
    """The engine was replaced between two looks: a stream shows a member that was not there."""
    async with gateway(shapes.FINGERPRINT_NONE.of(engine), probe="on") as app:
        before = len(engine.probes)
        new = shapes.NEW_CONSTANTS
        new.of(engine)
        async with streaming(app.url, CHAT, HELLO_STREAM) as stream:
            turn = await engine.next_request()
            posts = [asyncio.create_task(post_json(app.url, CHAT, HELLO)) for _ in range(2)]
            await until(lambda: app.group.subscribers == 3)
            await new.begin(turn, "one")
            body = await engine.next_request()
            await new.answer(body, "one")
            assert [(await post).status for post in posts] == [200, 200]
            await new.finish(turn, 1)
            await stream.read()
        await until(lambda: len(engine.probes) > before and app.shapes.settled)
        async with streaming(app.url, CHAT, HELLO_STREAM) as stream:
            turn = await engine.next_request()
            await new.begin(turn, "one")
            await stream.event()
            post = asyncio.create_task(post_json(app.url, CHAT, HELLO))
            await until(lambda: app.group.subscribers == 2)
            await new.finish(turn, 1)
            assert (await post).json()["region"] == "here"

"""Streams and bodies of one prompt: who shares with whom, on engines that fold, that do not, that stop folding."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest

from proxy.app import App
from tests.kit import engine_shapes as shapes
from tests.kit.client import Answer, post_json, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.engine_shapes import Shape
from tests.kit.engine_wire import DONE, sse
from tests.kit.running import HELLO, HELLO_STREAM, gateway, until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PROMPT: dict[str, Any] = {"model": "m1", "prompt": "hello", "temperature": 0}
FOLD = {
    "0.32": shapes.VLLM_32,
    "0.33": shapes.VLLM_33,
    "no fingerprint": shapes.FINGERPRINT_NONE,
    "a fingerprint of its own": shapes.FINGERPRINT_CUSTOM,
    "the Rust front end": shapes.RUST,
    "new constants": shapes.NEW_CONSTANTS,
}
ASKS = {"chat": (CHAT, HELLO), "completions": (TEXT, PROMPT)}


def wholes(app: App, count: int, path: str = CHAT, ask: dict[str, Any] = HELLO) -> list[asyncio.Task[Answer]]:
    return [asyncio.create_task(post_json(app.url, path, ask)) for _ in range(count)]


async def bodies(posts: Iterable[asyncio.Task[Answer]]) -> list[Answer]:
    answers = [await post for post in posts]
    assert {answer.status for answer in answers} == {200}
    return answers


def nameless(answer: dict[str, Any]) -> str:
    return json.dumps(answer | {"id": "", "created": 0})


@pytest.mark.parametrize("kind", ASKS)
@pytest.mark.parametrize("name", FOLD)
async def test_five_bodies_that_join_a_running_stream_get_its_fold_equal_to_the_engine_s_own_body(
    engine: Engine, name: str, kind: str
) -> None:
    shape, (path, ask) = FOLD[name], ASKS[kind]
    async with (
        gateway(shape.of(engine), probe="on") as app,
        streaming(app.url, path, ask | {"stream": True}) as stream,
    ):
        turn = await engine.next_request()
        await shape.begin(turn, "one", " two")
        await stream.event()
        posts = wholes(app, 5, path, ask)
        await until(lambda: app.group.subscribers == 6)
        await shape.begin(turn, " three")
        await shape.finish(turn, 3)
        answers = await bodies(posts)
        own = shape.whole(turn.shape.whole(["one two three"], ["stop"], turn.prompt_tokens, 3))
        assert {nameless(answer.json()) for answer in answers} == {nameless(own)}
        assert {answer.head["x-gateway-cache"] for answer in answers} == {"attached"}
        assert engine.generations == 1


@pytest.mark.parametrize("probe", ["on", "off"])
async def test_bodies_do_not_wait_for_a_stream_that_they_cannot_use_and_share_one_body(
    engine: Engine, probe: str
) -> None:
    shape = shapes.DIFFERS
    async with (
        gateway(shape.of(engine), probe=probe) as app,
        streaming(app.url, CHAT, HELLO_STREAM) as stream,
    ):
        turn = await engine.next_request()
        await shape.begin(turn, "one")
        await stream.event()
        posts = wholes(app, 5)
        body = await engine.next_request()  # at once: the stream goes on
        await until(lambda: app.group.subscribers == 6)
        await shape.answer(body, "one", " two")
        answers = await bodies(posts)
        assert not turn.done
        assert sorted(answer.head["x-gateway-cache"] for answer in answers) == ["attached"] * 4 + ["miss"]
        assert engine.generations == 2
        await shape.begin(turn, " two")
        await shape.finish(turn, 2)
        assert (await stream.read()).events()[-1] == DONE


@pytest.mark.parametrize("shape", [shapes.VLLM_32, shapes.DIFFERS], ids=["known", "unknown"])
async def test_a_stream_that_comes_after_bodies_is_a_generation_of_its_own(engine: Engine, shape: Shape) -> None:
    async with gateway(shape.of(engine), probe="on") as app:
        posts = wholes(app, 5)
        body = await engine.next_request()
        await until(lambda: app.group.subscribers == 5)
        async with streaming(app.url, CHAT, HELLO_STREAM) as stream:
            turn = await engine.next_request()
            await shape.begin(turn, "now")
            first = [await stream.event() for _ in range(2)]
            assert b"now" in b"".join(event.raw for event in first if event is not None)
            await shape.answer(body, "a body")
            await bodies(posts)
            assert engine.generations == 2
            await shape.finish(turn, 1)


UNASKED = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def odd(turn: Turn, change: str) -> bytes:
    chunk = json.loads(turn.shape.content("x").removeprefix(b"data: "))
    if change == "a tool call":
        chunk["choices"][0]["delta"] = {"tool_calls": [UNASKED]}
    elif change == "an error":
        chunk = {"error": {"message": "out of memory", "code": 500}}
    elif change == "a finish that is none":
        chunk["choices"][0]["finish_reason"] = "abort"
    else:
        chunk["choices"][0]["new"] = 1
    return sse(chunk)


@pytest.mark.parametrize("change", ["a tool call", "a new member", "an error", "a finish that is none"])
async def test_bodies_leave_a_stream_together_in_the_moment_that_it_stops_folding(
    engine: Engine, change: str
) -> None:
    async with (
        gateway(engine, probe="on", retries=0) as app,
        streaming(app.url, CHAT, HELLO_STREAM) as stream,
    ):
        turn = await engine.next_request()
        await turn.send("one")
        await stream.event()
        posts = wholes(app, 5)
        await until(lambda: app.group.subscribers == 6)
        await turn.frame(odd(turn, change))
        body = await engine.next_request()
        late = wholes(app, 1)
        await until(lambda: len(body.body) > 0 and app.group.subscribers == 7)
        await body.answer("a body")
        assert {answer.json()["choices"][0]["message"]["content"] for answer in await bodies(posts + late)} == {
            "a body"
        }
        assert not turn.done
        assert engine.generations == 2
        await turn.finish()
        await stream.read()


async def test_bodies_are_joined_to_no_stream_that_has_shown_something_odd_already(engine: Engine) -> None:
    async with gateway(engine, probe="on") as app, streaming(app.url, CHAT, HELLO_STREAM) as stream:
        turn = await engine.next_request()
        await turn.send("one")
        await turn.frame(odd(turn, "a tool call"))
        for _ in range(3):
            await stream.event()
        posts = wholes(app, 3)
        await (await engine.next_request()).answer("a body")
        assert not turn.done
        await bodies(posts)
        assert engine.generations == 2
        await turn.finish()


async def test_what_an_engine_was_seen_to_add_is_waited_for_only_once(engine: Engine) -> None:
    """A member that the probe did not show: the first readers move, the next ones do not join."""
    async with gateway(engine, probe="on") as app:
        for n in range(2):
            ask = HELLO | {"seed": n, "logprobs": True}
            async with streaming(app.url, CHAT, ask | {"stream": True}) as stream:
                turn = await engine.next_request()
                await turn.send("one")
                await stream.event()
                posts = wholes(app, 2, CHAT, ask)
                if n == 0:
                    await until(lambda: app.group.subscribers == 3)
                    await turn.frame(odd(turn, "a new member"))
                body = await engine.next_request()
                await body.answer("a body")
                await bodies(posts)
                await turn.finish()
        assert engine.generations == 4
        (told,) = app.backends.all[0].abilities.told()
        assert "logprobs" in told


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "f"}}], ids=str)
async def test_with_tools_bodies_never_wait_for_a_stream(engine: Engine, choice: object) -> None:
    ask = HELLO | {"tools": [TOOL], "tool_choice": choice}
    async with gateway(engine, probe="on") as app, streaming(app.url, CHAT, ask | {"stream": True}) as stream:
        turn = await engine.next_request()
        await turn.send("one")
        await stream.event()
        posts = wholes(app, 3, CHAT, ask)
        await (await engine.next_request()).answer("a body")
        await bodies(posts)
        assert engine.generations == 2
        await turn.finish()


async def test_a_stream_that_has_to_move_to_an_engine_that_does_not_fold_lets_bodies_go(engine: Engine) -> None:
    async with Engine() as other:
        shapes.DIFFERS.of(other)
        other.stop_listening()  # while it is down only what folds is left
        settings: dict[str, Any] = {"probe": "on", "max_inflight": 1, "load_seconds": 0.0, "refresh_seconds": 0.1}
        async with (
            gateway(engine, other, **settings) as app,
            streaming(app.url, CHAT, HELLO_STREAM) as stream,
        ):
            turn = await engine.next_request()
            posts = wholes(app, 2)
            await until(lambda: app.group.subscribers == 3)
            await other.listen()
            await until(lambda: bool(app.backends.all[1].up) and app.shapes.settled)
            await turn.respond(503, {"error": {"message": "not now"}})
            moved, body = await other.next_request(), await engine.next_request()
            assert moved.wants_stream
            assert not body.wants_stream
            await body.answer("a body")
            await bodies(posts)
            await shapes.DIFFERS.answer(moved, "a")
            await stream.read()

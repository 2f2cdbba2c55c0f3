"""Sampled twins whose one answer is not whole: who has had nothing of it is asked for alone."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from proxy.app import App
from tests.kit.client import post_json, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_wire import DONE, sse
from tests.kit.running import HELLO, gateway, until

CHAT = "/v1/chat/completions"
ABORT = sse({"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "abort"}]})
SAMPLED: dict[str, Any] = HELLO | {"temperature": 0.9}
OTHER = SAMPLED | {"messages": [{"role": "user", "content": "block"}], "stream": True}


async def merged(engine: Engine, app: App, stack: AsyncExitStack, ask: dict[str, Any], count: int) -> Any:
    """So many twins that go up as one request: its turn, and their answers to come."""
    await stack.enter_async_context(streaming(app.url, CHAT, OTHER))
    blocker = await engine.next_request()
    posts = [asyncio.create_task(post_json(app.url, CHAT, ask)) for _ in range(count)]
    await until(lambda: len(app.scheduler.queue) == count)
    await blocker.finish()
    turn = await engine.next_request()
    return turn, posts


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "body"])
async def test_twins_that_an_engine_answers_with_one_choice_are_asked_for_alone_and_never_merged_there_again(
    engine: Engine, streamed: bool
) -> None:
    ask = SAMPLED | {"stream": streamed}
    async with gateway(engine, max_inflight=1, retries=0) as app, AsyncExitStack() as stack:
        turn, posts = await merged(engine, app, stack, ask, 3)
        assert turn.json()["n"] == 3
        engine.auto(echo_script())
        if streamed:
            await turn.send("only one")
            await turn.finish()
        else:
            await turn.answer("only one")
        answers = [await post for post in posts]
        assert {answer.status for answer in answers} == {200}
        assert sum(b"only one" in answer.body for answer in answers) == 1
        assert all(b'"stop"' in answer.body and b"upstream" not in answer.body for answer in answers)
        assert sorted(answer.head["x-gateway-cache"] for answer in answers) == ["bypass", "bypass", "merged"]
        before = len(engine.requests)
        await asyncio.gather(*(post_json(app.url, CHAT, ask) for _ in range(4)))
        assert all("n" not in turn.json() for turn in engine.requests[before:])
        assert app.backends.all[0].breaker.state.name == "CLOSED"


async def test_a_twin_that_has_had_half_of_its_choice_ends_in_an_error_and_the_other_gets_its_own(
    engine: Engine,
) -> None:
    async with gateway(engine, max_inflight=1, retries=0) as app, AsyncExitStack() as stack:
        turn, posts = await merged(engine, app, stack, SAMPLED | {"stream": True}, 3)
        engine.auto(echo_script())
        await turn.send("half", index=0)
        await turn.frame(ABORT)
        await turn.send("whole", index=1)
        await turn.finish(choices=[1])
        bodies = [(await post).body for post in posts]
        (broken,) = [body for body in bodies if b"half" in body]
        assert b"upstream_incomplete" in broken
        assert b"[DONE]" not in broken
        (whole,) = [body for body in bodies if b"whole" in body]
        assert whole.endswith(DONE)
        (alone,) = [body for body in bodies if body not in (broken, whole)]
        assert alone.endswith(DONE)
        assert b"upstream" not in alone


@pytest.mark.parametrize("content", [{"error": {"message": "no"}}, {"choices": None}, {}, [], {"choices": [{}]}])
async def test_twins_that_get_no_answer_at_all_are_asked_for_alone(engine: Engine, content: object) -> None:
    async with gateway(engine, max_inflight=1, retries=0) as app, AsyncExitStack() as stack:
        turn, posts = await merged(engine, app, stack, SAMPLED, 2)
        engine.auto(echo_script())
        await turn.respond(200, content)
        assert [(await post).status for post in posts] == [200, 200]


async def test_an_odd_count_in_a_merged_answer_costs_nobody_anything(engine: Engine) -> None:
    async with gateway(engine, max_inflight=1, retries=0) as app, AsyncExitStack() as stack:
        turn, posts = await merged(engine, app, stack, SAMPLED | {"stream": True}, 2)
        await turn.send("a", index=0)
        await turn.send("b", index=1)
        odd = sse({"choices": [], "usage": {"prompt_tokens": 2**64, "completion_tokens": 1}})
        await turn.end(turn.shape.finish("stop", "", 0), turn.shape.finish("stop", "", 1), odd, DONE)
        for post in posts:
            assert (await post).body.endswith(DONE)


async def test_an_error_that_the_engine_reports_to_all_is_not_taken_for_too_few_choices(engine: Engine) -> None:
    async with gateway(engine, max_inflight=1, retries=0) as app, AsyncExitStack() as stack:
        turn, posts = await merged(engine, app, stack, SAMPLED | {"stream": True}, 2)
        await turn.send("a", index=0)
        await turn.send("b", index=1)
        await turn.end(sse({"error": {"message": "out of memory"}}), DONE)
        for post in posts:
            body = (await post).body
            assert b"out of memory" in body
            assert b"[DONE]" not in body
        assert app.backends.all[0].merges


async def test_an_engine_that_refuses_several_choices_is_asked_for_them_once(engine: Engine) -> None:
    async def one_only(turn: Turn) -> None:
        if turn.json().get("n", 1) > 1:
            await turn.respond(400, {"error": {"message": "Only n=1 is supported", "code": 400}})
        else:
            await echo_script()(turn)

    async with gateway(engine, max_inflight=1, retries=0) as app, AsyncExitStack() as stack:
        turn, posts = await merged(engine, app, stack, SAMPLED, 3)
        engine.auto(one_only)
        await one_only(turn)
        assert {(await post).status for post in posts} == {200}
        for _ in range(3):
            answers = await asyncio.gather(*(post_json(app.url, CHAT, SAMPLED) for _ in range(4)))
            assert {answer.status for answer in answers} == {200}
        assert sum(turn.json().get("n", 1) > 1 for turn in engine.requests) == 1


async def test_what_is_refused_alone_too_says_nothing_of_merging(engine: Engine) -> None:
    async def never(turn: Turn) -> None:
        await turn.respond(400, {"error": {"message": "no such thing", "code": 400}})

    async with gateway(engine, max_inflight=1, retries=0) as app, AsyncExitStack() as stack:
        turn, posts = await merged(engine, app, stack, SAMPLED, 2)
        engine.auto(never)
        await never(turn)
        assert {(await post).status for post in posts} == {400}
        assert app.backends.all[0].merges

"""Sampled twins as clients see them: one request, an answer of each one's own (carrier.py, merger.py)."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import pytest

from proxy.app import App
from proxy.flights.queue.estimates import MIN_SAMPLES
from tests.kit.client import Connection, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_turn import Turn
from tests.kit.running import gateway, until

CHAT = "/v1/chat/completions"
SAMPLED: dict[str, Any] = {"model": "m1", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.8}
STREAM = SAMPLED | {"stream": True}
OTHER = STREAM | {"messages": [{"role": "user", "content": "block"}]}


async def texts(connection: Connection) -> str:
    return "".join([event.text async for event in connection.events() if not event.is_done])


async def word(connection: Connection) -> str:
    """The next text, whatever says nothing left out."""
    while (event := await connection.event()) is not None:
        if event.text:
            return event.text
    raise AssertionError("the stream has ended")


async def blocked(engine: Engine, app: App, stack: AsyncExitStack) -> Turn:
    """Another's request takes the engine's only place: what comes now waits together."""
    await stack.enter_async_context(streaming(app.url, CHAT, OTHER))
    return await engine.next_request()


async def test_twins_that_wait_together_are_one_request_and_each_gets_a_sample_of_its_own(engine: Engine) -> None:
    async with gateway(engine, max_inflight=1) as app, AsyncExitStack() as stack:
        first = await blocked(engine, app, stack)
        readers = [await stack.enter_async_context(streaming(app.url, CHAT, STREAM)) for _ in range(5)]
        await until(lambda: len(app.scheduler.queue) == 5)
        await first.finish()
        turn = await engine.next_request()
        assert turn.json()["n"] == 5
        for n in range(5):
            await turn.send(f"sample {n}", index=n)
        heads = [await reader.read_head() for reader in readers]
        assert {head["x-gateway-cache"] for head in heads} == {"merged"}
        await turn.finish(choices=range(5))
        assert sorted([await texts(reader) for reader in readers]) == [f"sample {n}" for n in range(5)]
        assert engine.generations == 2


async def test_n_of_each_is_added_and_usage_goes_to_who_asked(engine: Engine) -> None:
    bodies = [SAMPLED | {"n": 2}, SAMPLED, SAMPLED | {"n": 3}]
    async with gateway(engine, max_inflight=1) as app, AsyncExitStack() as stack:
        first = await blocked(engine, app, stack)
        posts = [asyncio.create_task(post_json(app.url, CHAT, body)) for body in bodies]
        await until(lambda: len(app.scheduler.queue) == 3)
        await first.finish()
        turn = await engine.next_request()
        assert turn.json()["n"] == 6
        await turn.answer(*"abcdef", tokens=12)
        answers = [await post for post in posts]
        sizes = [len(answer.json()["choices"]) for answer in answers]
        assert sizes == [2, 1, 3]
        said = [c["message"]["content"] for answer in answers for c in answer.json()["choices"]]
        assert sorted(said) == list("abcdef")
        assert sum(answer.json()["usage"]["completion_tokens"] for answer in answers) == 12


async def test_more_than_the_setting_allows_are_several_requests(engine: Engine) -> None:
    async with gateway(engine, max_inflight=1, merge_max=2) as app, AsyncExitStack() as stack:
        first = await blocked(engine, app, stack)
        posts = [asyncio.create_task(post_json(app.url, CHAT, SAMPLED)) for _ in range(3)]
        await until(lambda: len(app.scheduler.queue) == 3)
        await first.finish()
        turn = await engine.next_request()
        assert turn.json()["n"] == 2
        await turn.answer("a", "b")
        turn = await engine.next_request()
        assert "n" not in turn.json()
        await turn.answer("c")
        assert sorted([(await p).json()["choices"][0]["message"]["content"] for p in posts]) == ["a", "b", "c"]


async def test_a_client_that_leaves_takes_nothing_from_the_others_and_the_last_one_stops_the_engine(
    engine: Engine,
) -> None:
    async with gateway(engine, max_inflight=1) as app, AsyncExitStack() as stack:
        first = await blocked(engine, app, stack)
        readers = [await stack.enter_async_context(streaming(app.url, CHAT, STREAM)) for _ in range(3)]
        await until(lambda: len(app.scheduler.queue) == 3)
        await first.finish()
        turn = await engine.next_request()
        for n in range(3):
            await turn.send("a", index=n)
        for reader in readers:
            assert await word(reader) == "a"
        await readers[0].close()
        await until(lambda: app.group.subscribers <= 2)
        await turn.send("b", index=1)
        assert await word(readers[1]) == "b"
        assert not turn.is_cancelled
        await readers[1].close()
        await readers[2].close()
        await turn.cancelled()


async def test_a_rider_ends_with_its_own_choice_and_not_with_the_longest(engine: Engine) -> None:
    async with gateway(engine, max_inflight=1) as app, AsyncExitStack() as stack:
        for known in (False, True):  # the first time the engine's fingerprint is not known yet
            first = await blocked(engine, app, stack)
            readers = [await stack.enter_async_context(streaming(app.url, CHAT, STREAM)) for _ in range(2)]
            await until(lambda: len(app.scheduler.queue) == 2)
            await first.finish()
            turn = await engine.next_request()
            await turn.send(index=0)  # the role
            await turn.frame(turn.shape.finish("stop", "x", 0, fingerprint=False))
            if known:
                assert await texts(readers[0]) == "x"  # while the other one goes on
            await turn.send("y", index=1)
            await turn.finish(choices=[1])
            assert await texts(readers[1]) == "y"


async def test_what_the_engine_refuses_together_is_asked_for_one_by_one(engine: Engine) -> None:
    async with gateway(engine, max_inflight=1, top_priority="high") as app, AsyncExitStack() as stack:
        first = await blocked(engine, app, stack)
        posts = [asyncio.create_task(post_json(app.url, CHAT, SAMPLED)) for _ in range(2)]
        await until(lambda: len(app.scheduler.queue) == 2)
        await first.finish()
        turn = await engine.next_request()
        await turn.respond(400, {"error": {"message": "n is too large"}})
        turn = await engine.next_request()
        urgent = [("x-gateway-priority", "high")]
        posts.append(asyncio.create_task(post_json(app.url, CHAT, SAMPLED, headers=urgent)))
        await until(lambda: len(app.scheduler.queue) == 2)
        for text in "abc":
            assert "n" not in turn.json(), "one that was refused together is in no other's company again"
            await turn.answer(text)
            turn = await engine.next_request() if text < "c" else turn
        answers = [await post for post in posts]
        assert sorted(answer.json()["choices"][0]["message"]["content"] for answer in answers) == ["a", "b", "c"]
        assert [answer.head["x-gateway-cache"] for answer in answers[:2]] == ["bypass"] * 2


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_dies_gives_every_rider_an_honest_end(engine: Engine, stream: bool) -> None:
    async with gateway(engine, max_inflight=1, retries=0) as app, AsyncExitStack() as stack:
        first = await blocked(engine, app, stack)
        posts = [asyncio.create_task(post_json(app.url, CHAT, SAMPLED | {"stream": stream})) for _ in range(2)]
        await until(lambda: len(app.scheduler.queue) == 2)
        await first.finish()
        turn = await engine.next_request()
        if stream:
            await turn.send("a", index=0)
            await turn.send("a", index=1)
        else:
            await turn.raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{")
        await turn.drop()
        for post in posts:
            answer = await post
            assert b"upstream_" in answer.body
            assert b"[DONE]" not in answer.body


async def test_the_first_of_a_burst_waits_for_nobody_and_an_engine_that_is_no_vllm_is_asked_one_by_one() -> None:
    async with Engine(script=echo_script()) as engine, gateway(engine) as app:
        for backend in app.backends.all:
            for model in backend.models:
                model["owned_by"] = "llamacpp"
        answers = await asyncio.gather(*[post_json(app.url, CHAT, SAMPLED) for _ in range(8)])
        assert {answer.status for answer in answers} == {200}
        assert engine.generations == 8
        assert all("n" not in json.loads(turn.body) for turn in engine.requests)


@pytest.mark.parametrize("together", ["ab", "abcd"])
async def test_a_window_brings_twins_together_where_the_engine_has_room(engine: Engine, together: str) -> None:
    async with gateway(engine, batch_window_ms=1000.0, merge_max=len(together)) as app:
        posts = [asyncio.create_task(post_json(app.url, CHAT, SAMPLED)) for _ in together]
        turn = await engine.next_request()
        assert turn.json()["n"] == len(together)
        await turn.answer(*together)
        assert sorted([(await p).json()["choices"][0]["message"]["content"] for p in posts]) == list(together)


async def test_a_twin_that_an_engine_may_refuse_for_what_it_says_besides_goes_alone(engine: Engine) -> None:
    async with gateway(engine, max_inflight=1) as app, AsyncExitStack() as stack:
        first = await blocked(engine, app, stack)
        posts = [asyncio.create_task(post_json(app.url, CHAT, SAMPLED))]
        await until(lambda: len(app.scheduler.queue) == 1)
        posts.append(asyncio.create_task(post_json(app.url, CHAT, SAMPLED | {"user": 5})))
        await until(lambda: len(app.scheduler.queue) == 2)
        await first.finish()
        for text in "ab":
            turn = await engine.next_request()
            assert "n" not in turn.json()
            await turn.answer(text)
        assert [(await post).json()["choices"][0]["message"]["content"] for post in posts] == ["a", "b"]


async def test_two_twins_ride_together_where_two_choices_are_the_most(engine: Engine) -> None:
    async with gateway(engine, max_inflight=1, merge_max=2) as app, AsyncExitStack() as stack:
        first = await blocked(engine, app, stack)
        posts = [asyncio.create_task(post_json(app.url, CHAT, SAMPLED)) for _ in range(2)]
        await until(lambda: len(app.scheduler.queue) == 2)
        await first.finish()
        turn = await engine.next_request()
        assert turn.json()["n"] == 2
        await turn.answer(*"ab")
        assert sorted([(await p).json()["choices"][0]["message"]["content"] for p in posts]) == ["a", "b"]


async def test_twins_refused_together_that_cannot_be_in_time_any_more_end_with_that(engine: Engine) -> None:
    async with gateway(engine, max_inflight=1) as app, AsyncExitStack() as stack:
        first = await blocked(engine, app, stack)
        headers = [("x-request-timeout", "30")]
        posts = [asyncio.create_task(post_json(app.url, CHAT, SAMPLED, headers=headers)) for _ in range(2)]
        await until(lambda: len(app.scheduler.queue) == 2)
        await first.finish()
        turn = await engine.next_request()
        pool = app.backends.pool_of("m1")
        for _ in range(MIN_SAMPLES):
            app.scheduler.queue.estimates.record_answer(pool, 600.0)
        await turn.respond(400, {"error": {"message": "n is too large"}})
        answers = [await post for post in posts]
        assert [answer.json()["error"]["code"] for answer in answers] == ["deadline_unmeetable"] * 2
        assert engine.generations == 2


async def test_samples_of_one_prompt_that_are_taken_differently_are_no_twins(engine: Engine) -> None:
    async with gateway(engine, max_inflight=1) as app, AsyncExitStack() as stack:
        first = await blocked(engine, app, stack)
        posts = [
            asyncio.create_task(post_json(app.url, CHAT, SAMPLED | {"temperature": temperature}))
            for temperature in (0.8, 0.9)
        ]
        await until(lambda: len(app.scheduler.queue) == 2)
        await first.finish()
        turns = [await engine.next_request()]
        await turns[0].answer("a")
        turns.append(await engine.next_request())
        await turns[1].answer("b")
        assert {turn.json()["temperature"] for turn in turns} == {0.8, 0.9}
        assert all("n" not in turn.json() for turn in turns)
        assert {(await post).status for post in posts} == {200}

"""An engine's comments are no tokens: they set no clock, stop no failover, and are neither logged nor stored."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from tests.kit.client import IncompleteBody, post_json, streaming
from tests.kit.engine import ClientGone, Engine, Turn
from tests.kit.engine_wire import DONE
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, HELLO_STREAM, gateway, until

CHAT = "/v1/chat/completions"
SAMPLED = HELLO_STREAM | {"temperature": 0.9}
QUIET = [b": keep-alive\n\n", b":\n\n", b"event: ping\n\n", b": a\n: b\r\n\r\n", b"retry: 10\n\n"]
ASKS: dict[str, dict[str, Any]] = {"shared": HELLO_STREAM, "private": SAMPLED}


async def comment(turn: Turn, what: bytes = QUIET[0]) -> None:
    """Comments, until the gateway has had enough."""
    with suppress(ClientGone):
        while True:
            await turn.frame(what)
            await asyncio.sleep(0)


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("quiet", QUIET, ids=repr)
async def test_comments_alone_are_no_first_token(engine: Engine, ask: dict[str, Any], quiet: bytes) -> None:
    async with gateway(engine, first_token_timeout=0.3, retries=0) as app:
        post = asyncio.create_task(post_json(app.url, CHAT, ask))
        turn = await engine.next_request()
        await turn.start(role=False)
        comments = asyncio.create_task(comment(turn, quiet))
        answer = await post
        assert (answer.status, answer.json()["error"]["code"]) == (504, "upstream_first_token_timeout")
        await comments


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
async def test_an_engine_that_dies_after_comments_alone_is_left_for_another(ask: dict[str, Any]) -> None:
    async def dies(turn: Turn) -> None:
        await turn.start(role=False)
        await turn.frame(*QUIET)
        await turn.drop()

    async def answers(turn: Turn) -> None:
        await turn.send("well")
        await turn.finish()

    async with Engine(dies) as one, Engine(answers) as other, gateway(one, other, load_seconds=0.0) as app:
        while one.generations < 2:
            answer = await post_json(app.url, CHAT, ask)
            assert answer.status == 200
            assert b"well" in answer.body
            assert answer.events()[-1] == DONE


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
async def test_comments_between_tokens_do_not_renew_the_clock(engine: Engine, ask: dict[str, Any]) -> None:
    async with (
        gateway(engine, token_timeout=0.3, retries=0) as app,
        streaming(app.url, CHAT, ask) as reader,
    ):
        turn = await engine.next_request()
        await turn.send("one")
        comments = asyncio.create_task(comment(turn))
        answer = await reader.read()
        assert b"upstream_token_timeout" in answer.body
        await comments


async def test_a_comment_that_never_ends_does_not_either(engine: Engine) -> None:
    async with (
        gateway(engine, token_timeout=0.3, retries=0) as app,
        streaming(app.url, CHAT, HELLO_STREAM) as reader,
    ):
        turn = await engine.next_request()
        await turn.send("one")
        comments = asyncio.create_task(comment(turn, b": more"))
        assert b"upstream_token_timeout" in (await reader.read()).body
        await comments


async def test_who_reads_along_gets_them_and_who_comes_later_does_not(engine: Engine) -> None:
    async with redis_server() as path, gateway(engine, redis=f"unix://{path}") as app:
        async with streaming(app.url, CHAT, HELLO_STREAM) as live:
            turn = await engine.next_request()
            await turn.send("one")
            await live.event()
            await live.event()
            for quiet in QUIET:
                await turn.frame(quiet)
            first = [await live.event() for _ in QUIET[:1]]
            assert first[0] is not None
            async with streaming(app.url, CHAT, HELLO_STREAM) as late:
                await late.event()
                await turn.send(" two")
                await turn.finish()
                rest = b"".join([event.raw async for event in live.events()])
                replayed = b"".join([event.raw async for event in late.events()])
        assert b"keep-alive" in first[0].raw + rest
        assert b"ping" not in replayed
        assert b"keep-alive" not in replayed
        await until(lambda: len(app.group) == 0)
        hit = await post_json(app.url, CHAT, HELLO_STREAM)
        assert hit.head["x-gateway-cache"] == "hit"
        assert b"keep-alive" not in hit.body
        assert b"ping" not in hit.body
        assert b" two" in hit.body


async def test_what_passes_through_has_the_same_clock(engine: Engine) -> None:
    async with gateway(engine, token_timeout=0.3, retries=0) as app:
        post = asyncio.create_task(post_json(app.url, "/v1/a/b", {"model": "m1", "input": "a"}))
        turn = await engine.next_request()
        await turn.start(role=False)
        comments = asyncio.create_task(comment(turn))
        with pytest.raises(IncompleteBody):
            await post  # it is cut: nothing else can be said in bytes that are not ours
        await comments


async def test_a_body_of_comments_is_refused_as_ever(engine: Engine) -> None:
    async with gateway(engine, retries=0) as app:
        post = asyncio.create_task(post_json(app.url, CHAT, HELLO))
        turn = await engine.next_request()
        await turn.respond(200, b": no JSON")
        assert (await post).status == 502

"""Engines that misbehave: an honest status before the first frame, an error frame after it, nothing left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.kit.client import Answer, get, post_json, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_wire import error_frame
from tests.kit.running import HELLO, HELLO_STREAM, gateway, until

CHAT = "/v1/chat/completions"
SAMPLED = {"temperature": 1}


def code(answer: Answer) -> str:
    return str(answer.json()["error"]["code"])


def broken(answer: Answer, why: str) -> None:
    """A stream that ended with an error frame and without [DONE]."""
    assert answer.status == 200
    last = answer.events()[-1]
    assert b'"error"' in last
    assert why.encode() in last
    assert b"[DONE]" not in answer.body


async def test_an_engine_that_refuses_is_a_502(engine: Engine) -> None:
    async with gateway(engine, refresh_seconds=60.0) as app:
        await engine.drop_connections()
        engine.stop_listening()
        for ask in (HELLO, HELLO_STREAM):
            answer = await post_json(app.url, CHAT, ask)
            assert (answer.status, code(answer)) == (502, "upstream_unreachable")
        assert (await get(app.url, "/ready")).status == 503
        assert (await get(app.url, "/health")).status == 200


@pytest.mark.parametrize(
    ("ask", "limits", "why"),
    [
        (HELLO_STREAM, {"first_token_timeout": 0.05}, "upstream_first_token_timeout"),
        (HELLO, {"total_timeout": 0.05}, "upstream_total_timeout"),
    ],
)
async def test_an_engine_that_never_answers_is_a_504(
    engine: Engine, ask: dict[str, Any], limits: dict[str, Any], why: str
) -> None:
    async with gateway(engine, **limits) as app:
        waiting = asyncio.create_task(post_json(app.url, CHAT, ask))
        turn = await engine.next_request()
        answer = await waiting
        assert (answer.status, code(answer)) == (504, why)
        await turn.cancelled()


async def test_an_engine_that_stops_between_tokens_ends_in_an_error_frame(engine: Engine) -> None:
    async with (
        gateway(engine, token_timeout=0.05, resume="off") as app,
        streaming(app.url, CHAT, HELLO_STREAM) as client,
    ):
        turn = await engine.next_request()
        await turn.send("a")
        broken(await client.read(), "upstream_token_timeout")
        await turn.cancelled()


async def cut(turn: Turn) -> None:
    await turn.send("a")
    await turn.drop()


async def reset(turn: Turn) -> None:
    await turn.send("a")
    await turn.drop(reset=True)


async def end_without_done(turn: Turn) -> None:
    await turn.send("a")
    await turn.end()


@pytest.mark.parametrize("script", [cut, end_without_done])
@pytest.mark.parametrize("change", [{}, SAMPLED], ids=["shared", "private"])
async def test_a_stream_without_its_end_is_never_a_success(
    engine: Engine, script: Any, change: dict[str, Any]
) -> None:
    engine.auto(script)
    async with gateway(engine) as app:
        broken(await post_json(app.url, CHAT, HELLO_STREAM | change), "upstream_truncated")
        page = (await get(app.url, "/metrics")).body.decode()
        assert 'code="upstream_truncated"' in page


async def test_an_error_frame_inside_a_success_is_passed_on_and_counted(engine: Engine) -> None:
    async with gateway(engine, resume="off") as app, streaming(app.url, CHAT, HELLO_STREAM) as client:
        turn = await engine.next_request()
        await turn.send("a")
        await client.event()  # after it the error has no status of its own
        await turn.frame(error_frame("out of memory"))
        await turn.finish()
        answer = await client.read()
        assert b"out of memory" in answer.body
        page = (await get(app.url, "/metrics")).body.decode()
        assert 'code="upstream_error_frame"' in page


async def garbage(turn: Turn) -> None:
    await turn.raw(b"\x00\x01 this is no HTTP\r\n\r\n")
    turn.mark_done()


async def not_json(turn: Turn) -> None:
    await turn.respond(200, b"<html>")


@pytest.mark.parametrize("script", [garbage, not_json])
async def test_garbage_is_a_502(engine: Engine, script: Any) -> None:
    engine.auto(script)
    async with gateway(engine) as app:
        answer = await post_json(app.url, CHAT, HELLO)
        assert (answer.status, code(answer)) == (502, "upstream_protocol")


async def test_an_event_over_the_limit_ends_in_an_error_frame(engine: Engine) -> None:
    async with gateway(engine, max_frame_bytes=4096) as app, streaming(app.url, CHAT, HELLO_STREAM) as client:
        turn = await engine.next_request()
        await turn.send("a")
        await client.event()
        await turn.raw(b"2000\r\n" + b"x" * 8192)
        broken(await client.read(), "upstream_too_large")


async def test_an_answer_over_the_limit_ends_in_an_error_frame(engine: Engine) -> None:
    async with (
        gateway(engine, max_frame_bytes=4096, max_flight_bytes=8192) as app,
        streaming(app.url, CHAT, HELLO_STREAM) as client,
    ):
        turn = await engine.next_request()
        for _ in range(4):
            await turn.send("x" * 3000)
        broken(await client.read(), "upstream_too_large")


async def test_a_kept_connection_that_died_is_replaced_unnoticed(engine: Engine) -> None:
    engine.auto(echo_script())
    async with gateway(engine, refresh_seconds=60.0) as app:
        assert (await post_json(app.url, CHAT, HELLO)).status == 200
        await engine.drop_connections()
        assert (await post_json(app.url, CHAT, HELLO)).status == 200


async def test_connections_are_kept_and_used_again(engine: Engine) -> None:
    engine.auto(echo_script())
    # Without polls: one may need another connection.
    async with gateway(engine, refresh_seconds=60.0, load_seconds=0.0) as app:
        for _ in range(5):
            assert (await post_json(app.url, CHAT, HELLO_STREAM)).status == 200
        assert engine.accepted == 1


async def test_where_one_engine_cannot_be_reached_another_answers(engine: Engine) -> None:
    engine.auto(echo_script())
    async with Engine() as gone, gateway(gone, engine, refresh_seconds=60.0) as app:
        await gone.drop_connections()
        gone.stop_listening()
        for _ in range(3):
            assert (await post_json(app.url, CHAT, HELLO)).status == 200


async def test_over_the_queue_s_limit_a_client_is_told_when_to_come_again(engine: Engine) -> None:
    async with (
        gateway(engine, queue_limit=1, max_inflight=1) as app,
        streaming(app.url, CHAT, HELLO_STREAM | SAMPLED) as first,
    ):
        turn = await engine.next_request()
        async with streaming(app.url, CHAT, HELLO_STREAM | SAMPLED) as second:
            await until(lambda: len(app.scheduler.queue) == 1)
            answer = await post_json(app.url, CHAT, HELLO | SAMPLED)
            assert (answer.status, code(answer)) == (503, "queue_full")
            assert int(answer.head["retry-after"]) >= 1
            await turn.finish("a")
            await first.read()
            turn = await engine.next_request()
            await turn.finish("b")
            await second.read()

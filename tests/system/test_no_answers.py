"""Engines, or servers before them, that do not answer a request: errors that are not JSON, statuses without an
answer, and bytes that are not HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.client import post_json, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_wire import sse
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until
from tests.system.test_retries import another_answers

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
ASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, HELLO),
    "sampled": (CHAT, HELLO | {"temperature": 1}),
    "stream": (CHAT, HELLO_STREAM),
    "completion": (COMPLETIONS, {"model": "m1", "prompt": "x", "temperature": 0}),
    "embedding": (EMBEDDINGS, {"model": "m1", "input": "x"}),
}
PAGE = (
    b"<html>\r\n<head><title>503 Service Temporarily\r\n Unavailable</title></head>\r\n"
    b"<body><h1>503</h1><hr><center>nginx</center></body></html>"
)
HTML = ("content-type", "text/html; charset=utf-8")
TEXT = ("content-type", "text/plain")
Script = Callable[[Turn], Awaitable[None]]


def says(status: int, body: bytes, *headers: tuple[str, str]) -> Script:
    return lambda turn: turn.respond(status, body, headers)


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize(
    ("status", "body", "headers", "message"),
    [
        (503, PAGE, [HTML], "The engine answered 503: 503 Service Temporarily Unavailable."),
        (500, b"Internal Server Error", [TEXT], "The engine answered 500: Internal Server Error."),
        (413, b"<p>Too <b>large</b>.</p>\n", [HTML], "The engine answered 413: Too large."),
        (404, b"", [TEXT], "The engine answered 404."),
        (500, b"\xff\x00\x1b[31m", [TEXT], "The engine answered 500: \N{REPLACEMENT CHARACTER}[31m."),
        (502, b"x" * 100_000, [TEXT], f"The engine answered 502: {'x' * 200}."),
        (500, b"<" * 100_000, [TEXT], f"The engine answered 500: {'<' * 200}."),
        (500, b"<title>" * 100_000, [TEXT], "The engine answered 500: <."),  # of the last one that is read
    ],
    ids=["page", "text", "tags", "empty", "bytes", "long", "open", "titles"],
)
async def test_an_error_that_is_no_json_is_told_in_openai_s_shape(
    engine: Engine, ask: str, status: int, body: bytes, headers: list[tuple[str, str]], message: str
) -> None:
    path, request = ASKS[ask]
    more = [("retry-after", "7"), ("content-language", "en"), ("x-should-retry", "false")]
    engine.auto(says(status, body, *headers, *more))
    async with gateway(engine, retries=0) as app:
        answer = await post_json(app.url, path, request)
    assert answer.status == status
    assert answer.head["content-type"] == "application/json"
    assert "content-language" not in answer.head
    assert (answer.head["retry-after"], answer.head["x-should-retry"]) == ("7", "false")
    error = {"message": message, "type": "upstream_error", "param": None, "code": "upstream_protocol"}
    assert answer.json() == {"error": error}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"error":{"message":"no"}}', "application/json"),
        (b'{"detail":"Not Found"}', "application/problem+json; charset=utf-8"),
        (b'"no"', "application/json"),
        (b'\n  {"error": "no"}', "text/plain"),
    ],
)
async def test_an_error_that_is_json_is_passed_on_as_it_is(engine: Engine, body: bytes, kind: str) -> None:
    engine.auto(says(400, body, ("content-type", kind)))
    async with gateway(engine) as app:
        for path, request in ASKS.values():
            answer = await post_json(app.url, path, request)
            assert (answer.status, answer.body, answer.head["content-type"]) == (400, body, kind)


async def test_a_stream_that_has_its_head_gets_the_same_words_as_its_last_event(engine: Engine) -> None:
    async with (
        gateway(engine, retries=0, keepalive_seconds=0.05) as app,
        streaming(app.url, CHAT, HELLO_STREAM) as client,
    ):
        turn = await engine.next_request()
        await client.read_head()
        await turn.respond(503, PAGE, [HTML])
        answer = await client.read()
    assert b"The engine answered 503: 503 Service Temporarily Unavailable." in answer.events()[-1]
    assert b"[DONE]" not in answer.body


@pytest.mark.parametrize("ask", ["chat", "stream", "embedding"])
@pytest.mark.parametrize("status", [204, 205, 206, 300, 302, 304, 307, 308, 399, 600, 999])
async def test_a_status_without_an_answer_is_a_502_and_never_reaches_a_client(
    engine: Engine, ask: str, status: int
) -> None:
    async def script(turn: Turn) -> None:
        where = engine.url.encode()
        await turn.raw(b"HTTP/1.1 %d X\r\nlocation: %s/elsewhere\r\ncontent-length: 0\r\n\r\n" % (status, where))
        turn.mark_done()

    path, request = ASKS[ask]
    engine.auto(script)
    async with gateway(engine, retries=0) as app:
        answer = await post_json(app.url, path, request)
        assert (answer.status, answer.json()["error"]["code"]) == (502, "upstream_protocol")
        assert "location" not in answer.head
        assert f"answered {status}, which is no answer" in answer.json()["error"]["message"]
        assert ("redirects" in answer.json()["error"]["message"]) == (300 <= status < 400 and status != 304)
        assert not app.group.live
        assert app.backends.all[0].inflight == 0


async def not_http(turn: Turn) -> None:
    await turn.raw(b"SSH-2.0-OpenSSH_9\r\n")
    await turn.drop()


async def bad_chunk(turn: Turn) -> None:
    await turn.raw(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
    )
    await turn.drop()


async def bad_body(turn: Turn) -> None:
    await turn.raw(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\nzz\r\n"
    )
    await turn.drop()


async def moved(turn: Turn) -> None:
    await turn.respond(302, b"", [("location", "https://elsewhere/")])


@pytest.mark.parametrize(
    ("ask", "script"),
    [
        *(
            (ask, script)
            for ask in ("chat", "sampled", "embedding")
            for script in (not_http, bad_chunk, bad_body, moved)
        ),
        *(("stream", script) for script in (not_http, bad_chunk, moved)),
    ],
)
async def test_an_answer_that_is_not_http_comes_whole_from_another_engine(ask: str, script: Script) -> None:
    await another_answers(script, *ASKS[ask], "malformed")


@pytest.mark.parametrize("retry_on", ["none", "connect,reset,truncated,429,502,503,504"])
async def test_it_is_tried_nowhere_else_where_the_setting_says_so(retry_on: str) -> None:
    async with (
        Engine(not_http) as one,
        Engine(not_http) as two,
        gateway(one, two, retry_on=retry_on) as app,
    ):
        answer = await post_json(app.url, CHAT, HELLO)
        assert (answer.status, answer.json()["error"]["code"]) == (502, "upstream_protocol")
        assert one.generations + two.generations == 1


FAULT = sse({"error": {"message": "EngineCore died", "type": "InternalServerError", "param": None, "code": 500}})
ROLE = sse({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
DONE = b"data: [DONE]\n\n"


async def fails_in_prefill(turn: Turn) -> None:
    """As vLLM, which has answered 200 before it begins."""
    await turn.start(role=False)
    await turn.end(FAULT, DONE)


async def fails_after_its_role(turn: Turn) -> None:
    await turn.start(role=False)
    await turn.end(ROLE + FAULT, DONE)  # in one read: nothing has gone out


@pytest.mark.parametrize("script", [fails_in_prefill, fails_after_its_role])
@pytest.mark.parametrize("sampled", [False, True])
async def test_an_engine_s_own_error_before_its_first_token_is_tried_at_another_engine(
    script: Script, sampled: bool
) -> None:
    await another_answers(script, CHAT, HELLO_STREAM | ({"temperature": 1} if sampled else {}), "truncated")


async def test_an_engine_whose_streams_begin_with_errors_draws_no_requests_for_long() -> None:
    """It fails fast, so it looks least busy."""
    async with (
        Engine(fails_in_prefill) as bad,
        Engine(echo_script()) as good,
        gateway(bad, good, breaker_failures=3, retries=0) as app,
    ):
        senders = [[("authorization", f"Bearer {n}")] for n in range(12)]
        answers = [
            await post_json(app.url, CHAT, HELLO_STREAM | {"temperature": 1}, sender)
            for sender in senders
            for _ in range(3)
        ]
        failed = [answer for answer in answers if answer.status != 200]
        assert {answer.json()["error"]["code"] for answer in failed} <= {"upstream_error_frame"}
        assert len(failed) <= 6
        assert b"EngineCore died" in failed[0].body


async def test_an_error_that_blames_the_request_is_passed_on_and_logged(engine: Engine, tmp_path: Path) -> None:
    error = sse({"error": {"message": "no", "code": 400}})

    async def script(turn: Turn) -> None:
        await turn.start(role=False)
        await turn.end(error, DONE)

    engine.auto(script)
    async with gateway(engine, log_to=tmp_path / "log") as app:
        answer = await post_json(app.url, CHAT, HELLO_STREAM)
        assert (answer.status, answer.body) == (200, error)
        assert engine.generations == 1
    (line,) = [line for line in lines(tmp_path / "log") if line.get("endpoint") == "chat"]
    assert (line["level"], line["error"], line["status"]) == ("warning", "upstream_error_frame", 200)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("blames", [400, 500])
async def test_readers_of_a_merged_answer_get_one_error(engine: Engine, begun: bool, blames: int) -> None:
    error = sse({"error": {"message": "no", "code": blames}})
    ask = HELLO_STREAM | {"temperature": 1}
    async with gateway(engine, max_inflight=1, retries=0) as app:
        first = asyncio.create_task(post_json(app.url, CHAT, HELLO_STREAM | {"seed": 1}))
        before = await engine.next_request()
        twins = [asyncio.create_task(post_json(app.url, CHAT, ask)) for _ in range(2)]
        await until(lambda: len(app.scheduler.queue) == 2)
        await before.finish("x")
        await first
        turn = await engine.next_request()
        assert turn.json()["n"] == 2
        await turn.start(role=False)
        if begun:
            await turn.frame(ROLE)
            await until(lambda: any(flight.log for flight in app.group.live))
        await turn.end(error, DONE)
        for answer in await asyncio.gather(*twins):
            if begun or blames == 400:
                assert answer.status == 200
                assert answer.events()[-1] == error
                assert answer.body.count(b'"error"') == 1
            else:
                assert (answer.status, answer.json()["error"]["code"]) == (502, "upstream_error_frame")


async def test_a_stream_that_is_no_http_any_more_is_continued_at_another_engine() -> None:
    async def breaks(turn: Turn) -> None:
        await turn.send("a")
        await turn.raw(b"no chunk\r\n")
        await turn.drop()

    async def whole(turn: Turn) -> None:
        await turn.send("a", "b")
        await turn.finish()

    async with (
        Engine(breaks) as one,
        Engine(whole) as two,
        gateway(one, two, routing="round-robin") as app,
    ):
        answer = await post_json(app.url, CHAT, HELLO_STREAM)
        assert b"".join(part.split(b'"')[1] for part in answer.body.split(b'"content":')[1:]) == b"ab"
        assert b"data: [DONE]\n\n" in answer.body
        assert b"error" not in answer.body
        assert (one.generations, two.generations) == (1, 1)

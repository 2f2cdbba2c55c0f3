"""The worst requests: linear by count of calls, off the loop where they are large, answered as ever."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ops.bench.hostile.blocking import chunk, stream
from ops.bench.hostile.requests import CASES, Case, chat, listed, readers, rules, text
from proxy.access.denylist.rules import read_deny_list
from proxy.access.intake import ApiRequestJob, RawJob, Terms, read_api_request, read_raw
from proxy.access.request_limits import RequestLimits
from proxy.app import App
from proxy.flights.key import Keyer
from proxy.server.page.prompt import wanted
from proxy.wire.openai import PATHS, Endpoint
from tests.kit.client import call, get, post_json
from tests.kit.engine import Engine, Turn
from tests.kit.engine_scripts import echo_script
from tests.kit.redis_server import redis_server
from tests.kit.running import gateway, until

CHAT = "/v1/chat/completions"
ENDPOINTS: dict[str, Endpoint] = {path: endpoint for endpoint, path in PATHS.items()}
TERMS = Terms(share="auto", routing="power-of-two", assumed=500, sizes=RequestLimits())
A_BYTE = 1.5  # calls, of Python and of C, for each byte of the worst body
A_GROWN_BYTE = 6.5  # the same where one byte becomes six characters, and each is looked for among 10,000 texts
BIG = 3_000_000


def calls(case: Case, size: int) -> int:
    """Calls of functions, of Python's and of C's, that the whole reading of a body takes."""
    body = case.build(size)
    deny = read_deny_list(rules(case.group), "x") if case.group in ("few", "many") else None
    count = 0
    gc.collect()

    def count_call(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()  # a collection calls the finalizers of what earlier tests left behind
    sys.setprofile(count_call)
    try:
        if case.path in ENDPOINTS:
            read_api_request(ApiRequestJob(ENDPOINTS[case.path]), body, TERMS, deny, Keyer())
        elif case.path == "/-/readers":
            wanted(body)
        else:
            read_raw(RawJob(case.path), body, TERMS, deny)
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_calls_that_a_reading_takes_are_linear_in_its_bytes(case: Case) -> None:
    calls(case, 1000)  # what is imported or cached once
    one, two = calls(case, 20_000), calls(case, 40_000)
    assert two <= 2.2 * one + 200
    assert two <= 40_000 * (A_GROWN_BYTE if case.group == "many" else A_BYTE)


def children(app: App) -> set[int]:
    assert app.large is not None
    return set(app.large.pool.pids)


async def send(app: App, path: str, body: bytes, **headers: str) -> Any:
    return await call(app.url, "POST", path, body, [("content-type", "application/json"), *headers.items()])


async def test_large_requests_are_read_in_another_process_and_small_ones_are_not() -> None:
    async with Engine(script=echo_script()) as engine, gateway(engine) as app:
        assert (await post_json(app.url, CHAT, json.loads(text("hello", 50_000)))).status == 200
        assert children(app) == set()
        body = text("hello world, ", BIG)
        assert (await send(app, CHAT, body)).status == 200
        assert len(children(app)) == 1
        assert engine.requests[-1].body == body
    assert children(app) == set()


async def test_large_requests_share_an_answer_and_ask_for_usage_as_small_ones_do() -> None:
    all_here = asyncio.Event()

    async def script(turn: Turn) -> None:
        await all_here.wait()
        await turn.send("a", "b")
        await turn.finish()

    async with Engine(script=script) as engine, gateway(engine, probe="on") as app:
        body = text("hello world, ", BIG)
        streaming = b'{"stream":true,' + body[1:]
        tasks = [asyncio.create_task(send(app, CHAT, streaming)) for _ in range(2)]
        await until(lambda: app.group.subscribers == 2)
        tasks.append(asyncio.create_task(send(app, CHAT, body)))
        await until(lambda: app.group.subscribers == 3)
        all_here.set()
        answers = await asyncio.gather(*tasks)
        assert [answer.status for answer in answers] == [200, 200, 200]
        assert b'"usage"' not in answers[0].body
        assert answers[0].body == answers[1].body
        assert answers[2].json()["choices"][0]["message"]["content"] == "ab"
        sent = json.loads(engine.requests[0].body)
        assert sent.pop("stream_options") == {"include_usage": True}
        assert sent == json.loads(streaming)
        assert engine.generations == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", b'{"model":"m1","input":' + json.dumps("hello " * (BIG // 6)).encode() + b"}"),
        ("/v1/completions", b'{"model":"m1","prompt":' + json.dumps("hello " * (BIG // 6)).encode() + b"}"),
        (CHAT, chat(listed(b'{"role":"user","content":"x"}', 1_500_000), b',"stream_options":{},"stream":true')),
    ],
)
async def test_large_requests_of_every_kind_reach_the_engine_as_they_came(path: str, body: bytes) -> None:
    async with Engine(script=echo_script()) as engine, gateway(engine) as app:
        assert (await send(app, path, body)).status == 200
        assert len(children(app)) == 1
        sent = json.loads(engine.requests[-1].body)
        sent.pop("stream_options", None)
        given = json.loads(body)
        given.pop("stream_options", None)
        assert sent == given


async def test_a_large_request_that_is_wrong_is_told_so_in_the_words_of_a_small_one() -> None:
    async with Engine(script=echo_script()) as engine, gateway(engine) as app:
        for bad in (b'{"messages":5', b'{"messages":5,"x":"', b'{"messages":[],"a":1,"a":2,"x":"'):
            small = await send(app, CHAT, bad + b'"}')
            large = await send(app, CHAT, bad + b"x" * BIG + b'"}')
            assert (small.status, large.status) == (400, 400)
            assert small.json()["error"]["code"] == large.json()["error"]["code"]
        assert engine.requests == []


async def test_caps_and_deny_lists_hold_for_what_is_large(tmp_path: Path) -> None:
    (tmp_path / "deny.txt").write_text("forbidden fruit")
    settings: dict[str, Any] = {"deny_file": str(tmp_path / "deny.txt"), "max_tokens_cap": 7}
    async with Engine(script=echo_script()) as engine, gateway(engine, **settings) as app:
        good, bad = text("hello, ", BIG), text("hello, ", BIG).replace(b'hello, "', b'Forbidden  FRUIT"')
        for path in (CHAT, "/v1/responses"):
            answer = await send(app, path, bad)
            assert (answer.status, answer.json()["error"]["code"]) == (400, "content_denied")
        assert engine.requests == []
        assert (await send(app, CHAT, good)).status == 200
        assert json.loads(engine.requests[-1].body)["max_tokens"] == 7
        await send(app, "/v1/responses", good)
        assert json.loads(engine.requests[-1].body)["max_output_tokens"] == 7


async def test_fifty_readers_of_a_large_request_are_one_reading() -> None:
    async with Engine(script=echo_script()) as engine, gateway(engine) as app:
        answer = await send(app, "/-/readers", readers(BIG))
        assert answer.status == 200
        assert answer.body.count(b'"end":') == 50
        assert engine.generations == 1
        many = readers(BIG).replace(b'"temperature":0', b'"temperature":1', 1)
        answer = await send(app, "/-/readers", many)
        assert (answer.status, answer.json()["error"]["code"]) == (413, "body_too_large")


async def test_a_reading_process_that_is_killed_costs_one_request() -> None:
    async with Engine(script=echo_script()) as engine, gateway(engine) as app:
        assert (await send(app, CHAT, text("hello, ", BIG))).status == 200
        (pid,) = children(app)
        os.kill(pid, signal.SIGSTOP)
        stopped = asyncio.create_task(send(app, CHAT, text("hello, ", BIG)))
        assert app.large is not None
        pool = app.large.pool
        await until(lambda: bool(pool.busy))
        assert (await get(app.url, "/health")).status == 200
        assert (await post_json(app.url, CHAT, json.loads(text("x", 10)))).status == 200
        os.kill(pid, signal.SIGKILL)
        answer = await stopped
        assert (answer.status, answer.json()["error"]["code"]) == (503, "local_resources")
        assert (await send(app, CHAT, text("hello, ", BIG))).status == 200


async def fold_of(frames: list[bytes]) -> tuple[list[Any], int, int]:
    """A reader of the stream and three of its body, which join the first; requests at the engine; processes."""
    joined = asyncio.Event()

    async def script(turn: Turn) -> None:
        if not turn.wants_stream:
            await turn.answer("asked again")
            return
        await turn.start(role=False)
        await turn.frame(chunk(0, ""))
        await joined.wait()
        await turn.frame(*frames[1:-1])
        await turn.end(frames[-1])

    async with Engine(script=script) as engine, gateway(engine, probe="on") as app:
        body: dict[str, Any] = {"model": "m1", "messages": [{"role": "user", "content": "x"}], "temperature": 0}
        one = asyncio.create_task(post_json(app.url, CHAT, body | {"stream": True}))
        await until(lambda: bool(engine.requests))
        readers = [asyncio.create_task(post_json(app.url, CHAT, body)) for _ in range(3)]
        await until(lambda: app.group.subscribers == 4)
        joined.set()
        answers = await asyncio.gather(one, *readers)
        assert app.large is not None
        assert app.large._folds == {}, "what has been folded is held by nobody"
        return answers, engine.generations, len(children(app))


def frames_of(fingerprint: str) -> list[bytes]:
    return b"".join(stream("frames", 8000)).replace(b"vllm-0.32.0-x", fingerprint.encode()).split(b"\n\n")[:-1]


async def test_a_long_stream_is_folded_once_for_all_in_another_process() -> None:
    answers, generations, processes = await fold_of([each + b"\n\n" for each in frames_of("vllm-0.32.0-x")])
    assert [answer.status for answer in answers] == [200] * 4
    content = answers[1].json()["choices"][0]["message"]["content"]
    assert content == " word" * 8000 + "."
    assert answers[1].body == answers[2].body == answers[3].body
    assert (generations, processes) == (1, 1)


async def test_a_long_stream_that_cannot_be_folded_is_asked_for_again() -> None:
    answers, generations, _ = await fold_of([each + b"\n\n" for each in frames_of("another-1.0")])
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers[1:]] == ["asked again"] * 3
    assert generations == 2, "the three share one"


async def test_a_long_stream_from_the_store_is_folded_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.redis.cache.STORE_SECONDS", 60.0)  # 1.4 MB take a busy machine over a second

    async def script(turn: Turn) -> None:
        await turn.start(role=False)
        await turn.end(*(each + b"\n\n" for each in frames_of("vllm-0.32.0-x")))

    body: dict[str, Any] = {"model": "m1", "messages": [{"role": "user", "content": "x"}], "temperature": 0}
    async with (
        redis_server() as path,
        Engine(script=script) as engine,
        gateway(engine, redis=f"unix://{path}", cache_max_entry_bytes=8 << 20) as app,
    ):
        assert (await post_json(app.url, CHAT, body | {"stream": True})).status == 200
        await until(lambda: len(app.group) == 0)
        answer = await post_json(app.url, CHAT, body)
        assert answer.head["x-gateway-cache"] == "hit", app.metrics.render("text/plain")[0].decode()
        assert answer.status == 200, answer.body[:300]
        assert answer.json()["choices"][0]["message"]["content"] == " word" * 8000 + "."
        assert (engine.generations, len(children(app))) == (1, 1)

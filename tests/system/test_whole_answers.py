"""Answers that are not whole, on every way through the gateway: told honestly, never stored, nothing left."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.app import App
from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight
from proxy.flights.ingest import Callbacks, Ingest, StreamLimits, Timeouts
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Mode
from proxy.upstream.breaker import State
from proxy.wire.frames import has_content
from proxy.wire.openai import decode
from proxy.wire.sse import is_done, unchunks
from proxy.wire.whole import asked_of, take_event
from tests.golden import load, names
from tests.kit.client import Answer, post_json, split_events, streaming
from tests.kit.clock import run_virtual
from tests.kit.engine import Engine, Script
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_turn import Turn
from tests.kit.engine_wire import DONE, error_body, sse
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
STREAMING = Phase.STREAMING
PRIVATE = (("x-gateway-share", "off"),)


@pytest.fixture
async def redis() -> AsyncIterator[str]:
    async with redis_server() as path:
        yield f"unix://{path}"


def choice(index: Any = 0, text: str = "half", reason: Any = None) -> bytes:
    return sse({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": reason}]})


def stream(*frames: bytes, after_first: Callable[[], bool] = lambda: True) -> Script:
    """These frames; those behind the first once a fact holds, so that they do not come with it."""

    async def script(turn: Turn) -> None:
        await turn.start()
        await turn.frame(frames[0])
        await until(after_first)
        await turn.end(*frames[1:])

    return script


def body(content: object) -> Script:
    async def script(turn: Turn) -> None:
        await turn.respond(200, content)

    return script


STREAMS: dict[str, tuple[list[bytes], str]] = {
    "abort": ([choice(), choice(0, "", "abort"), DONE], "'abort'"),
    "error": ([choice(), choice(0, "", "error"), DONE], "'error'"),
    "none": ([choice(), DONE], "0 of 1|without any finish_reason"),
    "empty": ([choice(), choice(0, "", ""), DONE], "0 of 1"),
    "a number": ([choice(), choice(0, "", 5), DONE], "without any finish_reason"),
    "only [DONE]": ([DONE], "without any finish_reason"),
    "no choices": ([sse({"choices": None}), sse({}), DONE], "without any finish_reason"),
    "another choice": ([choice(1), choice(1, "", "stop"), DONE], "1 of 1"),
    "first stop, then abort": ([choice(0, "a", "stop"), choice(0, "", "abort"), DONE], "'abort'"),
}


async def twice(app: App, path: str, ask: object, headers: tuple[tuple[str, str], ...]) -> list[Answer]:
    answers = []
    for _ in range(2):
        answers.append(await post_json(app.url, path, ask, headers))
        await until(lambda: len(app.group) == 0)
    return answers


@pytest.mark.parametrize("headers", [(), PRIVATE], ids=["shared", "private"])
async def test_done_after_an_error_of_the_engine_s_is_not_passed_on(
    engine: Engine, headers: tuple[tuple[str, str], ...]
) -> None:
    """As vLLM ends a stream in which it has told an error: who looks for [DONE] alone would take it for whole."""
    error = sse({"error": {"message": "out of memory", "type": "InternalServerError", "code": 500}})
    async with gateway(engine, retries=0) as app:
        engine.auto(
            stream(choice(), error, DONE, after_first=lambda: any(f.phase is STREAMING for f in app.group.live))
        )
        for answer in await twice(app, CHAT, HELLO_STREAM, headers):
            assert answer.body.endswith(error)
            assert answer.head["x-gateway-cache"] != "hit"


@pytest.mark.parametrize("deny", [False, True], ids=["", "guarded"])
@pytest.mark.parametrize("headers", [(), PRIVATE], ids=["shared", "private"])
@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_that_is_not_whole_ends_in_an_error_and_is_nobody_s_hit(
    redis: str, tmp_path: Path, name: str, headers: tuple[tuple[str, str], ...], deny: bool
) -> None:
    frames, words = STREAMS[name]
    log, rules = tmp_path / "log", tmp_path / "deny"
    rules.write_text("nothing of this\n")
    changes: dict[str, Any] = {"deny_file": str(rules), "deny_answers": True} if deny else {}
    async with Engine() as engine, gateway(engine, redis=redis, log_to=log, retries=0, **changes) as app:
        begun = frames == [DONE]
        engine.auto(
            stream(*frames, after_first=lambda: begun or any(one.phase is STREAMING for one in app.group.live))
        )
        for answer in await twice(app, CHAT, HELLO_STREAM, headers):
            assert b"upstream_incomplete" in answer.body
            assert any(word in answer.body.decode() for word in words.split("|")), answer.body
            assert b"[DONE]" not in answer.body
            if frames == [DONE]:
                assert answer.status == 502  # nothing had gone out
            else:
                assert answer.status == 200
                assert answer.head["x-gateway-cache"] in ("miss", "bypass")
                # What came goes out as it is, but for an abort, which is no end that a client should see.
                assert answer.events()[:-1] == [one for one in frames[:-1] if b'"abort"' not in one]
        assert engine.generations == 2
        page = app.metrics.render("")[0].decode()
        assert 'gateway_flights_ended_total{outcome="error"} 2' in page
        assert 'code="upstream_incomplete"} 2' in page
    assert [line["error"] for line in lines(log) if line.get("endpoint") == "chat"] == ["upstream_incomplete"] * 2


WHOLE = {"index": 0, "message": {"content": "half"}, "finish_reason": "stop"}
BODIES: dict[str, tuple[object, str]] = {
    "abort": ({"choices": [WHOLE | {"finish_reason": "abort"}]}, "'abort'"),
    "none": ({"choices": [WHOLE | {"finish_reason": None}]}, "0 of 1"),
    "an error": (error_body("out of memory"), "an error"),
    "object error": ({"object": "error", "message": "no"}, "an error"),
    "nothing": ({}, "no choices"),
    "choices null": ({"choices": None}, "no choices"),
    "choices text": ({"choices": "stop"}, "no list of choices"),
    "no choice": ({"choices": []}, "no choices"),
    "a list": ([], "not a JSON object"),
    "twice": ({"choices": [WHOLE, WHOLE]}, "choice 0"),
}


@pytest.mark.parametrize("headers", [(), PRIVATE], ids=["shared", "private"])
@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_is_not_whole_is_a_502_that_says_what_is_missing(
    redis: str, name: str, headers: tuple[tuple[str, str], ...]
) -> None:
    content, words = BODIES[name]
    async with Engine(body(content)) as engine, gateway(engine, redis=redis, retries=0) as app:
        for ask in (HELLO, HELLO_STREAM):  # an engine that will not stream answers so too
            for answer in await twice(app, CHAT, ask, headers):
                assert answer.status == 502
                error = answer.json()["error"]
                assert error["code"] == "upstream_incomplete"
                assert words in error["message"]
        assert engine.generations == 4


@pytest.mark.parametrize("n", [2, 3])
async def test_fewer_choices_than_asked_for_are_not_whole(redis: str, n: int) -> None:
    async with Engine(echo_script()) as engine, gateway(engine, redis=redis, retries=0) as app:
        for ask in (HELLO | {"n": n}, HELLO_STREAM | {"n": n}):
            assert "upstream_incomplete" not in (await post_json(app.url, CHAT, ask)).body.decode()
        engine.auto(stream(choice(0, "a", "stop"), DONE))
        assert b"1 of %d" % n in (await post_json(app.url, CHAT, HELLO_STREAM | {"n": n, "seed": 1})).body
        engine.auto(body({"choices": [WHOLE]}))
        assert b"1 of %d" % n in (await post_json(app.url, CHAT, HELLO | {"n": n, "seed": 2})).body
        prompts = {"model": "m1", "prompt": ["a"] * n, "temperature": 0}
        assert b"1 of %d" % n in (await post_json(app.url, TEXT, prompts)).body


async def test_nobody_joins_a_stream_from_the_moment_that_it_is_known_to_be_aborted(engine: Engine) -> None:
    async with gateway(engine, retries=0, probe="on") as app, AsyncExitStack() as stack:
        first = await stack.enter_async_context(streaming(app.url, CHAT, HELLO_STREAM))
        turn = await engine.next_request()
        await turn.send("half")
        await first.event()
        attached = asyncio.create_task(post_json(app.url, CHAT, HELLO))  # a reader of the fold
        await until(lambda: app.group.subscribers == 2)
        await turn.frame(choice(0, "", "abort"))
        await until(lambda: not app.group._streams)
        body = await engine.next_request()  # the reader of the fold does not wait for what it will not get
        await body.answer("a body")
        late = asyncio.create_task(post_json(app.url, CHAT, HELLO_STREAM))
        again = await engine.next_request()
        await turn.end(DONE)
        assert b"a body" in (await attached).body
        assert b"upstream_incomplete" in b"".join([event.raw async for event in first.events()])
        await again.finish("whole")
        assert (await late).head["x-gateway-cache"] == "miss"
        assert b"whole" in (await late).body


@pytest.mark.parametrize("ask", [HELLO, HELLO_STREAM], ids=["body", "stream"])
@pytest.mark.parametrize("headers", [(), PRIVATE], ids=["shared", "private"])
async def test_what_an_engine_aborts_before_anything_has_gone_out_another_one_is_asked_for(
    ask: dict[str, Any], headers: tuple[tuple[str, str], ...]
) -> None:
    async def aborts(turn: Turn) -> None:
        if turn.wants_stream:
            await turn.start()
            await turn.end(turn.shape.role(), choice(0, "", "abort"), DONE)
        else:
            await turn.answer("", reason="abort")

    async with (
        Engine(aborts) as one,
        Engine(aborts) as two,
        gateway(one, two, routing="round-robin") as app,  # by chance all eight might go to `two`
    ):
        two.auto(echo_script())
        for n in range(8):
            answer = await post_json(app.url, CHAT, ask | {"seed": n}, headers)
            assert answer.status == 200
            assert b"abort" not in answer.body
        assert one.generations >= 1
        assert two.generations == 8


async def test_an_engine_that_aborts_again_and_again_is_given_up(engine: Engine) -> None:
    engine.auto(body({"choices": [WHOLE | {"finish_reason": "abort"}]}))
    async with gateway(engine, retries=0, breaker_failures=3) as app:
        codes = [(await post_json(app.url, CHAT, HELLO | {"seed": n})).json()["error"]["code"] for n in range(3)]
        assert codes == ["upstream_incomplete"] * 3
        breaker = app.backends.all[0].breaker  # one caller's failures have it checked, and the check fails too
        await until(lambda: breaker.state is State.OPEN)
        refused = await post_json(app.url, CHAT, HELLO | {"seed": 3})
        assert refused.json()["error"]["code"] == "no_backend"


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_an_engine_s_own_refusal_is_passed_on_as_it_is(engine: Engine, status: int) -> None:
    async def refuses(turn: Turn) -> None:
        await turn.respond(status, {"error": {"message": "not that"}})

    engine.auto(refuses)
    async with gateway(engine) as app:
        for ask in (HELLO, HELLO_STREAM):
            answer = await post_json(app.url, CHAT, ask)
            assert (answer.status, answer.json()) == (status, {"error": {"message": "not that"}})


async def test_what_is_passed_through_is_not_judged(engine: Engine) -> None:
    engine.auto(body({"choices": None}))
    async with gateway(engine) as app:
        assert (await post_json(app.url, "/v1/responses", {"model": "m1"})).json() == {"choices": None}


AFTER = [DONE, choice(0, "more"), b": ping\n\n", b"data: half", b"\n", sse({"error": {"message": "late"}})]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("after", AFTER)
async def test_nothing_after_done_is_passed_on_or_stored_and_its_connection_is_not_used_again(
    redis: str, after: bytes, at_once: bool
) -> None:
    async def script(turn: Turn) -> None:
        await turn.start()
        frames = [choice(0, "a", "stop"), DONE]
        if at_once:
            await turn.end(*frames, after)
            return
        await turn.frame(*frames)
        await until(lambda: not apps[0].group.live)
        await turn.end(after)

    apps: list[App] = []
    async with Engine(script) as engine, gateway(engine, redis=redis) as app:
        apps.append(app)
        seen = await twice(app, CHAT, HELLO_STREAM, ())
        for answer in seen:
            assert answer.body == choice(0, "a", "stop") + DONE
        assert [answer.head["x-gateway-cache"] for answer in seen] == ["miss", "hit"]
        await engine.until(lambda: engine.open_connections == 0)
        engine.auto(echo_script())
        assert (await post_json(app.url, CHAT, HELLO_STREAM, PRIVATE)).status == 200


ODD = [2**64, 10**30, -1, 5.0, "5", [], {}, None, True]


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens", "total_tokens"])
async def test_counts_that_cannot_be_cost_no_place_and_the_answer_is_as_it_was(
    redis: str, odd: object, name: str
) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, name: odd}

    async def script(turn: Turn) -> None:
        if turn.path == EMBED:
            await turn.respond(200, {"data": [{"index": 0, "embedding": [0.5]}], "usage": usage})
        elif turn.wants_stream:
            await stream(choice(0, "a", "stop"), sse({"choices": [], "usage": usage}), DONE)(turn)
        else:
            await turn.respond(200, {"choices": [WHOLE], "usage": usage})

    async with (
        Engine(script) as engine,
        gateway(engine, redis=redis, max_inflight=1, rate_limit_tokens_per_minute=10**8) as app,
    ):
        for headers in ((), PRIVATE):
            for path, ask in ((CHAT, HELLO), (CHAT, HELLO_STREAM), (EMBED, {"model": "m1", "input": "a"})):
                for _ in range(2):
                    answer = await post_json(app.url, path, ask, headers)
                    assert answer.status == 200
                    assert b"error" not in answer.body
        await until(lambda: app.backends.all[0].inflight == 0)


async def test_an_answer_larger_than_an_entry_is_never_put_together_for_the_store(
    redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[object] = []
    monkeypatch.setattr("proxy.flights.scheduler.snapshot", kept.append)
    async with (
        Engine(body({"choices": [WHOLE], "pad": "x" * 5000})) as engine,
        gateway(engine, redis=redis, cache_max_entry_bytes=4096) as app,
    ):
        assert (await post_json(app.url, CHAT, HELLO)).status == 200
        await until(lambda: len(app.group) == 0)
        assert b'op="store_skipped"} 1' in app.metrics.render("")[0]
    assert kept == []


DATUM = {"index": 0, "embedding": [0.5]}


@pytest.mark.parametrize(
    "content",
    [
        {"data": None},
        {"data": []},
        {"data": [DATUM | {"embedding": None}]},
        {"data": [DATUM | {"embedding": []}]},
        {"data": [{"index": 0}]},
        {"error": {"message": "no"}},
        {"object": "error"},
        {},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("headers", [(), PRIVATE], ids=["shared", "private"])
async def test_embeddings_without_a_vector_for_each_input_are_a_502(
    redis: str, content: object, headers: tuple[tuple[str, str], ...]
) -> None:
    async with Engine(body(content)) as engine, gateway(engine, redis=redis, retries=0) as app:
        for answer in await twice(app, EMBED, {"model": "m1", "input": "a"}, headers):
            assert (answer.status, answer.json()["error"]["code"]) == (502, "upstream_incomplete")
        assert len(engine.requests) == 2


async def test_one_input_without_its_vector_does_not_take_the_other_clients_along(engine: Engine) -> None:
    async with gateway(engine, retries=0, max_inflight=1) as app:
        first = asyncio.create_task(post_json(app.url, CHAT, HELLO))
        blocker = await engine.next_request()
        asks = [asyncio.create_task(post_json(app.url, EMBED, {"model": "m1", "input": text})) for text in "ab"]
        await until(lambda: app.group.subscribers >= 3)

        async def script(turn: Turn) -> None:
            inputs = turn.json()["input"]
            inputs = [inputs] if isinstance(inputs, str) else inputs
            vectors = [{"index": n, "embedding": None if text == "a" else [0.5]} for n, text in enumerate(inputs)]
            await turn.respond(200, {"object": "list", "data": vectors})

        engine.auto(script)
        await blocker.answer("x")
        assert [(await ask).status for ask in asks] == [502, 200]
        assert (await first).status == 200


# -- mutation of what vLLM was recorded to say --------------------------------------------------------------

STREAMED = [
    name
    for name in names()
    if load(name).path in (CHAT, TEXT)
    and load(name).status == 200
    and load(name).headers["content-type"].startswith("text/event-stream")
]
REASONS = ["stop", "length", "tool_calls", "content_filter", "function_call", "repetition"]
MUTANTS = [b'"abort"', b'"error"', b"null", b'""', b"5", b'["stop"]', b"{}", b"NaN", b""]
UNKNOWN = [b'"Stop"', b'"stop "', b'"eos_token"']
FINISH = re.compile(rb'(?<="finish_reason":)"[a-z_]+"')


def judged(name: str, body: bytes, cuts: list[int]) -> tuple[GatewayError | None, bool, bytes]:
    """What a feeder makes of a stream: its error, whether it may be stored, and what a reader gets."""

    async def feed() -> tuple[GatewayError | None, bool, bytes]:
        loop = asyncio.get_running_loop()
        recorded = load(name)
        api_request = decode("chat" if recorded.path == CHAT else "completions", recorded.request_body)
        flight = Flight(
            FlightSpec("POST", recorded.path, b"", Mode.STREAM, "r", key=b"k", api_request=api_request), loop.time
        )
        flight.enter(Phase.CONNECTING)
        flight.enter(Phase.PREFILL)
        ends: list[GatewayError | None] = []
        watch = Timeouts(StreamLimits(), loop)
        ingest = Ingest(flight, watch, Callbacks(ends.append))
        ingest.head(200, [("content-type", "text/event-stream")])
        at = [0, *sorted({cut % len(body) for cut in cuts}), len(body)]
        for start, end in pairwise(at):
            ingest.body(body[start:end])
        ingest.end()
        watch.close()
        (error,) = ends
        return error, ingest.clean, b"".join(unchunks(b"".join(flight.log)))

    return run_virtual(feed())


def with_reason(body: bytes, which: int, reason: bytes) -> bytes:
    """The stream with this in place of one of its finish reasons."""
    found = list(FINISH.finditer(body))
    at = found[which % len(found)]
    return body[: at.start()] + reason + body[at.end() :]


@given(
    st.sampled_from(STREAMED),
    st.integers(0, 9),
    st.sampled_from(MUTANTS),
    st.lists(st.integers(0, 9999), max_size=4),
)
def test_a_recorded_stream_with_another_finish_reason_is_never_whole(
    name: str, which: int, mutant: bytes, cuts: list[int]
) -> None:
    body = load(name).body
    error, clean, passed = judged(name, body, cuts)
    assert (error, clean, passed) == (None, True, body)
    error, clean, passed = judged(name, with_reason(body, which, mutant), cuts)
    assert not clean
    assert error is not None
    assert error.code is Code.UPSTREAM_INCOMPLETE
    assert b"[DONE]" not in passed


@given(
    st.sampled_from(STREAMED),
    st.integers(0, 9),
    st.sampled_from(UNKNOWN),
    st.lists(st.integers(0, 9999), max_size=4),
)
def test_a_recorded_stream_with_an_unknown_finish_reason_is_passed_on_and_not_stored(
    name: str, which: int, mutant: bytes, cuts: list[int]
) -> None:
    changed = with_reason(load(name).body, which, mutant)
    assert judged(name, changed, cuts) == (None, False, changed)


def more_than_asked(name: str, passed: bytes) -> bool:
    """Whether an event is no part of what was asked for."""
    recorded = load(name)
    asked = asked_of(decode("chat" if recorded.path == CHAT else "completions", recorded.request_body))
    ended: dict[int, str] = {}
    events, _ = split_events(passed)
    return any(
        take_event(event, ended, asked, content=has_content(event)) for event in events if not is_done(event)
    )


@given(
    st.sampled_from(STREAMED),
    st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 40), st.binary(max_size=6)), min_size=1, max_size=4),
)
def test_a_damaged_stream_raises_nothing_and_is_stored_only_where_it_ended(
    name: str, damage: list[tuple[int, int, bytes]]
) -> None:
    body = load(name).body
    for start, gone, instead in damage:
        start %= len(body)
        body = body[:start] + instead + body[start + gone :]
    error, clean, passed = judged(name, body, [])
    if error is not None:
        assert not clean
    elif not clean:
        assert b'"error"' in passed or more_than_asked(name, passed)
    if clean:
        assert any(b'"%b"' % reason.encode() in passed for reason in REASONS)
        assert b"[DONE]" in passed

"""What a request's headers, and fields that change no token, do to those who share its answer: nothing."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.kit.client import Answer, call, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_turn import Turn
from tests.kit.engine_wire import embeddings_body, error_body
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines, until

CHAT = "/v1/chat/completions"
EMBED = "/v1/embeddings"
SAMPLED = HELLO | {"temperature": 0.8}
SECRET = "customer-4711-secret-case"
BODIES: dict[str, Any] = {
    "stream": HELLO_STREAM,
    "whole": HELLO,
    "usage": HELLO_STREAM | {"stream_options": {"include_usage": True}},
}


async def named_by_its_request(turn: Turn) -> None:
    """As vLLM: an answer's id ends in its request's."""
    name = turn.headers["x-request-id"]
    if turn.path == EMBED:
        items = turn.json()["input"]
        body = embeddings_body([items] if isinstance(items, str) else items, "m1", 1)
        await turn.respond(200, body | {"id": f"embd-{name}"})
        return
    turn.shape.id = f"chatcmpl-{name}"
    await echo_script()(turn)


async def both(url: str, path: str, body: object, *headers: tuple[tuple[str, str], ...]) -> list[Answer]:
    return await asyncio.gather(*(post_json(url, path, body, each) for each in headers))


# -- lines of one name are one list (RFC 9110, 5.3)


async def test_a_second_line_of_cache_control_holds_too(engine: Engine) -> None:
    engine.auto(echo_script())
    two = (("cache-control", "max-age=0"), ("cache-control", "no-store"))
    fresh = (("cache-control", "max-age=0"), ("cache-control", "no-cache"))
    async with redis_server() as path, gateway(engine, redis=f"unix://{path}") as app:
        verdicts = []
        for headers in (two, (), (), fresh, ()):
            verdicts.append((await post_json(app.url, CHAT, HELLO, headers)).head["x-gateway-cache"])
            await until(lambda: len(app.group) == 0)
        assert verdicts == ["miss", "miss", "hit", "miss", "hit"]
        share = (("x-gateway-share", "all"), ("x-gateway-share", "off"))
        refused = await post_json(app.url, CHAT, HELLO, share)
        assert (refused.status, refused.json()["error"]["param"]) == (400, "x-gateway-share")


# -- headers on which an engine acts ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x-data-parallel-rank", "x-session-id", "x-vllm-priority"])
@pytest.mark.parametrize(("path", "body"), [(CHAT, HELLO), (CHAT, HELLO_STREAM), (EMBED, {"input": "a"})])
async def test_a_refusal_drawn_by_a_header_is_for_those_alone_who_sent_it(
    engine: Engine, name: str, path: str, body: dict[str, Any]
) -> None:
    async def script(turn: Turn) -> None:
        if turn.headers.get(name) == "99":
            await turn.respond(400, error_body(f"no {name} 99", status=400))
        else:
            await echo_script()(turn)

    engine.auto(script)
    async with gateway(engine) as app:
        sent = (((name, "99"),), (), ((name, "1"),), ((name, "99"),))
        answers = await both(app.url, path, body, *sent)
        assert [answer.status for answer in answers] == [400, 200, 200, 400]


async def test_requests_with_the_same_header_share(engine: Engine) -> None:
    async with gateway(engine) as app:
        headers = (("x-session-id", "s"), ("x-data-parallel-rank", "1"))
        posts = asyncio.create_task(both(app.url, CHAT, HELLO, headers, headers[::-1]))
        turn = await engine.next_request()
        assert (turn.headers["x-session-id"], turn.headers["x-data-parallel-rank"]) == ("s", "1")
        await until(lambda: app.group.subscribers == 2)
        await turn.answer("a")
        assert {answer.status for answer in await posts} == {200}
        assert engine.generations == 1


TRACE = f"00-{1:032x}-{2:016x}-01"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ((("traceparent", TRACE),), {"traceparent": TRACE}),
        ((("traceparent", TRACE), ("tracestate", "a=b")), {"traceparent": TRACE, "tracestate": "a=b"}),
        ((("traceparent", TRACE), ("tracestate", "a" * 513)), {"traceparent": TRACE}),
        ((("traceparent", TRACE), ("tracestate", "\xe9")), {"traceparent": TRACE}),
        ((("tracestate", "a=b"),), {}),
        ((("traceparent", "00-1-2-01"), ("tracestate", "a=b")), {}),
        ((("traceparent", TRACE.replace("1", "\xff")),), {}),
        ((("traceparent", TRACE + "-x"),), {}),
        ((("traceparent", f"00-{0:032x}-{2:016x}-01"),), {}),
        ((("traceparent", TRACE), ("connection", "traceparent")), {}),
    ],
)
async def test_a_trace_context_goes_up_only_where_it_is_well_formed(
    engine: Engine, given: tuple[tuple[str, str], ...], sent: dict[str, str]
) -> None:
    engine.auto(echo_script())
    async with gateway(engine) as app:
        assert (await post_json(app.url, CHAT, HELLO, given)).status == 200
        found = {name: value for name, value in engine.requests[0].headers.items() if name.startswith("trace")}
        assert found == sent


OF_OURS = ["x-gateway-share", "x-gateway-priority", "x-request-timeout", "x-request-id", "x-forwarded-for"]
READ_HERE = [
    *(
        "x-session-id",
        "x-data-parallel-rank",
        "x-vllm-priority",
        "authorization",
        "cache-control",
        "traceparent",
        "tracestate",
    ),
    *("accept", "content-encoding", "expect", "connection", "user-agent", "x"),
    *OF_OURS,
]


@pytest.mark.parametrize("value", ["\xff", "\xc3\xa9", "no-cache \x80", "all\xff", "1\xe9", "\xff" * 2000])
@pytest.mark.parametrize("routing", ["hash", "power-of-two"])
async def test_no_bytes_of_a_header_stop_anyone(engine: Engine, value: str, routing: str) -> None:
    """The same prompt twice within a second: the second looks for its twins."""
    engine.auto(echo_script())
    settings: dict[str, Any] = {"forward_authorization": True, "trusted_proxies": ("127.0.0.1",)}
    async with gateway(engine, max_inflight=1, routing=routing, rate_limit_streams=100, **settings) as app:
        for name in READ_HERE:
            for path, body in ((CHAT, SAMPLED), (CHAT, HELLO_STREAM), (EMBED, {"input": "a"}), ("/tokenize", {})):
                same = ((name, value),)
                answers = await both(app.url, path, body, same, same, same)
                assert {answer.status for answer in answers} <= {200, 400, 404, 415, 417}, (name, path)
        assert (await post_json(app.url, CHAT, SAMPLED)).status == 200
        assert app.backends.all[0].inflight == 0


@pytest.mark.parametrize("name", ["x-session-id", "x-data-parallel-rank", "x-gateway-share", "x-gateway-priority"])
async def test_a_header_of_ours_or_the_engines_that_is_not_ascii_is_refused_with_its_name(
    engine: Engine, name: str
) -> None:
    async with gateway(engine) as app:
        answer = await post_json(app.url, CHAT, SAMPLED, ((name, "\xff"),))
        error = answer.json()["error"]
        assert (answer.status, error["code"]) == (400, "invalid_header")
        assert name in error["message"]
        assert engine.requests == []


# -- fields that change no token ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "change"),
    [
        (CHAT, HELLO, {"user": 5}),
        (CHAT, HELLO, {"metadata": "x"}),
        (CHAT, HELLO, {"metadata": {"a": "b" * 10_000}}),
        (CHAT, HELLO_STREAM, {"stream_options": {"new": None}}),
        (CHAT, SAMPLED, {"user": {"a": 1}}),
        (EMBED, {"input": "a"}, {"user": 5}),
        (EMBED, {"input": "a"}, {"stream": True}),
    ],
)
async def test_a_refusal_drawn_by_a_field_is_for_those_alone_who_sent_it(
    engine: Engine, path: str, body: dict[str, Any], change: dict[str, Any]
) -> None:
    ((name, value),) = change.items()

    async def strict(turn: Turn) -> None:
        asked = turn.json().get(name)
        if asked == value or (isinstance(asked, dict) and "new" in asked):
            await turn.respond(400, error_body("no", status=400))
        else:
            await echo_script()(turn)

    engine.auto(strict)
    async with gateway(engine, max_inflight=1) as app:
        for first, second in ((body | change, body), (body, body | change)):
            answers = await asyncio.gather(*(post_json(app.url, path, one) for one in (first, second, second)))
            assert [answer.status for answer in answers].count(400) == [first, second, second].count(body | change)


async def test_a_padded_embedding_fails_alone(engine: Engine) -> None:
    async def small(turn: Turn) -> None:
        if len(turn.body) > 100_000:
            await turn.respond(413, error_body("too large", status=413))
        else:
            await echo_script()(turn)

    engine.auto(small)
    body = json.dumps({"model": "m1", "input": "a"}).encode()
    async with gateway(engine, max_inflight=1) as app:
        answers = await asyncio.gather(
            *(call(app.url, "POST", EMBED, one) for one in (body + b" " * 200_000, body, body))
        )
        assert [answer.status for answer in answers] == [200, 200, 200]


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_a_refusal_is_never_stored(engine: Engine, status: int) -> None:
    async with redis_server() as path, gateway(engine, redis=f"unix://{path}", retries=0) as app:
        for body in (HELLO, HELLO_STREAM):
            post = asyncio.create_task(post_json(app.url, CHAT, body))
            await (await engine.next_request()).respond(status, error_body("no", status=status))
            assert (await post).status == status
            await until(lambda: len(app.group) == 0)
            post = asyncio.create_task(post_json(app.url, CHAT, body | {"seed": 1}))
            await (await engine.next_request()).respond(status, error_body("no", status=status))
            await post
        post = asyncio.create_task(post_json(app.url, CHAT, HELLO))
        await (await engine.next_request()).answer("a")
        assert (await post).head["x-gateway-cache"] == "miss"


# -- what names a client ------------------------------------------------------------------------------


@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
async def test_an_answer_that_others_may_read_does_not_hold_its_clients_id(
    engine: Engine, body: dict[str, Any], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with (
        redis_server() as path,
        gateway(engine, redis=f"unix://{path}", log_to=log) as app,
        AsyncExitStack() as s,
    ):
        first = await s.enter_async_context(streaming(app.url, CHAT, body, (("x-request-id", SECRET),)))
        turn = await engine.next_request()
        assert turn.headers["x-request-id"] != SECRET
        async with streaming(app.url, CHAT, body, (("x-request-id", "follower"),)) as second:
            await until(lambda: app.group.subscribers == 2)
            await named_by_its_request(turn)
            answers = [await first.read(), await second.read()]
        await until(lambda: len(app.group) == 0)
        answers.append(await post_json(app.url, CHAT, HELLO, (("x-request-id", "hit"),)))
        assert [answer.head["x-gateway-cache"] for answer in answers] == ["miss", "attached", "hit"]
        assert [answer.head["x-request-id"] for answer in answers] == [SECRET, "follower", "hit"]
        sent = turn.headers["x-request-id"]
        assert all(sent.encode() in answer.body for answer in answers)
        assert not any(name in answer.raw.partition(b"\r\n\r\n")[2] for answer in answers for name in NAMES)
    records = {line["request_id"]: line for line in lines(log) if line["msg"] == "request"}
    assert [records[name].get("upstream_id") for name in (SECRET, "follower", "hit")] == [sent, sent, None]


NAMES = (SECRET.encode(), b"follower")


async def test_an_answer_of_ones_own_is_named_by_its_client(engine: Engine, tmp_path: Path) -> None:
    engine.auto(named_by_its_request)
    log = tmp_path / "log"
    async with gateway(engine, log_to=log) as app:
        for headers in ((("x-request-id", SECRET), ("cache-control", "no-store")), (("x-request-id", SECRET),)):
            answer = await post_json(app.url, CHAT, SAMPLED, headers)
            assert answer.json()["id"] == f"chatcmpl-{SECRET}"
        unnamed = await post_json(app.url, CHAT, HELLO)
        assert unnamed.json()["id"] == f"chatcmpl-{unnamed.head['x-request-id']}"  # ours: it names nobody
    assert not any("upstream_id" in line for line in lines(log))


@pytest.mark.parametrize("streamed", [True, False])
async def test_twins_that_go_up_together_see_no_id_but_their_own(
    engine: Engine, streamed: bool, tmp_path: Path
) -> None:
    """Here the engine says the id where nothing is renamed, too."""
    log = tmp_path / "log"
    async with gateway(engine, max_inflight=1, log_to=log) as app, AsyncExitStack() as stack:
        await stack.enter_async_context(
            streaming(app.url, CHAT, HELLO_STREAM | {"messages": [{"role": "user", "content": "block"}]})
        )
        blocking = await engine.next_request()
        names, body = [f"{SECRET}-{n}" for n in range(3)], SAMPLED | {"stream": streamed}
        posts = [asyncio.create_task(post_json(app.url, CHAT, body, (("x-request-id", name),))) for name in names]
        await until(lambda: len(app.scheduler.queue) == 3)
        await blocking.finish()
        turn = await engine.next_request()
        sent = turn.headers["x-request-id"]
        assert SECRET not in sent
        turn.shape.id = f"chatcmpl-{sent}"
        turn.shape.model = f"m1 {sent}"
        await echo_script()(turn)
        for name, post in zip(names, posts, strict=True):
            answer = await post
            assert answer.head["x-gateway-cache"] == "merged"
            assert f'"id":"chatcmpl-{name}"'.encode() in answer.body
            assert not any(other.encode() in answer.body for other in names if other != name)
    records = [line for line in lines(log) if line.get("request_id") in names]
    assert [line["upstream_id"] for line in records] == [sent] * 3


async def test_embeddings_that_others_may_read_do_not_hold_their_clients_id(
    engine: Engine, tmp_path: Path
) -> None:
    engine.auto(named_by_its_request)
    log = tmp_path / "log"
    async with redis_server() as path, gateway(engine, redis=f"unix://{path}", log_to=log) as app:
        bodies = [{"model": "m1", "input": items} for items in (["a", "b"], ["b", "c"], ["a", "b", "c"])]
        named = [(("x-request-id", f"{SECRET}-{n}"),) for n in range(4)]
        answers = await asyncio.gather(*(post_json(app.url, EMBED, bodies[n], named[n]) for n in range(3)))
        await until(lambda: len(app.embedder or ()) == 0)
        answers.append(await post_json(app.url, EMBED, bodies[0], named[3]))
        assert answers[-1].head["x-gateway-cache"] == "hit"
        assert not any(SECRET.encode() in answer.body for answer in answers)
        assert not any(SECRET in turn.headers["x-request-id"] for turn in engine.requests)
    known = {turn.headers["x-request-id"] for turn in engine.requests}
    told = {line["request_id"]: line.get("upstream_id") for line in lines(log) if line["msg"] == "request"}
    assert told.pop(f"{SECRET}-3") is None
    assert set(told.values()) <= known


async def test_the_pages_readers_go_up_by_an_id_of_ours(engine: Engine) -> None:
    engine.auto(named_by_its_request)
    async with gateway(engine) as app:
        body = {"request": HELLO_STREAM, "delays_ms": [0.0, 0.0]}
        await post_json(app.url, "/-/readers", body, (("x-request-id", SECRET),))
        assert engine.requests
        assert not any(SECRET in turn.headers["x-request-id"] for turn in engine.requests)


@pytest.mark.parametrize("body", [HELLO, SAMPLED, SAMPLED | {"stream": True}, {"model": "m1", "input": "a"}])
async def test_headers_of_an_answer_that_several_get_are_passed_to_none_of_them(
    engine: Engine, body: dict[str, Any]
) -> None:
    """A cookie, a trace: they are of the one whose request went up."""
    path = EMBED if "input" in body else CHAT
    own = [("set-cookie", "session=1"), ("traceresponse", "x")]

    async def script(turn: Turn) -> None:
        count = turn.json().get("n", 1)
        if path == EMBED:
            await turn.respond(200, embeddings_body(["a"], "m1", 1), own)
        elif turn.wants_stream:
            await turn.start(headers=own)
            await turn.finish("a", choices=range(count))
        else:
            await turn.respond(200, turn.shape.whole(["a"] * count, ["stop"] * count, 1, count), own)

    engine.auto(script)
    async with gateway(engine, max_inflight=1) as app:
        answers = await asyncio.gather(*(post_json(app.url, path, body) for _ in range(6)))
        several = [answer for answer in answers if answer.head["x-gateway-cache"] in ("attached", "merged")]
        assert several
        assert not any("set-cookie" in answer.head or "traceresponse" in answer.head for answer in several)


async def test_one_clients_deadline_does_not_end_what_another_waits_for(engine: Engine) -> None:
    """An array of embeddings waits for an engine: the one that began it gives up, those that joined do not."""
    body = {"model": "m1", "input": "a"}
    async with gateway(engine, max_inflight=1) as app, streaming(app.url, CHAT, HELLO_STREAM):
        blocking = await engine.next_request()
        hurried = asyncio.create_task(post_json(app.url, EMBED, body, (("x-request-timeout", "0.3"),)))
        await until(lambda: len(app.scheduler.queue) == 1)
        joined = asyncio.create_task(post_json(app.url, EMBED, body))
        other = asyncio.create_task(post_json(app.url, EMBED, body | {"input": ["a"]}))
        assert (await hurried).status == 504
        engine.auto(echo_script())
        await blocking.finish("a")
        assert [answer.status for answer in await asyncio.gather(joined, other)] == [200, 200]

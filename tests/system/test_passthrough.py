"""Every other path of vLLM's: bytes and headers go both ways as they are, at the pace of the slower side."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.access import AccessRules, Authenticator, TrustedProxies
from proxy.config.settings import Settings
from proxy.server.context import RequestContext
from proxy.server.handlers.passthrough import PassThrough
from proxy.server.listener.request import Request
from tests.kit.client import Connection, IncompleteBody, call, get, post_json, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.forms import FORM_TYPE, form_of
from tests.kit.running import HELLO, gateway, until

PATHS = [
    "/v1/responses",
    "/v1/messages",
    "/v1/a/b",
    "/tokenize",
    "/detokenize",
    "/score",
    "/v2/rerank",
    "/v2/embed",
]
ODD = "application/x-odd"
OTHER = "/v1/a/b"  # a path whose answers the gateway does not read


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
async def test_method_target_and_bytes_go_up_as_they_came(engine: Engine, method: str, path: str) -> None:
    engine.auto(lambda turn: turn.respond(200, b"ok"))
    odd = path == "/v1/a/b"  # the others take JSON
    body = b"" if method in ("GET", "DELETE") else b"\x00\xff not json" if odd else b' {"a": 1.0, "b":[ ]}\n'
    kind = ODD if odd else "application/json"
    target = f"{path}?a=%20b&c=%2F&d"
    async with gateway(engine) as app:
        answer = await call(app.url, method, target, body, [("Content-Type", kind)])
    assert (answer.status, answer.body) == (200, b"ok")
    (turn,) = engine.requests
    assert (turn.method, turn.path, turn.body) == (method, target, body)
    assert turn.headers["content-type"] == kind


async def test_end_to_end_headers_go_up_and_the_others_stay(engine: Engine) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    passed = [
        ("Accept", "text/event-stream"),
        ("User-Agent", "me/1"),
        ("X-Mine", "caf\xe9"),
        ("X-Twice", "1"),
        ("X-Twice", "2"),
        ("Anthropic-Version", "2023-06-01"),
    ]
    kept = [
        ("Connection", "x-named, keep-alive"),
        ("X-Named", "1"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Trailer", "X-T"),
        ("Proxy-Authorization", "Basic eA=="),
        ("Proxy-Connection", "keep-alive"),
        ("Authorization", "Bearer secret"),
        ("Cookie", "a=b"),
        ("Forwarded", "for=1.2.3.4"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("X-Gateway-Share", "off"),
    ]
    async with gateway(engine) as app:
        assert (await call(app.url, "POST", "/v1/responses", b"{}", passed + kept)).status == 200
    (turn,) = engine.requests
    for name, value in passed:
        assert (name, value) in turn.raw_headers
    arrived = {name.lower() for name, _ in turn.raw_headers}
    assert not arrived & {name.lower() for name, _ in kept}
    assert "secret" not in str(turn.raw_headers)
    assert [name for name, _ in turn.raw_headers].count("Content-Length") == 1


@pytest.mark.parametrize("status", [200, 201, 400, 404, 418, 500, 503])
async def test_status_headers_and_bytes_come_back_as_they_were(engine: Engine, status: int) -> None:
    said = [("X-Engine", "1"), ("Set-Cookie", "a=b"), ("Set-Cookie", "c=d"), ("Keep-Alive", "timeout=5")]
    engine.auto(lambda turn: turn.respond(status, b"\x00 odd", [("content-type", "x/y"), *said]))
    async with gateway(engine) as app:
        answer = await call(app.url, "POST", "/v1/responses", b"{}")
    assert (answer.status, answer.body) == (status, b"\x00 odd")
    assert answer.head["content-type"] == "x/y"
    assert answer.head["content-length"] == "5"
    values = [v for n, v in answer.head.headers if n.lower() == "set-cookie"]
    assert values == ["a=b", "c=d"]
    assert "keep-alive" not in answer.head
    assert answer.head["x-gateway-cache"] == "bypass"


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_has_none(engine: Engine, status: int) -> None:
    async def script(turn: Turn) -> None:
        await turn.raw(b"HTTP/1.1 %d X\r\nx-a: b\r\n\r\n" % status)
        turn.mark_done()

    engine.auto(script)
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        for _ in range(2):  # the second one shows where the first ended
            await client.request("GET", "/v1/x")
            head = await client.read_head()
            assert (head.status, head["x-a"]) == (status, "b")
            assert "transfer-encoding" not in head


async def test_head_is_passed_on_and_answered_without_a_body(engine: Engine) -> None:
    async def script(turn: Turn) -> None:
        assert turn.method == "HEAD"
        await turn.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        turn.mark_done()

    engine.auto(script)
    async with gateway(engine, token_timeout=1.0) as app, await Connection.open(app.url) as client:
        for _ in range(2):
            await client.request("HEAD", "/v1/x")
            head = await client.read_head()
            assert (head.status, head["content-length"]) == (200, "5")


async def test_a_stream_comes_through_piece_by_piece_as_it_is(engine: Engine) -> None:
    pieces = [b"event: a\ndata: {}\n\n", b": comment\n\n", b"data: half", b" a frame\r\n\r\n", b"no frame at all"]
    async with gateway(engine) as app, streaming(app.url, OTHER, {"stream": True}) as client:
        turn = await engine.next_request()
        await turn.start()
        assert (await client.read_head())["content-type"] == "text/event-stream; charset=utf-8"
        for piece in pieces:
            await turn.frame(piece)
            assert await client.chunk() == piece
        await turn.end()
        assert await client.chunk() is None


async def test_what_passes_through_is_never_shared(engine: Engine) -> None:
    async with gateway(engine, share="all") as app:
        answers = [asyncio.create_task(post_json(app.url, "/v1/responses", {"input": "x"})) for _ in range(2)]
        for i in range(2):
            await (await engine.next_request()).respond(200, {"n": i})
        assert sorted([(await a).json()["n"] for a in answers]) == [0, 1]


async def test_a_large_body_goes_up_whole(engine: Engine) -> None:
    engine.auto(lambda turn: turn.respond(200, turn.body))
    body = bytes(range(256)) * 40_000
    async with gateway(engine) as app:
        assert (await call(app.url, "POST", "/v1/files", body, [("Content-Type", ODD)])).body == body
    assert engine.requests[0].body == body


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_slow_reader_holds_the_engine_back_and_gets_everything(engine: Engine, chunked: bool) -> None:
    piece = b"x" * 2**20
    count = 100  # far more than all sockets between hold, and more than one answer may take in memory
    written = 0

    async def script(turn: Turn) -> None:
        nonlocal written
        length = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % (count * len(piece))
        await turn.raw(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n")
        for _ in range(count):
            await turn.raw(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            written += 1
        if chunked:
            await turn.raw(b"0\r\n\r\n")
        turn.mark_done()

    engine.auto(script)
    async with gateway(engine, max_flight_bytes=32 * 2**20) as app, await Connection.open(app.url) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.request("GET", "/v1/files/big")
        await until(lambda: any(r.lagging for f in app.group.live for r in f.subscribers))
        seen = -1
        while seen != written:  # until nothing moves any more
            seen = written
            for _ in range(200):
                await asyncio.sleep(0)
        assert written < count
        assert sum(f.size for f in app.group.live) < 16 * 2**20
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        size = 0
        async for data in client.chunks():
            size += len(data)
        assert size == count * len(piece)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_answer_cut_by_the_engine_is_seen_as_cut(engine: Engine, chunked: bool, reset: bool) -> None:
    async with gateway(engine) as app, streaming(app.url, OTHER, {}) as client:
        turn = await engine.next_request()
        length = b"transfer-encoding: chunked" if chunked else b"content-length: 10"
        await turn.raw(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n" + (b"3\r\nabc\r\n" if chunked else b"abc"))
        assert await client.chunk() == b"abc"
        await turn.drop(reset=reset)
        with pytest.raises(IncompleteBody):
            await client.read()


async def test_an_engine_that_refuses_is_told_as_everywhere(engine: Engine) -> None:
    async with gateway(engine) as app:
        engine.stop_listening()
        await engine.drop_connections()
        answer = await post_json(app.url, "/v1/responses", {})
        assert (answer.status, answer.json()["error"]["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize("body", [b"", b"x"])
async def test_an_empty_answer_is_answered_too(engine: Engine, body: bytes) -> None:
    engine.auto(lambda turn: turn.respond(200, b"", [("x-a", "b")]))
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        for _ in range(2):
            await client.request("POST", "/v1/x", body, [("Content-Type", ODD)])
            answer = await client.read()
            assert (answer.status, answer.body, answer.head["x-a"]) == (200, b"", "b")


async def test_a_body_delimited_by_close_is_whole_when_it_closes(engine: Engine) -> None:
    async def script(turn: Turn) -> None:
        await turn.raw(b"HTTP/1.1 200 OK\r\n\r\nabc")
        await turn.drop()

    engine.auto(script)
    async with gateway(engine) as app:
        assert (await call(app.url, "GET", "/v1/x")).body == b"abc"


def passthrough(settings: Settings, read: Any, **parts: Any) -> PassThrough:
    """The handler, of which a test calls `read` only."""
    others = (
        *("responder", "group", "scheduler", "priority_policy"),
        *("access_policy", "admission", "large", "responses"),
    )
    names = {"backends": None, "standby": None, "rules": AccessRules(Authenticator(None, TrustedProxies(())))}
    given: dict[str, Any] = dict.fromkeys(others) | names | parts
    return PassThrough(settings, bodies=cast(Any, SimpleNamespace(read=read)), **given)


@pytest.mark.parametrize(
    ("kind", "body", "model", "cost"),
    [
        (None, b"", None, (0, 0)),
        ("application/json", b' {"model": "m1", "max_tokens": 7}', "m1", (9, 7)),
        (FORM_TYPE[1], form_of(b"x", {"model": "m2"}, None), "m2", (16, 512)),
        (ODD, b"12345678", None, (2, 512)),
    ],
)
async def test_a_body_s_model_and_cost_are_known_once_it_is_read(
    kind: str | None, body: bytes, model: str | None, cost: tuple[int, int]
) -> None:
    head = CIMultiDictProxy(CIMultiDict({} if kind is None else {"content-type": kind}))
    request = SimpleNamespace(body_exists=bool(body), headers=head, path="/v1/a/b")
    limits: list[int] = []

    async def read(call: RequestContext, *, json: bool, limit: int = 0) -> bytes:
        limits.append(limit)
        return body

    settings = Settings()
    step = passthrough(settings, read)
    found = RequestContext(request=cast(Request, request), id="r")
    assert (await step.read(found)).body == body
    assert (found.model, found.cost) == (model, cost)
    assert limits == [settings.max_upload_bytes if kind == FORM_TYPE[1] else 0]


async def test_the_log_probabilities_of_a_long_prompt_pass_through_though_they_are_over_the_bound_of_a_flight(
    engine: Engine,
) -> None:
    chunk = b'{"1":{"logprob":-1.0,"rank":1,"decoded_token":"x"}},' * 4000

    async def script(turn: Turn) -> None:
        assert turn.path == "/v1/completions"
        await turn.start(headers=[("content-type", "application/json")])
        for _ in range(10):
            await turn.frame(chunk)
        await turn.end(b"]}")

    engine.auto(script)
    body = {"model": "m1", "prompt": "word " * 2000, "prompt_logprobs": 5, "max_tokens": 1, "temperature": 0}
    async with gateway(engine, max_flight_bytes=1_000_000) as app:
        answer = await post_json(app.url, "/v1/completions", body)
        assert (answer.status, len(answer.body)) == (200, 10 * len(chunk) + 2)
        assert answer.head["x-gateway-cache"] == "bypass"
        short = await post_json(app.url, "/v1/completions", body | {"prompt": "word"})
        assert short.status == 502


@pytest.mark.parametrize("path", ["/ping", "/health"])
async def test_the_process_says_that_it_lives_by_sagemakers_name_too(engine: Engine, path: str) -> None:
    async with gateway(engine) as app:
        assert (await get(app.url, path)).status == 200


async def test_ping_takes_post_too_with_and_without_a_body_and_nothing_else(engine: Engine) -> None:
    """As at vLLM: SageMaker's `/ping` is GET and POST; what is posted says nothing."""
    async with gateway(engine) as app:
        for body in (b"", b"not JSON", b"x" * 100_000):
            answer = await call(app.url, "POST", "/ping", body)
            assert (answer.status, answer.json()) == (200, {"status": "ok"})
        put, health = await call(app.url, "PUT", "/ping"), await call(app.url, "POST", "/health")
        assert (put.status, put.head["allow"]) == (405, "GET, POST, HEAD")
        assert "accepts GET and POST, not PUT" in put.json()["error"]["message"]
        assert (health.status, health.head["allow"]) == (405, "GET, HEAD")


async def test_what_sagemaker_invokes_is_capped(engine: Engine) -> None:
    async def script(turn: Turn) -> None:
        await turn.respond(200, turn.json())

    engine.auto(script)
    async with gateway(engine, max_tokens_cap=10) as app:
        for asked in ({"max_tokens": 99}, {"max_completion_tokens": 99}, {}):
            answer = await post_json(app.url, "/invocations", HELLO | asked)
            told = answer.json()
            assert [told[name] for name in ("max_tokens", "max_completion_tokens") if name in told] == [10]


class Elsewhere:
    """Where large bodies are read: what it was given."""

    inline = 10

    def __init__(self, *, heavy: bool) -> None:
        self.told: list[object] = []
        self._heavy = heavy

    def heavy(self, body: bytes) -> bool:
        return self._heavy

    async def raw(self, call: RequestContext, media: object, body: bytes) -> tuple[bytes, None, bool]:
        self.told.append(media)
        return body + b"!", None, False


@pytest.mark.parametrize(
    ("kind", "size", "heavy", "away"),
    [
        ("application/json", 11, True, True),
        ("application/json", 10, True, False),
        ("application/json", 11, False, False),
        (ODD, 11, True, False),
    ],
)
@pytest.mark.parametrize("limited", [False, True])
async def test_a_body_is_read_elsewhere_where_it_is_large_and_can_be_read(
    kind: str, size: int, heavy: bool, away: bool, limited: bool
) -> None:
    body = b'{"a":1}' + b" " * (size - 7)
    head = CIMultiDictProxy(CIMultiDict({"content-type": kind}))
    request = SimpleNamespace(body_exists=True, headers=head, path="/v1/a/b")
    admitted: list[int] = []
    large = Elsewhere(heavy=heavy)

    async def read(call: RequestContext, *, json: bool, limit: int = 0) -> bytes:
        assert not json
        return body

    async def admit(call: RequestContext, *passed: object) -> None:
        admitted.append(len(passed))

    found = RequestContext(request=cast(Request, request), id="r")
    step = passthrough(Settings(), read, admission=admit if limited else None, large=large)
    assert (await step.read(found)).body == (body + b"!" if away else body)
    assert len(large.told) == away
    assert admitted == ([0 if away else 1] if limited else [])

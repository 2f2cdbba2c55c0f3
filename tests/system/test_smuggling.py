"""Requests that two servers would read as two different ones, and paths and headers that mean to get through: by
raw socket, against the running gateway. Each is refused or harmless, and the connection stays sane."""

from __future__ import annotations

import json
import re

import pytest

from tests.kit.client import Connection, call, get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.running import HELLO, gateway

CHAT = "/v1/chat/completions"
BODY = json.dumps(HELLO).encode()
SNEAK = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(*lines: bytes, body: bytes = BODY) -> bytes:
    head = b"\r\n".join(
        [b"POST /v1/chat/completions HTTP/1.1", b"Host: localhost", b"Content-Type: application/json", *lines]
    )
    return head + b"\r\n\r\n" + body


LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)

FRAMING = {
    "length and chunks": post(LENGTH, b"Transfer-Encoding: chunked", body=CHUNKS + SNEAK),
    "chunks and length": post(b"Transfer-Encoding: chunked", LENGTH, body=CHUNKS + SNEAK),
    "two lengths": post(LENGTH, b"Content-Length: 1"),
    "one length twice": post(LENGTH, LENGTH),
    "lengths in a list": post(b"Content-Length: %d, %d" % (len(BODY), len(BODY))),
    "a length with a sign": post(b"Content-Length: +%d" % len(BODY)),
    "a negative length": post(b"Content-Length: -1"),
    "a length in hex": post(b"Content-Length: 0x10"),
    "a length with a space": post(b"Content-Length: 1 0"),
    "no length": post(b"Content-Length:"),
    "a length too long": post(b"Content-Length: " + b"9" * 40),
    "chunked and something": post(b"Transfer-Encoding: chunked, identity", body=CHUNKS),
    "something like chunked": post(b"Transfer-Encoding: xchunked", body=CHUNKS),
    "chunked behind a control": post(b"Transfer-Encoding: \x0bchunked", body=CHUNKS),
    "chunked before the colon's space": post(b"Transfer-Encoding : chunked", body=CHUNKS),
    "chunked in a folded line": post(b"Transfer-Encoding:\r\n chunked", body=CHUNKS),
    "a folded line": post(LENGTH, b"X-A: b\r\n c"),
    "a header begins the lines": b"POST /v1/chat/completions HTTP/1.1\r\n Host: localhost\r\n"
    + LENGTH
    + b"\r\n\r\n"
    + BODY,
    "line feeds alone": post(LENGTH).replace(b"\r\n", b"\n"),
    "a carriage return in a value": post(LENGTH, b"X-A: b\rc: d"),
    "a nul in a value": post(LENGTH, b"X-A: b\0c"),
    "a nul in a name": post(LENGTH, b"X\0A: b"),
    "a space in a name": post(LENGTH, b"X A: b"),
    "no name": post(LENGTH, b": b"),
    "no colon": post(LENGTH, b"X-A"),
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "chunks in http 1.0": post(b"Transfer-Encoding: chunked", body=CHUNKS).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "http 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http 0.9": b"GET /v1/models\r\n\r\n",
    "a version of its own": b"GET /v1/models HTTP/1.1x\r\nHost: localhost\r\n\r\n",
    "a tab in the request line": b"GET\t/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a control in the target": b"GET /v1/mo\x01dels HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a chunk's size with a sign": post(b"Transfer-Encoding: chunked", body=b"+" + CHUNKS),
    "a chunk's size too long": post(b"Transfer-Encoding: chunked", body=b"f" * 20 + b"\r\n"),
    "a chunk without its end": post(b"Transfer-Encoding: chunked", body=b"1\r\nab\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("data", FRAMING.values(), ids=FRAMING)
async def test_doubtful_framing_is_refused_once_and_ends_the_connection(engine: Engine, data: bytes) -> None:
    async with gateway(engine) as app:
        async with await Connection.open(app.url) as client:
            await client.send(data + SNEAK)
            answer = await client.read()
            assert answer.status in (400, 413, 505), answer
            assert answer.json()["error"]["type"] == "invalid_request_error"
            assert await client.at_eof()  # the hidden request is not answered
        assert engine.requests == []
        assert (await get(app.url, "/health")).status == 200


@pytest.mark.parametrize(
    "target",
    [
        "/v1/%252e%252e/metrics",
        "/v1/x/..;/metrics",
        "/v1/x%2f..%2f..%2fsleep",
        "/v1/x\\y",
        "/v1/x%5cy",
        "/v1/x%00y",
        "/v1/x%0d%0aX-Injected:%201",
        "/v1/x%0ay",
        "/v1/\xff",
        "/sleep",
        "/v1/load_lora_adapter",
        "/v1/load_lora_adapter/",
        "/v1/load%5flora_adapter",
        "/v1/unload_lora_adapter?x=1",
        "http://evil/v1/x",
        "http://evil:80/sleep",
        "/.env",
        "/v1/models/..",
        "*",
        "evil:443",
    ],
)
async def test_a_path_that_the_next_server_may_read_as_another_goes_nowhere(engine: Engine, target: str) -> None:
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        for method in ("GET", "POST"):
            async with await Connection.open(app.url) as client:
                await client.send(
                    f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
                )
                answer = await client.read()
                assert answer.status in (400, 404, 405, 421), answer
                assert "x-injected" not in answer.head
        assert engine.requests == []


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"CONNECT evil:443", 421),
        (b"CONNECT localhost:443", 405),
        (b"CONNECT /v1/x", 400),
        (b"TRACE /v1/models", 405),
        (b"TRACE /v1/x", 405),
        (b"OPTIONS *", 204),
        (b"GET *", 400),
        (b"DESCRIBE /v1/x", 400),
        (b"SOURCE /v1/x", 405),
    ],
)
async def test_what_is_no_request_for_a_resource_goes_nowhere(engine: Engine, line: bytes, status: int) -> None:
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        await client.send(line + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await client.read_head()
        assert head.status == status
        assert status not in (204, 405) or "POST" in head["allow"]
        assert engine.requests == []


@pytest.mark.parametrize("given", ["a%0d%0aX-Injected: 1", "a\tb", "\xe4", "a" * 200, "", "../x", "a;b", "<a>"])
async def test_a_request_id_that_is_no_plain_token_is_replaced_everywhere(engine: Engine, given: str) -> None:
    engine.auto(echo_script())
    async with gateway(engine) as app:
        answer = await post_json(app.url, CHAT, HELLO, (("x-request-id", given),))
        assert re.fullmatch("[0-9a-f]{32}", answer.head["x-request-id"])
        assert engine.requests[0].headers["x-request-id"] == answer.head["x-request-id"]
        assert "x-injected" not in answer.head


async def test_what_a_client_chooses_and_reads_again_splits_no_answer(engine: Engine) -> None:
    evil = "m\r\nX-Injected: 1\r\n\r\n"
    async with gateway(engine, max_tokens_cap=1, max_tokens_action="refuse") as app:
        for body in ({"model": evil, "messages": []}, {"messages": [], evil: 1, "max_tokens": 9}):
            answer = await post_json(app.url, CHAT, body)
            assert answer.status == 400
            assert "x-injected" not in answer.head
            assert b"\r" not in answer.body


@pytest.mark.parametrize("path", ["/tokenize", CHAT])
async def test_hop_by_hop_and_forwarding_headers_end_here(engine: Engine, path: str) -> None:
    engine.auto(echo_script())
    headers = (
        ("connection", "keep-alive, X-Session-Id, X-Secret"),
        ("x-secret", "1"),
        ("x-session-id", "1"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers"),
        ("trailer", "x"),
        ("proxy-authorization", "Basic x"),
        ("proxy-connection", "close"),
        ("upgrade", "websocket"),
        ("forwarded", "for=1.1.1.1"),
        ("x-forwarded-for", "1.1.1.1"),
        ("x-forwarded-host", "evil"),
        ("x-forwarded-proto", "https"),
        ("x-real-ip", "1.1.1.1"),
        ("cookie", "a=b"),
        ("authorization", "Bearer x"),
        ("traceparent", f"00-{1:032x}-{2:016x}-01"),
    )
    async with gateway(engine) as app:
        assert (await post_json(app.url, path, HELLO, headers)).status in (200, 404)
        (turn,) = engine.requests
        names = [name.lower() for name, _ in turn.raw_headers]
        assert sorted(set(names)) == sorted(names)
        ours = {"host", "content-length", "content-type", "x-request-id", "traceparent"}
        assert set(names) == ours
        assert turn.headers["host"] == engine.url.removeprefix("http://")


async def test_a_host_of_the_client_s_choice_moves_no_request_to_another_server(engine: Engine) -> None:
    engine.auto(echo_script())
    async with gateway(engine, allowed_hosts=("169.254.169.254",)) as app:
        for target in (CHAT, f"http://127.0.0.1:9{CHAT}"):
            answer = await call(
                app.url, "POST", target, BODY, (("host", "169.254.169.254"), ("x-forwarded-host", "x"))
            )
            assert answer.status == 200
        assert {turn.headers["host"] for turn in engine.requests} == {engine.url.removeprefix("http://")}
        assert {turn.path for turn in engine.requests} == {CHAT}


async def test_requests_that_are_sent_together_are_answered_each_by_its_own(engine: Engine) -> None:
    engine.auto(echo_script())
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        await client.send(post(LENGTH) + SNEAK + post(b"Transfer-Encoding: chunked", body=CHUNKS) + SNEAK)
        kinds = [json.loads((await client.read()).body)["object"] for _ in range(4)]
        assert kinds == ["chat.completion", "list", "chat.completion", "list"]

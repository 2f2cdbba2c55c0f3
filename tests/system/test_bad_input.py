"""Bad input: the right status, OpenAI's shape, what was wrong; nothing reaches the engine, the next one works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit.client import Answer, Connection, call, get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines

CHAT = "/v1/chat/completions"
JSON = (("content-type", "application/json"),)


def refused(answer: Answer, status: int, code: str) -> dict[str, Any]:
    assert answer.status == status, answer.body
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert "Traceback" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"no", "invalid_json", None),
        (b'{"model": "m1", "messages": []} x', "invalid_json", None),
        (b'{"model": "\xff"}', "invalid_json", None),
        (b'{"messages": [], "temperature": NaN}', "invalid_json", None),
        (b'{"messages": [], "messages": []}', "invalid_json", "messages"),
        (b"[" * 100_000, "invalid_value", None),
        (b'{"temperature": 0, "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json", None),
        (b"[]", "invalid_value", None),
        (b'"x"', "invalid_value", None),
        (b'{"messages": "hi"}', "invalid_value", "messages"),
        (b'{"messages": [], "stream": "maybe"}', "invalid_value", "stream"),
        (b'{"messages": [], "temperature": "hot"}', "invalid_value", "temperature"),
        (
            b'{"messages": [], "stream_options": {"include_usage": 3}}',
            "invalid_value",
            "stream_options.include_usage",
        ),
        (b'{"messages": [], "model": 7}', "invalid_value", "model"),
        (b'{"model": "m1"}', "missing_field", "messages"),
    ],
)
async def test_a_bad_body_is_refused_with_what_is_wrong(
    engine: Engine, body: bytes, code: str, param: str | None
) -> None:
    engine.auto(echo_script())
    async with gateway(engine) as app:
        error = refused(await call(app.url, "POST", CHAT, body, JSON), 400, code)
        assert error["param"] == param
        assert engine.generations == 0
        assert (await post_json(app.url, CHAT, HELLO)).status == 200


async def test_a_body_over_the_limit_is_refused_by_its_length_and_as_it_comes(engine: Engine) -> None:
    async with gateway(engine, max_body_bytes=2048) as app:
        refused(await call(app.url, "POST", CHAT, b"x" * 2049, JSON), 413, "body_too_large")
        async with await Connection.open(app.url) as client:
            await client.send(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n"
                b"transfer-encoding: chunked\r\n\r\n" + (b"400\r\n" + b"x" * 1024 + b"\r\n") * 3
            )
            refused(await client.read(), 413, "body_too_large")


@pytest.mark.parametrize("start", [b"", b"1\r\na\r\n"], ids=["first chunk", "second"])
@pytest.mark.parametrize("chunk", [b"no chunk\r\n", b"2\r\nabcd\r\n"], ids=["size", "end"])
async def test_a_body_whose_chunks_cannot_be_read_is_refused_at_once(
    engine: Engine, start: bytes, chunk: bytes
) -> None:
    async with gateway(engine, body_timeout=0.0) as app, await Connection.open(app.url) as client:
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n"
            b"expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(start + chunk)
        answer = await client.read()
        refused(answer, 400, "invalid_value")
        assert answer.json()["error"]["message"] == (
            "The body is malformed: it ends too early, or its chunks or encoding cannot be read."
        )
        assert await client.at_eof()


async def test_a_slow_body_is_given_up(engine: Engine) -> None:
    async with gateway(engine, body_timeout=0.05) as app, await Connection.open(app.url) as client:
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n"
            b'content-length: 100\r\n\r\n{"model"'
        )
        refused(await client.read(), 408, "body_timeout")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("GET", CHAT, (), 405, "method_not_allowed"),
        ("POST", "/health", (), 405, "method_not_allowed"),
        ("POST", CHAT, (("content-type", "text/plain"),), 415, "unsupported_media_type"),
        ("POST", CHAT, (*JSON, ("content-encoding", "gzip")), 415, "unsupported_media_type"),
        ("POST", CHAT, (*JSON, ("x-gateway-share", "maybe")), 400, "invalid_header"),
        ("GET", "/nothing", (), 404, "not_found"),
        ("GET", "/v1/../sleep", (), 404, "not_found"),
        ("GET", "/v1/%2e%2e/sleep", (), 404, "not_found"),
        ("GET", "/v1/x\\y", (), 400, "invalid_value"),
        ("POST", "/v1/load_lora_adapter", (), 404, "not_found"),
    ],
)
async def test_a_bad_request_never_reaches_the_engine(
    engine: Engine, method: str, path: str, headers: tuple[tuple[str, str], ...], status: int, code: str
) -> None:
    body = json.dumps(HELLO).encode() if method == "POST" else b""
    async with gateway(engine) as app:
        answer = await call(app.url, method, path, body, headers)
        refused(answer, status, code)
        assert (answer.head.get("allow") is not None) == (status == 405)
        assert engine.requests == []


async def test_a_header_over_the_limit_is_refused(engine: Engine) -> None:
    async with gateway(engine, max_header_bytes=1024) as app:
        refused(await get(app.url, "/health", (("x", "y" * 2000),)), 431, "headers_too_large")


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01garbage\r\n\r\n", b"GET /health HTTP/9.9\r\n\r\n", b"GET\r\n\r\n"],
    ids=["tls", "version", "line"],
)
async def test_what_is_not_http_is_refused_in_shape(engine: Engine, data: bytes) -> None:
    async with gateway(engine) as app:
        async with await Connection.open(app.url) as client:
            await client.send(data)
            refused(await client.read(), 400, "invalid_value")
        assert (await get(app.url, "/health")).status == 200


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.2:3", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ('a"b', False)]
)
async def test_a_request_id_is_echoed_and_forwarded_if_it_is_a_plain_token(
    engine: Engine, given: str, kept: bool
) -> None:
    engine.auto(echo_script())
    async with gateway(engine) as app:
        answer = await post_json(app.url, CHAT, HELLO | {"temperature": 1}, (("x-request-id", given),))
        assert (answer.head["x-request-id"] == given) == kept
        assert engine.requests[0].headers["x-request-id"] == answer.head["x-request-id"]


async def test_one_clients_unreadable_requests_are_a_few_lines_of_the_log(engine: Engine, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with gateway(engine, log_to=log) as app:
        for _ in range(100):
            async with await Connection.open(app.url) as client:
                await client.send(b"GET\r\n\r\n")
                await client.read()
    told = [line for line in lines(log) if line["msg"] != "request"]
    written = [line for line in told if line["msg"] == "unreadable request"]
    left_out = sum(line.get("left_out", line.get("count", 0)) for line in told)
    assert len(written) < 50
    assert len(written) + left_out == 100


async def test_a_client_of_http_1_0_gets_the_events_without_chunks(engine: Engine) -> None:
    engine.auto(echo_script(tokens=3))
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        body = json.dumps(HELLO_STREAM).encode()
        await client.send(
            b"POST /v1/chat/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        answer = await client.read()
        assert "transfer-encoding" not in answer.head
        assert answer.events()[-1] == b"data: [DONE]\n\n"


async def test_expect_continue_is_answered_before_the_body(engine: Engine) -> None:
    engine.auto(echo_script())
    body = json.dumps(HELLO).encode()
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n"
            b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(body)
        assert (await client.read_head()).status == 200


async def test_over_the_connection_limit_a_client_is_told(engine: Engine) -> None:
    async with gateway(engine, max_connections=1) as app, await Connection.open(app.url) as first:
        await first.request("POST", CHAT, json.dumps(HELLO).encode(), [("content-type", "application/json")])
        turn = await engine.next_request()  # a connection that is idle would make room
        async with await Connection.open(app.url) as second:
            refused(await second.read(), 503, "queue_full")
        await turn.answer("a")
        assert (await first.read()).status == 200

"""Connections as RFC 9112 9 has them: refusals that are read, halves, resets, versions, pipelines, 100s."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.kit.client import Connection, NoAnswer, get, request_bytes
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.running import gateway, until
from tests.proxy.server.listener.test_listener import serving

CHAT = "/v1/chat/completions"
LARGE = b"x" * 12 * 2**20


def refused(url: str, path: str, kind: str, method: str = "POST") -> tuple[int, bytes]:
    """Python's urllib says `Connection: close`, and writes its whole body before it reads."""
    asked = urllib.request.Request(url + path, data=LARGE, method=method, headers={"content-type": kind})
    try:
        with urllib.request.urlopen(asked, timeout=300) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read()


JSON = "application/json"


@pytest.mark.parametrize(
    ("method", "path", "kind", "settings", "status"),
    [
        ("POST", "/nothing", JSON, {}, 404),
        ("PUT", CHAT, JSON, {}, 405),
        ("POST", CHAT, "text/plain", {}, 415),
        ("POST", CHAT, JSON, {"max_body_bytes": 2**20}, 413),
        ("POST", "/v1/audio/transcriptions", "multipart/form-data; boundary=x", {"max_upload_bytes": 2**20}, 413),
        ("POST", "/v1/x#y", JSON, {}, 400),
    ],
)
@pytest.mark.parametrize("how", ["close", "keep"])
async def test_a_refusal_before_the_body_is_read_by_a_client_that_writes_all_of_it_first(
    engine: Engine, how: str, method: str, path: str, kind: str, settings: dict[str, Any], status: int
) -> None:
    settings = {"max_body_bytes": 2**20} | settings
    if status in (404, 405, 415):
        settings["max_body_bytes"] = 2**30
    async with gateway(engine, **settings) as app:
        for _ in range(3):
            url = f"http://127.0.0.1:{app.port}"
            if how == "close" and "#" not in path:
                told, body = await asyncio.to_thread(refused, url, path, kind, method)
            else:
                async with await Connection.open(url) as client:
                    headers = (("content-type", kind), ("connection", how.replace("keep", "keep-alive")))
                    await client.request(method, path, LARGE, headers)
                    answer = await client.read()
                    told, body = answer.status, answer.body
            assert told == status
            assert b'"error"' in body
    assert engine.requests == []


async def test_one_without_a_key_or_over_its_rate_reads_why(engine: Engine, tmp_path: Path) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    async with gateway(engine, rate_limit_rps=0.001, rate_limit_burst=1) as app:
        seen = [(await asyncio.to_thread(refused, app.url, "/v1/x", "a/b"))[0] for _ in range(3)]
    assert seen[1:] == [429, 429]
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "a"\nsha256 = "{hashlib.sha256(b"k").hexdigest()}"\n')
    keys.chmod(0o600)
    async with gateway(engine, api_keys_file=str(keys)) as app:
        for path in (CHAT, "/v1/responses"):
            assert (await asyncio.to_thread(refused, app.url, path, JSON))[0] == 401


async def test_a_client_that_goes_on_sending_is_closed_after_a_while() -> None:
    async with serving(lingering=0.1) as (url, _), await Connection.open(url) as client:
        await client.send(b"GET /nothing#x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = await client.read()
        assert answer.status == 400
        assert await client.at_eof()  # half-closed at once
        with pytest.raises(ConnectionError):
            while True:  # and closed after the lingering time
                await client.send(b"x" * 1000, step=500)


async def test_a_half_closed_client_has_left_and_gives_its_place_back(engine: Engine) -> None:
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        await client.send(
            request_bytes("POST", CHAT, b'{"model":"m1","messages":[{"role":"user","content":"a"}]}')
        )
        turn = await engine.next_request()
        client.half_close()
        await turn.cancelled()
        with pytest.raises(NoAnswer):
            await client.read_head()
        assert (await get(app.url, "/health")).status == 200


@pytest.mark.parametrize("cut", range(0, 150, 11))
async def test_a_reset_in_the_middle_leaves_nothing_behind(engine: Engine, cut: int) -> None:
    engine.auto(echo_script())
    whole = request_bytes("POST", CHAT, b'{"model":"m1","messages":[{"role":"user","content":"a"}]}')
    async with gateway(engine) as app:
        client = await Connection.open(app.url)
        await client.send(whole[:cut])
        await client.abort()
        assert (await get(app.url, "/health")).status == 200
        await until(lambda: len(app.group) == 0)


@pytest.mark.parametrize(
    ("line", "fields", "kept"),
    [
        (b"HTTP/1.0", b"", False),
        (b"HTTP/1.0", b"Connection: keep-alive\r\n", True),
        (b"HTTP/1.0", b"Connection: close\r\n", False),
        (b"HTTP/1.1", b"", True),
        (b"HTTP/1.1", b"Connection: close\r\n", False),
    ],
)
@pytest.mark.parametrize("path", [b"/health", b"/nothing"])
async def test_a_connection_is_kept_as_its_version_and_fields_say(
    engine: Engine, line: bytes, fields: bytes, kept: bool, path: bytes
) -> None:
    ask = b"GET %b %b\r\nHost: localhost\r\n%b\r\n" % (path, line, fields)
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        for _ in range(2):
            await client.send(ask)
            head = (await client.read()).head
            said = head.get("connection")
            assert said == (("keep-alive" if line == b"HTTP/1.0" else None) if kept else "close")
            if not kept:
                assert await client.at_eof()
                break


async def test_pipelined_requests_before_one_that_cannot_be_read_are_answered(engine: Engine) -> None:
    good = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        await client.send(good + good + b"GET /health HTTP/1.1\r\nno field\r\n\r\n" + good)
        assert [(await client.read()).status for _ in range(3)] == [200, 200, 400]
        assert await client.at_eof()


async def test_what_follows_a_request_that_closes_is_not_answered(engine: Engine) -> None:
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        await client.send(last + b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await client.read()).json() == {"status": "ok"}
        assert await client.at_eof()


EXPECTS = (
    b"POST %b %b\r\nHost: localhost\r\nContent-Type: %b\r\nExpect: 100-continue\r\nContent-Length: 60\r\n\r\n"
)


@pytest.mark.parametrize(
    ("path", "kind", "status"), [(b"/nothing", b"a/b", 404), (b"/v1/chat/completions", b"text/plain", 415)]
)
async def test_a_client_that_waits_for_a_100_and_is_refused_gets_none_and_no_other_request_is_its_body(
    engine: Engine, path: bytes, kind: bytes, status: int
) -> None:
    async with gateway(engine) as app:
        with socket.create_connection(("127.0.0.1", app.port), 10) as sock:
            sock.sendall(EXPECTS % (path, b"HTTP/1.1", kind))
            sock.setblocking(False)
            data = await asyncio.get_running_loop().sock_recv(sock, 65536)
            assert data.startswith(b"HTTP/1.1 %d " % status)
            assert b"connection: close" in data
            await asyncio.get_running_loop().sock_sendall(sock, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert await asyncio.get_running_loop().sock_recv(sock, 65536) == b""


@pytest.mark.parametrize(("version", "interim"), [(b"HTTP/1.1", True), (b"HTTP/1.0", False)])
async def test_a_client_that_waits_is_told_to_go_on_in_http_1_1_only(
    engine: Engine, version: bytes, interim: bool
) -> None:
    engine.auto(lambda turn: turn.respond(200, b"{}"))
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        await client.send(EXPECTS % (b"/v1/x", version, b"a/b"))
        if interim:
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"y" * 60)
        data = await client.reader.readuntil(b"\r\n\r\n")
        assert data.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "fields",
    [
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n",
        b"Connection: close\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n",
        b"Connection: keep-alive, upgrade\r\nUpgrade: h2c, WebSocket\r\n",
    ],
)
@pytest.mark.parametrize("path", [b"/v1/realtime?model=m1", b"/v1/responses", b"/v1/chat/completions", b"/"])
async def test_a_websocket_s_handshake_is_refused_at_once_in_clear_words(
    engine: Engine, path: bytes, fields: bytes
) -> None:
    ask = b"GET %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (path, fields)
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        after = b"" if b"close" in fields else b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await client.send(ask + after)
        answer = await client.read()
        assert (answer.status, answer.json()["error"]["code"]) == (501, "upgrade_not_supported")
        assert "WebSocket" in answer.json()["error"]["message"]
        if after:
            assert (await client.read()).json() == {"status": "ok"}
    assert engine.requests == []


async def test_an_offer_of_h2c_with_a_body_in_pieces_is_answered_in_http_1_1(engine: Engine) -> None:
    engine.auto(lambda turn: turn.respond(200, turn.body))
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    body = b"z" * 300_000
    head = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n%bContent-Type: a/b\r\nContent-Length: %d\r\n\r\n" % (
        offer,
        len(body),
    )
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        for _ in range(3):
            await client.send((head + body) * 2)
            assert [(await client.read()).body for _ in range(2)] == [body, body]
    assert all("upgrade" not in turn.headers and "http2-settings" not in turn.headers for turn in engine.requests)


async def test_head_has_the_answer_s_head_and_no_body(engine: Engine) -> None:
    async with gateway(engine) as app:
        parts = urlsplit(app.url)

        def ask() -> list[tuple[int, bytes, str | None]]:
            link = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=300)
            seen = []
            for method in ("HEAD", "GET", "HEAD"):
                link.request(method, "/v1/models")
                answer = link.getresponse()
                seen.append((answer.status, answer.read(), answer.getheader("content-length")))
            link.close()
            return seen

        first, second, third = await asyncio.to_thread(ask)
        assert first == third == (200, b"", second[2])
        assert len(second[1]) == int(second[2] or 0)


@pytest.mark.parametrize("step", [1, 3])
async def test_a_request_in_segments_of_one_byte_is_read_as_one(engine: Engine, step: int) -> None:
    engine.auto(echo_script())
    ask = request_bytes("POST", CHAT + "/?a=b", b'{"model":"m1","messages":[{"role":"user","content":"a"}]}')
    async with gateway(engine) as app, await Connection.open(app.url) as client:
        for _ in range(2):
            await client.send(ask, step=step)
            assert (await client.read()).status == 200
    assert [turn.path for turn in engine.requests] == [CHAT] * len(engine.requests)

"""What operators alone see and do: by whose key, by which method and spelling, and by which port."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from proxy.config.settings import Settings
from proxy.errors import ListenError
from proxy.resources import prepare
from tests.kit.client import Connection, call, get, post_json, streaming
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.ports import free_port
from tests.kit.running import HELLO, HELLO_STREAM, gateway, lines
from tests.proxy.access.test_policy import bearer, entry
from tests.proxy.server.page.test_page import ends, told
from tests.system.test_life import started

CHAT = "/v1/chat/completions"
PATHS = ("/", "/-/state", "/-/readers", "/metrics", "/-/cache")
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
SPELLINGS = (
    "{path}",
    "{path}/",
    "/{path}",
    "{path}?x=1",
    "{path}?model=m1",
    "http://localhost{path}",
    "HTTP://127.0.0.1:1{path}/",
    "/v1/..{path}",
    "/v1/%2e%2e{path}",
    "/.{path}",
    "{path};x",
    "{path}%00",
    "{path}%20",
)
SECRETS = (b"gateway_requests_total", b'"flights"', b"<html", b'"removed"', b"event-stream")


def spelled(path: str) -> list[str]:
    forms = [form.format(path=path) for form in SPELLINGS]
    return [*forms, path.upper(), path.replace("e", "%65"), path.replace("/", "%2F")]


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys.toml"
    path.write_text(entry("ku", "user") + entry("ko", "ops", 'role = "operator"'))
    path.chmod(0o600)
    return str(path)


async def raw(url: str, method: str, target: str, headers: Sequence[tuple[str, str]]) -> tuple[int, bytes]:
    async with await Connection.open(url) as client:
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
        length = "Content-Length: 2\r\n" if method in ("POST", "PUT", "PATCH") else ""
        body = "{}" if length else ""
        head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{length}{fields}\r\n{body}"
        await client.send(head.encode())
        data = await client.reader.read()
        return int(data.split()[1]), data


@pytest.mark.parametrize("path", PATHS)
async def test_a_users_key_sees_none_of_it_by_any_method_or_spelling(engine: Engine, keys: str, path: str) -> None:
    async with gateway(engine, api_keys_file=keys) as app:
        for method in METHODS:
            for target in spelled(path):
                status, data = await raw(app.url, method, target, bearer("ku"))
                assert status in (400, 404), (method, target, data)
                assert not any(secret in data for secret in SECRETS), (method, target)
                assert b"\r\nallow:" not in data.lower(), (method, target)
        assert engine.generations == 0


@pytest.mark.parametrize("path", PATHS)
async def test_without_a_key_there_is_nothing_but_the_empty_form(engine: Engine, keys: str, path: str) -> None:
    async with gateway(engine, api_keys_file=keys) as app:
        for method in METHODS:
            for target in (path, f"http://localhost{path}", f"{path}?x=1"):
                status, data = await raw(app.url, method, target, ())
                if path == "/":
                    assert status == {"GET": 200, "HEAD": 200, "OPTIONS": 204}.get(method, 405), (method, target)
                    assert b"m1" not in data
                else:
                    assert status == 401, (method, target)
                    assert not any(secret in data for secret in SECRETS)


async def test_an_operators_key_sees_and_does_all_of_it(engine: Engine, keys: str, tmp_path: Path) -> None:
    engine.auto(echo_script())
    log = tmp_path / "log"
    async with gateway(engine, api_keys_file=keys, log_to=log) as app:
        mine = bearer("ko")
        for path in ("/", "/-/state", "/metrics"):
            assert (await get(app.url, path, mine)).status == 200
        assert (await call(app.url, "PUT", "/-/state", b"", mine)).head["allow"] == "GET, HEAD"
        body = {"request": HELLO_STREAM, "delays_ms": [0, 0]}
        async with streaming(app.url, "/-/readers", body, mine) as client:
            assert ends(await told(client))[0]["status"] == 200
        answer = await call(app.url, "DELETE", "/-/cache?model=m1", b"", mine)
        assert answer.json() == {"object": "cache.flush", "model": "m1", "removed": 0, "flights": 0}
        assert (await post_json(app.url, CHAT, HELLO, mine)).status == 200
        assert (await get(app.url, "/-/state", bearer("ku"))).status == 404
        assert (await get(app.url, "/-/state", bearer("kx"))).status == 401
    acts = [line for line in lines(log) if line.get("event") == "audit"]
    assert [(line["msg"], line.get("who"), line["result"]) for line in acts] == [
        ("playground used", "ops", "good"),
        ("cache flushed", "ops", "good"),
        ("key refused", "user", "refused"),
        ("key refused", None, "refused"),
    ]
    assert acts[0]["what"] == "2 readers"
    assert {line["client"] for line in acts} == {"127.0.0.1"}
    assert [line.get("reason") for line in acts[2:]] == ["not_operator", "unknown"]


async def test_without_keys_all_of_it_is_open_as_ever(engine: Engine) -> None:
    async with gateway(engine) as app:
        for path in ("/", "/-/state", "/metrics"):
            assert (await get(app.url, path)).status == 200
        assert (await call(app.url, "DELETE", "/-/cache")).status == 200


@pytest.mark.parametrize("with_keys", [False, True])
async def test_with_a_port_of_their_own_operators_are_served_there_and_nowhere_else(
    engine: Engine, keys: str, with_keys: bool
) -> None:
    engine.auto(echo_script())
    mine = bearer("ko")
    async with gateway(engine, admin_port=free_port(), api_keys_file=keys if with_keys else "") as app:
        assert urlsplit(app.admin_url).hostname == "127.0.0.1"
        for path in PATHS:
            for method in METHODS:
                for headers in (mine, (), bearer("ku")):
                    status, data = await raw(app.url, method, path, headers)
                    assert status == 404, (method, path, data)
        for path in ("/health", "/ready"):
            assert (await get(app.url, path)).status == 200
            assert (await get(app.admin_url, path)).status == 200
        for path in ("/-/state", "/metrics"):
            assert (await get(app.admin_url, path, mine)).status == 200
            assert (await get(app.admin_url, path)).status == (401 if with_keys else 200)
        assert (await get(app.admin_url, "/")).status == 200
        if with_keys:
            for path in PATHS:
                assert (await raw(app.admin_url, "GET", path, bearer("ku")))[0] == 404
        assert (await call(app.admin_url, "DELETE", "/-/cache", b"", mine)).status == 200
        body = {"request": HELLO_STREAM, "delays_ms": [0]}
        async with streaming(app.admin_url, "/-/readers", body, mine) as client:
            assert ends(await told(client))[0]["status"] == 200
        for path in (CHAT, "/v1/models", "/v1/models/m1", "/tokenize"):
            assert (await call(app.admin_url, "POST", path, b"{}", mine)).status == 404


async def test_the_metrics_may_be_opened_where_there_are_keys(engine: Engine, keys: str) -> None:
    async with gateway(engine, api_keys_file=keys, metrics_key=False) as app:
        assert (await get(app.url, "/metrics")).status == 200
        assert (await get(app.url, "/-/state")).status == 401


async def test_health_and_readiness_say_no_more_than_that(keys: str) -> None:
    async with Engine() as gone:
        url = gone.url
    async with gateway(url, api_keys_file=keys) as app:
        assert (await get(app.url, "/health")).json() == {"status": "ok"}
        answer = await get(app.url, "/ready")
        assert answer.status == 503
        assert url.encode() not in answer.body


async def test_a_port_that_is_taken_is_told(engine: Engine) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        with pytest.raises(ListenError, match="admin_port"):
            async with gateway(engine, admin_port=sock.getsockname()[1]):
                pass


def test_keys_of_which_none_is_an_operators_are_warned_of_and_an_open_port_too(tmp_path: Path, keys: str) -> None:
    users = tmp_path / "users.toml"
    users.write_text(entry("ku", "user"))
    users.chmod(0o600)
    (warning,) = prepare(Settings(api_keys_file=str(users))).warnings
    assert 'role = "operator"' in warning
    assert prepare(Settings(api_keys_file=str(users), metrics_key=False)).warnings == []
    assert prepare(Settings(api_keys_file=keys)).warnings == []
    (warning,) = prepare(Settings(admin_port=9091, admin_host="0.0.0.0")).warnings
    assert "without api_keys_file" in warning
    assert prepare(Settings(admin_port=9091)).warnings == []


@pytest.mark.e2e
async def test_the_running_program_serves_operators_apart_and_ends_with_who_watches(
    engine: Engine, tmp_path: Path
) -> None:
    port = free_port()
    flags = ("--backend", engine.url, "--redis", "off", "--admin-port", str(port))
    async with (
        started(tmp_path / "log", *flags) as process,
        await Connection.open(f"http://127.0.0.1:{port}") as watching,
        await Connection.open(f"http://127.0.0.1:{port}") as idle,
    ):
        await idle.request("GET", "/metrics")
        assert (await idle.read()).status == 200
        assert (await get(process.url, "/metrics")).status == 404
        await watching.request("GET", "/-/state", headers=[("accept", "text/event-stream")])
        assert await watching.event() is not None
        process.signal(signal.SIGTERM)
        said = await process.ended()
        assert f"operators: http://127.0.0.1:{port}" in said

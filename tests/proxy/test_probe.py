"""The probe says what the gateway says, however it listens: by its exit code and one line."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from proxy import probe
from proxy.config.settings import Settings
from tests.kit.certificates import Authority
from tests.kit.engine import Engine
from tests.kit.running import gateway


async def asked(*argv: str, **environ: str) -> int:
    """In a thread: the gateway runs in this one."""
    return await asyncio.to_thread(probe.main, argv, environ)


async def test_a_gateway_that_lives_and_is_ready_is_a_success(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    async with gateway(engine) as app:
        assert await asked(GATEWAY_PORT=str(app.port)) == 0
        assert await asked("ready", "--port", str(app.port)) == 0
        assert await asked("ready", "--host", "0.0.0.0", "--port", str(app.port)) == 0
    out, err = capsys.readouterr()
    assert [line[:11] for line in out.splitlines()] == ["health: 200", "ready: 200 ", "ready: 200 "]
    assert err == ""


async def test_one_without_an_engine_lives_but_is_not_ready(capsys: pytest.CaptureFixture[str]) -> None:
    async with gateway("http://127.0.0.1:9") as app:
        assert await asked("health", GATEWAY_PORT=str(app.port)) == 0
        assert await asked("ready", GATEWAY_PORT=str(app.port)) == 1
    assert capsys.readouterr().err.startswith("ready: 503 ")


async def test_where_nothing_listens_the_probe_fails_and_says_so(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    async with gateway(engine) as app:
        port = app.port
    assert await asked(GATEWAY_PORT=str(port)) == 1
    assert "no answer" in capsys.readouterr().err


async def test_it_asks_over_the_unix_socket_and_over_tls(engine: Engine, tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("gateway.test")
    path = str(tmp_path / "gateway.sock")
    async with gateway(engine, listen_unix=path):
        assert await asked(GATEWAY_LISTEN_UNIX=path) == 0
    async with gateway(engine, tls_cert=str(issued.cert), tls_key=str(issued.key)) as app:
        assert await asked(GATEWAY_PORT=str(app.port), GATEWAY_TLS_CERT=str(issued.cert)) == 0
        assert await asked(GATEWAY_PORT=str(app.port)) == 1


@pytest.mark.parametrize("trusted", ["127.0.0.0/8", "10.0.0.0/8,unix"])
async def test_it_sends_a_proxy_header_where_its_own_address_must(
    engine: Engine, tmp_path: Path, trusted: str
) -> None:
    path = str(tmp_path / "gateway.sock")
    asks = {"GATEWAY_PROXY_PROTOCOL": "on", "GATEWAY_TRUSTED_PROXIES": trusted}
    proxies: dict[str, Any] = {"proxy_protocol": True, "trusted_proxies": tuple(trusted.split(","))}
    async with gateway(engine, **proxies) as app:
        assert await asked("ready", GATEWAY_PORT=str(app.port), **asks) == 0
    async with gateway(engine, listen_unix=path, **proxies):
        assert await asked("ready", GATEWAY_LISTEN_UNIX=path, **asks) == 0


async def test_wrong_settings_are_told_and_are_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert await asked(GATEWAY_PORT="many") == 2
    assert "GATEWAY_PORT" in capsys.readouterr().err
    assert os.environ.get("GATEWAY_PORT") is None


def test_a_gateway_that_does_not_answer_is_waited_for_a_bounded_time(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as tcp:
        unix.bind(path)
        unix.listen()
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        for settings in (Settings(listen_unix=path), Settings(host="0.0.0.0", port=tcp.getsockname()[1])):
            link = probe._Link(settings)
            link.connect()
            assert link.sock.gettimeout() == probe.SECONDS == link.timeout
            link.close()


def test_wrong_usage_is_told_with_what_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--port", "x"], ["live"], ["health", "ready"]):
        assert probe.main(argv, {}) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("proxy.probe: ")
        assert told.err.splitlines()[-1].startswith("usage: ")

"""A Unix socket to listen on: its mode, what was at its path before, and that nothing is after."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from proxy.errors import SettingsError
from proxy.server.listener.unix_socket import check_socket_path, unix_socket
from tests.kit.client import Connection
from tests.kit.engine import Engine
from tests.kit.running import gateway
from tests.system.test_life import started


async def get(path: Path, target: str) -> int:
    async with Connection(*await asyncio.open_unix_connection(str(path))) as client:
        await client.request("GET", target)
        return (await client.read()).status


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_it_has_its_mode_and_is_gone_at_the_end(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s"
    before = os.umask(0o022)
    try:
        with unix_socket(str(path), mode):
            assert stat.S_IMODE(path.stat().st_mode) == mode
        assert not path.exists()
    finally:
        assert os.umask(before) == 0o022


def test_a_socket_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with unix_socket(str(path), 0o600) as sock:
        assert sock.getsockname() == str(path)


def test_a_socket_that_is_listened_on_and_a_file_are_left_alone(tmp_path: Path) -> None:
    path, file = tmp_path / "s", tmp_path / "f"
    file.write_text("mine")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        for taken, says in (
            (path, "listens there already"),
            (file, "no socket"),
            (tmp_path / "no" / "s", "No such"),
        ):
            with pytest.raises(SettingsError, match=says), unix_socket(str(taken), 0o600):
                pass
    assert file.read_text() == "mine"
    assert path.exists()
    with pytest.raises(SettingsError, match="107 bytes"), unix_socket("x" * 108, 0o600):
        pass


def test_at_the_end_another_s_socket_at_the_path_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with unix_socket(str(path), 0o600), socket.socket(socket.AF_UNIX) as other:
        path.unlink()
        other.bind(str(path))
    assert path.exists()


async def test_the_gateway_answers_on_it(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with gateway(engine, listen_unix=str(path), listen_unix_mode="0660") as app:
        assert app.url == f"unix://{path}"
        assert await get(path, "/ready") == 200
    assert not path.exists()


@pytest.mark.e2e
async def test_the_running_program_answers_on_it_and_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "s"
    flags = ("--backend", engine.url, "--redis", "off", "--listen-unix", str(path))
    async with started(tmp_path / "log", *flags) as process:
        assert process.url == f"unix://{path}"
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
        assert await get(path, "/v1/models") == 200
        process.signal(signal.SIGTERM)
        await process.ended()
    assert os.listdir(tmp_path) == ["log"]


def test_a_path_may_be_as_long_as_the_system_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with unix_socket("x" * 107, 0o600) as sock:
        assert not sock.getblocking()
    assert sock.fileno() == -1
    with pytest.raises(SettingsError, match="no path over 107 bytes"), unix_socket("\u00e9" * 54, 0o600):
        pass


def test_what_is_at_the_path_and_no_stream_s_is_told_as_the_system_tells_it(tmp_path: Path) -> None:
    path, file = tmp_path / "s", tmp_path / "f"
    file.touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        for taken, why in ((path, "wrong type"), (file / "s", "Not a directory")):
            with pytest.raises(SettingsError, match=why), unix_socket(str(taken), 0o600):
                pass
    assert path.exists()


def test_a_path_that_is_gone_at_the_end_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with unix_socket(str(path), 0o600):
        path.unlink()
    assert not path.exists()


def test_the_mode_holds_where_the_folder_s_own_rules_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a default ACL takes the place of the umask."""
    monkeypatch.setattr(os, "umask", lambda mask: 0)
    path = tmp_path / "s"
    with unix_socket(str(path), 0o600):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_path_that_the_locale_cannot_write_passes_the_check_and_is_refused_by_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fsencode(path: str) -> bytes:
        return path.encode("ascii")

    def lstat(path: str) -> os.stat_result:
        raise UnicodeEncodeError("ascii", path, 0, 1, "ordinal not in range(128)")

    monkeypatch.setattr("proxy.server.listener.unix_socket.os.fsencode", fsencode)
    monkeypatch.setattr("proxy.server.listener.unix_socket.os.lstat", lstat)
    check_socket_path("/run/\u00fc")
    with (
        pytest.raises(SettingsError, match="this locale cannot write the path"),
        unix_socket("/run/\u00fc", 0o600),
    ):
        pass

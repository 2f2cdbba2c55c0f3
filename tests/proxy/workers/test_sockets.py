"""The supervisor's sockets: one for each worker on one port, which nobody else can join or take."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.config import Settings
from proxy.errors import ListenError
from proxy.workers.sockets import bind

SETTINGS = Settings(host="127.0.0.1", port=0)


def test_each_worker_has_a_socket_of_its_own_on_one_port() -> None:
    with ExitStack() as stack:
        sockets = bind(SETTINGS, 3, stack)
        flat = [sock for own in sockets.own for sock in own]
        assert len({sock.fileno() for sock in flat}) == 3
        assert {sock.getsockname() for sock in flat} == {("127.0.0.1", sockets.port)}
        with socket.create_connection(("127.0.0.1", sockets.port)):
            pass  # the kernel accepts before any worker runs
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", sockets.port))


def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, ExitStack() as stack:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match="in use"):
            bind(replace(SETTINGS, port=port), 2, stack)
        with pytest.raises(ListenError, match="admin_port") as raised:
            bind(replace(SETTINGS, admin_host="127.0.0.1", admin_port=port), 2, stack)
        assert raised.value.port == "admin_port"


def test_another_gateway_cannot_join_the_port() -> None:
    with ExitStack() as stack:
        sockets = bind(SETTINGS, 2, stack)
        with ExitStack() as other, pytest.raises(ListenError, match="in use"):
            bind(replace(SETTINGS, port=sockets.port), 2, other)


def test_a_unix_socket_is_shared_by_all(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with ExitStack() as stack:
        sockets = bind(replace(SETTINGS, listen_unix=path), 2, stack)
        assert sockets.own[0] == sockets.own[1]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
    assert not Path(path).exists()

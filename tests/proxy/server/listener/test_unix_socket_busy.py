"""A Unix socket whose owner accepts no connection: the start does not wait for it."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from proxy.errors import SettingsError
from proxy.server.listener.unix_socket import unix_socket


@pytest.mark.timeout(5)  # without a time limit of its own the probe would wait for ever
def test_a_full_backlog_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with ExitStack() as stack:
        other = stack.enter_context(socket.socket(socket.AF_UNIX))
        other.bind(str(path))
        other.listen(0)
        while True:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(str(path))
            except BlockingIOError:
                break
        with pytest.raises(SettingsError, match="temporarily unavailable"), unix_socket(str(path), 0o600):
            pass
    assert path.exists()

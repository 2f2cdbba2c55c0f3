"""The Unix socket to listen on: its mode, a stale file at its path, and its removal at the end."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from proxy.errors import SettingsError

MOST_BYTES: Final = 107  # of a path, by the system
PROBE_SECONDS: Final = 1.0  # for an existing socket to accept a connection


@contextmanager
def unix_socket(path: str, mode: int) -> Iterator[socket.socket]:
    """A socket bound to the path, with that mode from its creation. A stale socket at the path is replaced;
    anything else there is left alone. At the end the path is removed, if it still is this socket. Raises
    SettingsError."""
    check_socket_path(path)
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o777 & ~mode)  # a later chmod alone would leave it open to all until then
        try:
            sock.bind(path)
        except OSError as e:
            raise SettingsError(f"listen_unix = {path!r}: {e.strerror or e}") from None
        finally:
            os.umask(before)
        os.chmod(path, mode)
        own = _identity(path)
        sock.setblocking(False)
        try:
            yield sock
        finally:
            if _identity(path) == own:
                os.unlink(path)
    finally:
        sock.close()


def check_socket_path(path: str) -> None:
    """Raises SettingsError where no socket can be bound; whether another program listens there is seen later."""
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        return  # settings may be checked in another locale than the gateway runs in
    if size > MOST_BYTES:
        raise SettingsError(f"listen_unix = {path!r}: the system takes no path over {MOST_BYTES} bytes")
    mode = _mode(path)
    if mode and not stat.S_ISSOCK(mode):
        raise SettingsError(f"listen_unix = {path!r}: there is something that is no socket; it is left alone")


def _mode(path: str) -> int:
    """0: there is nothing."""
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return 0
    except UnicodeEncodeError:
        raise SettingsError(f"listen_unix = {path!r}: this locale cannot write the path") from None
    except OSError as e:
        raise SettingsError(f"listen_unix = {path!r}: {e.strerror or e}") from None


def _clear(path: str) -> None:
    if not _mode(path):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(path)
        except OSError as e:
            if e.errno != errno.ECONNREFUSED:
                raise SettingsError(f"listen_unix = {path!r}: {e.strerror or e}") from None
        else:
            raise SettingsError(f"listen_unix = {path!r}: somebody listens there already")
    os.unlink(path)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino

"""Reads the files that settings name: UTF-8, of a bounded size. A file with secrets should be readable by its
owner only."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Final, NoReturn

from proxy.config.redact import shown_path
from proxy.errors import SettingsError

MAX_FILE: Final = 16 * 1024 * 1024  # bytes


def read_file(name: str, path: str, warnings: list[str] | None = None) -> str:
    """A file's text. Raises SettingsError; `name` is the setting. With `warnings` the file holds secrets, and a
    warning is added where other users may read it."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as e:
        raise SettingsError(f"{name} = {shown_path(path)}: {e.strerror or e}") from None
    if len(data) > MAX_FILE:
        raise SettingsError(f"{name} = {path!r}: is larger than {MAX_FILE} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise SettingsError(f"{name} = {path!r}: is not UTF-8 (byte {e.start})") from None
    if warnings is not None:
        warn_if_open(name, path, warnings)
    return text


def warn_if_open(name: str, path: str, warnings: list[str]) -> None:
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o077:
        warnings.append(f"{name} = {path!r}: others may read it (mode {mode:04o}); chmod 600 it")


def no_password(name: str) -> Callable[[], NoReturn]:
    """For `SSLContext.load_cert_chain`: an error in place of OpenSSL's prompt on the terminal. `name`: the setting
    that names the encrypted key."""

    def refuse() -> NoReturn:
        raise SettingsError(f"{name} is encrypted: give it without a password (openssl pkey -in KEY -out PLAIN)")

    return refuse

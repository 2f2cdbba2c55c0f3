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
_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_KEY: Final = b"PRIVATE KEY-----"


def read_file(name: str, path: str, warnings: list[str] | None = None) -> str:
    """A file's text. Raises SettingsError; `name` is the setting. With `warnings` the file holds secrets, and a
    warning is added where other users may read it."""
    try:
        text = read_text(path)
    except OSError as e:
        raise SettingsError(f"{name} = {shown_path(path)}: {e.strerror or e}") from None
    except ValueError as e:
        raise SettingsError(f"{name} = {path!r}: {e}") from None
    if warnings is not None:
        warn_if_open(name, path, warnings)
    return text


def read_text(path: str) -> str:
    """A file's text, without a byte order mark. Raises OSError, or ValueError: not UTF-8, or too large."""
    with open(path, "rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"is larger than {MAX_FILE} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise ValueError(f"is not UTF-8 (line {line}, byte {e.start})") from None


def warn_if_open(name: str, path: str, warnings: list[str]) -> None:
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o077:
        warnings.append(f"{name} = {path!r}: others may read it (mode {mode:04o}); chmod 600 it")


def pair_problem(cert: tuple[str, str], key: tuple[str, str], error: OSError) -> str:
    """Why a certificate and its private key cannot be used: each a setting and its path, and what loading them
    raised. Without a path of the key, the certificate's file should hold it."""
    held = []
    for name, path in (cert, key if key[1] else cert):
        try:
            with open(path, "rb") as file:
                held.append(file.read(MAX_FILE))
        except OSError as e:
            return f"{name} = {shown_path(path)}: {e.strerror or e}"
    (certs, keys), (cert_shown, key_shown) = held, (f"{name} = {shown_path(path)}" for name, path in (cert, key))
    if _CERTIFICATE not in certs:
        swapped = f"; it is a private key: {key[0]} is for that" if _KEY in certs else ""
        return f"{cert_shown}: holds no certificate in PEM form{swapped}"
    if _KEY not in keys and not key[1]:
        return f"{cert_shown}: holds no private key in PEM form, and {key[0]} is not set"
    if _KEY not in keys:
        swapped = f"; it is a certificate: {cert[0]} is for that" if _CERTIFICATE in keys else ""
        return f"{key_shown}: holds no private key in PEM form{swapped}"
    why = getattr(error, "reason", None) or error.strerror or str(error)
    if why == "KEY_VALUES_MISMATCH":
        return f"{key_shown if key[1] else key[0]}: is not the key of {cert_shown} ({why})"
    return f"{cert_shown}, {key_shown}: {why}: must be a certificate chain and its private key, in PEM form"


def no_password(name: str) -> Callable[[], NoReturn]:
    """For `SSLContext.load_cert_chain`: an error in place of OpenSSL's prompt on the terminal. `name`: the setting
    that names the encrypted key."""

    def refuse() -> NoReturn:
        raise SettingsError(f"{name} is encrypted: give it without a password (openssl pkey -in KEY -out PLAIN)")

    return refuse

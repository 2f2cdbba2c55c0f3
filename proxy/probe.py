"""Owns `python -m proxy.probe`: asking the gateway of this machine whether it lives, or is ready.
Must not know what the answer means to whoever asks: it is an exit code and one line.
Called by container engines (`ops/Dockerfile`), which have no curl there, and by people."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from proxy.config import Settings, load
from proxy.errors import SettingsError
from proxy.telemetry import run

SECONDS: Final = 3.0  # for each of connecting and answering
MOST_BYTES: Final = 4096  # of an answer that are shown
PATHS: Final = ("health", "ready")
USAGE: Final = "python -m proxy.probe [health|ready] [the gateway's flags]"
EVERY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what is listened on, not listening


class _Link(http.client.HTTPConnection):
    """To where the settings say that the gateway listens: an address or a Unix socket, with TLS or not."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._settings = settings

    def connect(self) -> None:
        settings = self._settings
        if settings.listen_unix:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(SECONDS)
            self.sock.connect(settings.listen_unix)
        else:
            host = EVERY_ADDRESS.get(settings.host, settings.host)
            self.sock = socket.create_connection((host, settings.port), SECONDS)
        if settings.tls_cert:
            # Which name clients use is not known here, and nobody else is on this machine's way to itself.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self.sock = context.wrap_socket(self.sock)


def ask(settings: Settings, path: str) -> tuple[bool, str]:
    """Whether the answer was 200, and one line of what it was."""
    link = _Link(settings)
    try:
        link.request("GET", f"/{path}")
        answer = link.getresponse()
        body = answer.read(MOST_BYTES).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as e:
        return False, f"no answer: {str(e) or type(e).__name__}"
    finally:
        link.close()
    return answer.status == 200, f"{answer.status} {body}"


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """0: yes; 1: no, or no answer; 2: wrong usage. Flags are the gateway's own."""
    path, flags = (argv[0], argv[1:]) if argv and argv[0] in PATHS else (PATHS[0], argv)
    try:
        settings = load(flags, environ)
    except SettingsError as e:
        sys.stderr.write(f"proxy.probe: {e}\nusage: {USAGE}\n")
        return 2
    good, line = ask(settings, path)
    (sys.stdout if good else sys.stderr).write(f"{path}: {line}\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(run("proxy.probe", lambda: main(sys.argv[1:], os.environ)))

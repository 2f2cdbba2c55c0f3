"""The command `python -m proxy.probe`: asks the gateway on this machine whether it lives, or is ready. The
result is an exit code and one line. Container engines run it (`ops/Dockerfile`): the image has no curl."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from proxy.config import Settings, load, program_name
from proxy.errors import SettingsError
from proxy.terminal import run

SECONDS: Final = 3.0  # for connecting, and for the answer
MOST_BYTES: Final = 4096  # of an answer that are printed
PATHS: Final = ("health", "ready")
PROXY_HEADER: Final = b"PROXY UNKNOWN\r\n"
"""The PROXY protocol header of a connection that is the sender's own (version 1, section 2.1)."""
HELP: Final = """\
usage: {prog} [health|ready] [flags of the gateway]

Ask the gateway on this machine whether it is alive (health, the default) or an engine answers (ready).
Prints the answer; exits with 0 for yes, 1 for no or no answer within {seconds:g} seconds, 2 for wrong usage.

The settings say where the gateway listens, as for the gateway itself: GATEWAY_ variables, --config FILE, or
  --host ADDRESS, --port PORT   the address; 0.0.0.0 and :: are asked on loopback
  --listen-unix FILE            a Unix socket
  --tls-cert FILE               the gateway speaks TLS; its certificate is not verified
Other flags of the gateway are accepted and have no effect.

  -h, --help     show this text
  --help-all     show all flags of the gateway
  --version      show the version
"""
EVERY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - only compared


class _Link(http.client.HTTPConnection):
    """A connection to the gateway's address or Unix socket in the settings, with or without TLS."""

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
        if settings.proxy_protocol and _is_trusted(self.sock, settings):
            self.sock.sendall(PROXY_HEADER)
        if settings.tls_cert:
            # The name that clients use is not known here, and the connection does not leave this machine.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self.sock = context.wrap_socket(self.sock)


def _is_trusted(sock: socket.socket, settings: Settings) -> bool:
    """Whether the gateway takes the end of this connection for a trusted proxy."""
    from proxy.access import UNIX, TrustedProxies  # here: it takes half of the start of a probe

    name = sock.getsockname()
    return TrustedProxies(settings.trusted_proxies).trusts(name[0] if isinstance(name, tuple) else UNIX)


def ask(settings: Settings, path: str) -> tuple[bool, str]:
    """Whether the answer was 200, and the answer as one line."""
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


def command() -> int:
    """Run the command. Returns its exit code."""
    return run("proxy.probe", lambda: main(sys.argv[1:], os.environ))


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """0: yes; 1: no, or no answer; 2: wrong usage. Flags are the gateway's own."""
    prog = program_name(sys.argv[0], "proxy.probe")
    path, flags = (argv[0], argv[1:]) if argv and argv[0] in PATHS else (PATHS[0], argv)
    if "--help" in flags or "-h" in flags:
        sys.stdout.write(HELP.format(prog=prog, seconds=SECONDS))
        return 0
    try:
        settings = load(flags, environ, prog=prog)
    except SettingsError as e:
        problems = "".join(f"proxy.probe: {line}\n" for line in str(e).splitlines())
        sys.stderr.write(f"{problems}usage: {prog} [health|ready] [flags of the gateway]; --help explains them\n")
        return 2
    good, line = ask(settings, path)
    (sys.stdout if good else sys.stderr).write(f"{path}: {line}\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(command())

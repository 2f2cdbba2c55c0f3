"""The listening sockets. The supervisor binds them and keeps them open, so that connections
that are not accepted yet survive the end of a worker."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass, field

from proxy.config import Settings
from proxy.errors import ListenError
from proxy.server import unix_socket

BACKLOG = 1024


@dataclass(slots=True)
class Sockets:
    """`own[n]` are accepted from by worker n alone, `admin` by all."""

    own: list[list[socket.socket]]
    admin: list[socket.socket] = field(default_factory=list)
    port: int = 0

    def close(self) -> None:
        for sock in (*self.admin, *(sock for each in self.own for sock in each)):
            sock.close()


def bind(settings: Settings, workers: int, stack: ExitStack) -> Sockets:
    """Bind all. On a TCP port each worker has its own socket of a SO_REUSEPORT group, among which the kernel
    spreads new connections; a Unix socket is shared by all. Raises ListenError, or SettingsError."""
    if settings.listen_unix:
        shared = stack.enter_context(unix_socket(settings.listen_unix, int(settings.listen_unix_mode, 8)))
        shared.listen(BACKLOG)
        sockets = Sockets([[shared] for _ in range(workers)])
    else:
        sockets = _bind_port(settings.host, settings.port, workers)
    stack.callback(sockets.close)
    if settings.admin_port:
        try:
            sockets.admin.extend(_listening(settings.admin_host, settings.admin_port, 1)[0])
        except ListenError as e:
            raise ListenError(f"{e} (admin_port = {settings.admin_port})", "admin_port") from e
    return sockets


def _bind_port(host: str, port: int, workers: int) -> Sockets:
    own = _listening(host, port, workers)
    return Sockets(own, port=own[0][0].getsockname()[1])


def _listening(host: str, port: int, count: int) -> list[list[socket.socket]]:
    """For each of `count` processes a socket on every address of the host."""
    own: list[list[socket.socket]] = [[] for _ in range(count)]
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            # Another process, of another program too, must not join the group: the first socket is bound alone.
            with socket.socket(family, kind, protocol) as alone:
                _reuse(alone, family)
                alone.bind((address[0], port, *address[2:]))
                port = alone.getsockname()[1]
            for each in own:
                sock = socket.socket(family, kind, protocol)
                each.append(sock)
                _reuse(sock, family)
                if count > 1:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind((address[0], port, *address[2:]))
                sock.listen(BACKLOG)
                sock.setblocking(False)
    except OSError as e:
        for sock in (sock for each in own for sock in each):
            sock.close()
        raise ListenError(e.strerror or str(e)) from e
    return own


def _reuse(sock: socket.socket, family: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)

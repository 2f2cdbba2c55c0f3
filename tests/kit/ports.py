"""Owns ports of loopback for servers that a test starts."""

from __future__ import annotations

import socket
from typing import Final

_HELD: Final[list[socket.socket]] = []


def free_port() -> int:
    """A TCP port where nobody listens. The process holds it to its end by a socket that never listens: the kernel
    gives it to nobody else, and a server that sets SO_REUSEADDR can bind it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _HELD.append(held)
    port: int = held.getsockname()[1]
    return port

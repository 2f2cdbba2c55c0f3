"""Mends a fault of asyncio that tests met by chance: a server closed while it accepts leaves a connection open.

Between the accept of a connection and its transport lies one turn of the loop. A server that is closed in it has
`Server._attach` raise, which nobody is told, and the socket stays until garbage is collected: a ResourceWarning in
whatever test runs by then, and a client that is never answered (asyncio of 3.11 to 3.13, not uvloop).
"""

from __future__ import annotations

import asyncio
import socket
from asyncio.selector_events import BaseSelectorEventLoop
from typing import Any


def mend_accept() -> None:
    """From now on such a connection is closed, as the kernel closes those that were not yet accepted."""
    original: Any = getattr(BaseSelectorEventLoop, "_accept_connection2")  # noqa: B009 - of no public type

    async def accept(
        self: object,
        factory: Any,
        connection: socket.socket,
        extra: object,
        sslcontext: object = None,
        server: asyncio.Server | None = None,
        *rest: Any,
        **named: Any,
    ) -> None:
        if server is not None and not server.sockets:
            connection.close()
            return
        await original(self, factory, connection, extra, sslcontext, server, *rest, **named)

    setattr(BaseSelectorEventLoop, "_accept_connection2", accept)  # noqa: B010

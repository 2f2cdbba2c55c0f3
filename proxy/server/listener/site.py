"""Where the listener listens: an address or a bound socket, with or without TLS and its handshake timeout."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final, cast

from aiohttp import web

SHUTDOWN_SECONDS: Final = 5.0  # for the client's answer to the end of a TLS connection


class Site(web.BaseSite):
    """An address, or a bound socket, that the listener accepts from. `handshake`: seconds for a TLS handshake."""

    def __init__(
        self,
        runner: web.ServerRunner,
        where: dict[str, Any],
        *,
        backlog: int,
        tls: ssl.SSLContext | None,
        handshake: float,
    ) -> None:
        """`where`: `sock`, or `host` and `port`, for `create_server`."""
        super().__init__(runner, ssl_context=tls, backlog=backlog)
        times = {"ssl_handshake_timeout": handshake, "ssl_shutdown_timeout": SHUTDOWN_SECONDS}
        self._where = where | times if tls is not None else where

    @property
    def name(self) -> str:
        return f"<{self._where}>"

    async def start(self) -> None:
        await super().start()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            cast(Any, server), ssl=self._ssl_context, backlog=self._backlog, **self._where
        )

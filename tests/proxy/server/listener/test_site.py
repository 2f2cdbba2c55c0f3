"""Where the door listens: what of the bounds goes to the server, with TLS and without."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast

import pytest
from aiohttp import web

from proxy.server.listener.site import SHUTDOWN_SECONDS, Site


@pytest.mark.parametrize("tls", [None, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)], ids=["plain", "tls"])
async def test_a_handshake_is_bounded_where_there_is_one(
    tls: ssl.SSLContext | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    async def create_server(factory: object, **how: Any) -> None:
        assert factory is runner.server
        asked.append(how)

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        raise AssertionError

    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    monkeypatch.setattr(asyncio.get_running_loop(), "create_server", create_server)
    site = Site(runner, {"host": "h", "port": 5}, backlog=7, tls=tls, handshake=3.0)
    await site.start()
    bounds = {"ssl_handshake_timeout": 3.0, "ssl_shutdown_timeout": SHUTDOWN_SECONDS}
    assert asked == [{"host": "h", "port": 5, "ssl": tls, "backlog": 7} | (bounds if tls is not None else {})]
    assert "'port': 5" in site.name
    assert site in runner.sites
    cast(Any, site)._server = None
    await runner.cleanup()

"""The streaming proxy that most people would write: aiohttp on both sides, nothing tuned. It is the baseline: do
not optimise it."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
import uvloop
from aiohttp import web
from yarl import URL

HOP_BY_HOP: Final = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
ENGINE: Final = web.AppKey("engine", str)
SESSION: Final = web.AppKey("session", aiohttp.ClientSession)


async def forward(request: web.Request) -> web.StreamResponse:
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
    headers.pop("Host", None)
    async with request.app[SESSION].request(
        request.method,
        URL(request.app[ENGINE] + request.raw_path, encoded=True),
        headers=headers,
        data=await request.read(),
        allow_redirects=False,
    ) as upstream:
        response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
        for name, value in upstream.headers.items():
            if name.lower() not in HOP_BY_HOP:
                response.headers.add(name, value)
        await response.prepare(request)
        async for data in upstream.content.iter_any():
            await response.write(data)
        await response.write_eof()
        return response


async def _session(app: web.Application) -> AsyncIterator[None]:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=600)
    connector = aiohttp.TCPConnector(limit=4096)  # aiohttp's default of 100 would queue requests
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
        app[SESSION] = session
        yield


def make_app(engine: str) -> web.Application:
    app = web.Application(client_max_size=2**26)
    app[ENGINE] = engine
    app.cleanup_ctx.append(_session)
    app.router.add_route("*", "/{path:.*}", forward)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.peers.naive_proxy", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", required=True, metavar="URL")
    args = parser.parse_args()
    web.run_app(
        make_app(args.engine), host="127.0.0.1", port=args.port, backlog=2048, access_log=None, print=None,
        loop=uvloop.new_event_loop(),
    )  # fmt: skip


if __name__ == "__main__":
    main()

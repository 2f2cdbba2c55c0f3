"""Owns the two upstreams that the tests of faults compare: ours, and the same interface on aiohttp's own client.
Must not know any one fault. Foreign errors become the same GatewayErrors here as there.
Called by tests; the proxy itself never uses aiohttp's client (ops/docs/decisions/upstream.md, 2)."""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol

import aiohttp
from aiohttp import http_exceptions
from yarl import URL

from proxy.errors import Code, GatewayError
from proxy.upstream.http.connection import Receiver
from proxy.upstream.http.dial import unreachable
from proxy.upstream.http.pool import IDLE_SECONDS, Pool


class Upstream(Protocol):
    """Sends requests to one engine. `exchange` returns once the receiver has had its `end` or `lost`."""

    async def exchange(self, method: str, path: str, body: bytes, receiver: Receiver) -> None: ...
    async def close(self) -> None: ...


class Ours:
    """The pool, used as the scheduler uses it."""

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None, connect_timeout: float = 5.0) -> None:
        loop = asyncio.get_running_loop()
        self.pool = Pool(url, connect_timeout=connect_timeout, loop=loop, tls=tls)

    async def exchange(self, method: str, path: str, body: bytes, receiver: Receiver) -> None:
        request = self.pool.request(method, path, (), body)
        for connection in (self.pool.take(), None):
            fresh = connection is None
            if connection is None:
                try:
                    connection = await self.pool.connect()
                except GatewayError as e:
                    receiver.lost(e)
                    return
            attempt = _Attempt(receiver)
            connection.send(request, attempt)
            error = await attempt.done
            if error is None:
                return
            if fresh or connection.received or error.code is not Code.UPSTREAM_UNREACHABLE:
                receiver.lost(error)
                return

    async def close(self) -> None:
        self.pool.close()


class _Attempt:
    """Passes on all but the ending that may be tried again."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.head, self.body = receiver.head, receiver.body
        self.done: asyncio.Future[GatewayError | None] = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        self._receiver.end()
        self.done.set_result(None)

    def lost(self, error: GatewayError) -> None:
        self.done.set_result(error)


class Reference:
    """aiohttp's client, with its limits set where ours are and its decompression off."""

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None, connect_timeout: float = 5.0) -> None:
        unix = url.removeprefix("unix://") if url.startswith("unix://") else ""
        self._base = URL("http://localhost" if unix else url)
        connector: aiohttp.BaseConnector
        if unix:
            connector = aiohttp.UnixConnector(unix, limit=0, keepalive_timeout=IDLE_SECONDS)
        else:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS, ssl=tls or True)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_timeout),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def exchange(self, method: str, path: str, body: bytes, receiver: Receiver) -> None:
        begun = False
        try:
            async with self._session.request(
                method, self._base.with_path(path), data=body or None, allow_redirects=False
            ) as response:
                begun = True
                headers = [(k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in response.raw_headers]
                receiver.head(response.status, headers)
                async for data in response.content.iter_any():
                    receiver.body(data)
        except (aiohttp.ClientError, http_exceptions.HttpProcessingError, OSError) as e:
            receiver.lost(mapped(e, begun=begun))
        else:
            receiver.end()

    async def close(self) -> None:
        await self._session.close()


def mapped(e: Exception, *, begun: bool) -> GatewayError:
    """What a fault of aiohttp's client is called here. aiohttp wraps the parser's complaint: it is looked for."""
    cause: BaseException | None = e
    while cause is not None:
        if isinstance(cause, http_exceptions.ContentLengthError):
            break
        if isinstance(cause, http_exceptions.TransferEncodingError) and "Not enough data" in str(cause):
            break
        if isinstance(cause, http_exceptions.HttpProcessingError | aiohttp.ClientResponseError):
            return GatewayError(Code.UPSTREAM_PROTOCOL, f"Malformed HTTP response from the engine: {cause}.")
        cause = cause.__cause__ or cause.__context__
    if begun:
        return GatewayError(
            Code.UPSTREAM_TRUNCATED, f"The engine closed the connection before the end of its answer ({e})."
        )
    if isinstance(e, aiohttp.ConnectionTimeoutError):
        return GatewayError(Code.UPSTREAM_CONNECT_TIMEOUT, "The engine did not take the connection.")
    return unreachable(str(e))

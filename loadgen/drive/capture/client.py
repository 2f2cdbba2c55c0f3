"""One request over aiohttp, and the words for every way in which it can fail: a prepared request in, an ended
`Exchange` out, never an exception."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import ssl
import time
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import aiohttp
from aiohttp import ClientTimeout, TCPConnector, TraceConfig

from loadgen.drive.capture.exchange import CURRENT, Exchange
from loadgen.drive.capture.handler import install
from loadgen.drive.capture.leaving import TokenCount
from loadgen.drive.capture.loop import selector_of
from loadgen.drive.capture.sockets import Sockets
from loadgen.record import Failure, Record
from loadgen.spec import Http

READ_BUFFER: Final = 1024 * 1024  # aiohttp pauses reading beyond twice this; the handler empties it at each read
LARGE_BODY: Final = 1024 * 1024  # aiohttp warns where larger bytes are sent as one object
MAX_RESENT: Final = 3
_GONE: Final = (aiohttp.ClientConnectionError, ConnectionError)


class PreparedRequest(NamedTuple):
    """A request encoded before it is due."""

    record: Record
    url: str
    body: bytes
    leave_tokens: TokenCount | None = None  # cancel it when this is reached
    leave_s: float | None = None  # or so many seconds after it is sent


class Client:
    """One pool of connections without a limit: the runner caps how many requests are in flight."""

    def __init__(self, http: Http, *, kernel: bool) -> None:
        loop = asyncio.get_running_loop()
        self._http = http
        sockets = self._sockets = Sockets(kernel=kernel)
        connector = TCPConnector(
            limit=0,
            limit_per_host=0,
            ttl_dns_cache=300,
            force_close=not http.keepalive,
            keepalive_timeout=None if not http.keepalive else http.keepalive_seconds,
            ssl=_tls(http.insecure),
            socket_factory=sockets.make,
        )
        install(connector, loop, sockets, http.max_response_bytes)
        self._selector = selector_of(loop)
        if kernel and self._selector is not None:
            self._selector.read_ahead = sockets.read_ahead
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=ClientTimeout(total=None, connect=http.connect_timeout or None),
            headers={"Accept-Encoding": "identity", "Content-Type": "application/json", **dict(http.headers)},
            skip_auto_headers=("User-Agent", "Accept"),
            auto_decompress=False,
            trace_configs=[_connecting()],
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self.open: dict[Exchange, asyncio.Timeout] = {}  # in flight, each with its time limit

    def __repr__(self) -> str:
        return f"<Client, {len(self.open)} in flight>"

    async def send(self, request: PreparedRequest) -> Exchange:
        """The exchange when it has ended. Never raises: a failure and a cancellation are in the exchange."""
        exchange = Exchange(request.record)
        CURRENT.set(exchange)
        exchange.last_ns = time.monotonic_ns()
        request.record.bytes_out = len(request.body)
        limit = self._http.request_timeout or None
        leaves = request.leave_tokens is not None or request.leave_s is not None
        leaving = self._leave_later(request, exchange) if leaves else None
        try:
            async with asyncio.timeout(limit) as timer:
                self.open[exchange] = timer
                while not await self._completed(request, exchange):
                    request.record.resent += 1
        except asyncio.CancelledError:
            exchange.fail("cancelled", "the run ended first")
        except Exception as error:  # noqa: BLE001 - whatever aiohttp raises is this request's failure, in words
            if type(error) is TimeoutError:  # ours; aiohttp's are subclasses of it
                exchange.fail("timeout", f"no complete response within {limit or 0:g} s (--request-timeout)")
            exchange.fail(*failure_of(error, self._http, answering=exchange.answered))
        finally:
            exchange.ended_ns = time.monotonic_ns()
            self.open.pop(exchange, None)
            if leaving is not None:
                leaving.cancel()
        return exchange

    def _leave_later(self, request: PreparedRequest, exchange: Exchange) -> asyncio.TimerHandle | None:
        """Arrange that the client leaves the exchange at the token or the time that the request names."""
        loop = asyncio.get_running_loop()
        tokens, seconds = request.leave_tokens, request.leave_s

        def leave(when: str) -> None:
            if exchange in self.open and exchange.failure is None:
                exchange.fail("left", f"cancelled by its client after {when} (--cancel)")
                self.open[exchange].reschedule(loop.time())

        if tokens is not None:

            def count(data: bytes) -> None:
                if tokens.reached(data):
                    exchange.count = None
                    leave(f"{tokens.tokens} tokens")

            exchange.count = count
        return None if seconds is None else loop.call_later(seconds, leave, f"{seconds:g} s")

    async def _completed(self, request: PreparedRequest, exchange: Exchange) -> bool:
        """Whether the exchange has ended. False: the server was closing the kept-alive connection; send again.

        Servers may close an idle connection at any time, and some (llama.cpp) do so after each stream without
        saying so. Every pooling client sends again then. Here this is counted, and the time since due continues.
        """
        try:
            await self._exchange(request, exchange)
        except _GONE:
            if not exchange.reused or exchange.answered or request.record.resent >= MAX_RESENT:
                raise
            return False
        return True

    async def _exchange(self, request: PreparedRequest, exchange: Exchange) -> None:
        exchange.reused = False
        body: Any = request.body if len(request.body) <= LARGE_BODY else io.BytesIO(request.body)
        response = await self._session.post(
            request.url,
            data=body,
            headers={"x-request-id": request.record.id},
            allow_redirects=False,
            read_bufsize=READ_BUFFER,
        )
        try:
            exchange.status = response.status
            exchange.content_type = response.headers.get("Content-Type", "")
            exchange.shared = response.headers.get("x-gateway-cache")
            if (broken := response.content.exception()) is not None:
                raise broken  # it failed before this task ran: wait_eof would never return
            await response.content.wait_eof()
            exchange.complete = exchange.failure is None
        finally:
            if exchange.complete:
                response.release()
            else:
                response.close()

    def sweep(self, now_ns: int) -> None:
        """End exchanges that have been silent for longer than the idle limit. Called a few times a second."""
        limit = self._http.idle_timeout
        if not limit:
            return
        for exchange, timer in self.open.items():
            if now_ns - exchange.last_ns > limit * 1e9 and exchange.failure is None:
                exchange.fail("timeout", f"no data for {limit:g} s (--idle-timeout)")
                timer.reschedule(asyncio.get_running_loop().time())

    async def get(self, url: str, timeout: float) -> tuple[int, bytes]:
        """Status and body, for preflight. Raises aiohttp's errors and TimeoutError; `timeout` in seconds."""
        CURRENT.set(Exchange(Record(index=-1, id="", prompt="", due_ns=0)))
        limit = ClientTimeout(total=timeout, connect=self._http.connect_timeout or None)
        async with self._session.get(url, timeout=limit, allow_redirects=False) as response:
            exchange = CURRENT.get()
            await response.content.wait_eof()
            return response.status, exchange.body

    async def close(self) -> None:
        await self._session.close()
        if self._selector is not None and self._selector.read_ahead == self._sockets.read_ahead:
            self._selector.read_ahead = None
        self._sockets.close()
        await asyncio.sleep(0)  # transports close in the next loop iteration


def _tls(insecure: bool) -> ssl.SSLContext | bool:
    return not insecure


def _connecting() -> TraceConfig:
    """Times each new connection: name resolution, TCP and TLS. Marks an exchange on a kept one."""
    started: Final = "_started"
    trace = TraceConfig()

    async def start(session: object, context: SimpleNamespace, params: object) -> None:
        setattr(context, started, time.monotonic_ns())

    async def end(session: object, context: SimpleNamespace, params: object) -> None:
        CURRENT.get().connect_ns = time.monotonic_ns() - getattr(context, started)

    async def reuse(session: object, context: SimpleNamespace, params: object) -> None:
        CURRENT.get().reused = True

    trace.on_connection_reuseconn.append(reuse)
    trace.on_connection_create_start.append(start)
    trace.on_connection_create_end.append(end)
    return trace


def failure_of(error: BaseException, http: Http, *, answering: bool) -> tuple[Failure, str]:
    """The failure's kind and its message. `answering`: the response's first byte had arrived."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "timeout", f"no connection within {http.connect_timeout:g} s (--connect-timeout)"
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        if "WRONG_VERSION_NUMBER" in str(error):
            return "refused", f"{error.host}:{error.port} does not speak TLS; give http:// instead of https://"
        return "refused", f"TLS: {_reason(error)} (--insecure accepts any certificate)"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "refused", f"unknown host {error.host}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "refused", _connecting_failed(error)
    if isinstance(error, aiohttp.ClientPayloadError):
        return "truncated", "the connection ended in the middle of the response"
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.http_exceptions.HttpProcessingError):
        return "garbage", f"not HTTP: {error.message or error}"
    if isinstance(error, _GONE):
        where = "in the middle of its response" if answering else "before it responded"
        return "truncated", f"the server closed the connection {where}: {_reason(error)}"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "refused", "out of file descriptors (ulimit -n)"
    return "garbage", f"{type(error).__name__}: {error}"


def _connecting_failed(error: aiohttp.ClientConnectorError) -> str:
    cause = error.os_error
    if cause.errno in (errno.EMFILE, errno.ENFILE):
        return "out of file descriptors (ulimit -n)"
    if cause.errno == errno.EADDRNOTAVAIL:
        return "out of local ports: connections are opened faster than the system frees their ports"
    return f"{error.host}:{error.port}: {os.strerror(cause.errno) if cause.errno else _reason(cause)}"


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

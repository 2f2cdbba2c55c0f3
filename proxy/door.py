"""Owns the listening side of aiohttp: its server with our error bodies, cancellation and connection limit.
Must not know endpoints, flights or settings' names: it is given a handler and bounds.
Called by the app."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from proxy.errors import Code, GatewayError

KEEPALIVE_SECONDS = 75.0


class DoorHandler(RequestHandler):
    """One client connection. What aiohttp itself must refuse is refused in OpenAI's form."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun; it cannot become an error")
        if isinstance(exc, LineTooLong):
            error = GatewayError(Code.HEADERS_TOO_LARGE, "The request line or a header is too long.")
        elif status < 500:
            error = GatewayError(Code.INVALID_VALUE, "This is not a request of HTTP/1.1 that can be read.")
        else:
            error = GatewayError(Code.INTERNAL, "The gateway failed.")
        response = web.Response(status=error.status, body=error.json(), content_type="application/json")
        response.force_close()
        return response


class Door(web.Server):
    """aiohttp's low-level server: no router, no middleware; every request goes to the one handler.

    A client that leaves cancels its handler (`run_app` and `AppRunner` leave that off).
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        max_connections: int,
        max_header: int,
        on_refused: Callable[[], None] = lambda: None,
    ) -> None:
        self._limits: dict[str, Any] = {
            "keepalive_timeout": KEEPALIVE_SECONDS,
            "max_line_size": max_header,
            "max_field_size": max_header,
            "access_log": None,
            "auto_decompress": False,
        }
        super().__init__(handler, handler_cancellation=True, **self._limits)
        self._max_connections = max_connections
        self._on_refused = on_refused

    def __call__(self) -> RequestHandler:
        return DoorHandler(self, loop=self._loop, **self._limits)

    def connection_made(self, handler: RequestHandler, transport: Any) -> None:
        super().connection_made(handler, transport)
        if len(self._connections) > self._max_connections:
            self._on_refused()
            error = GatewayError(
                Code.QUEUE_FULL, f"The gateway has {self._max_connections} connections already.", retry_after=1
            )
            body = msgspec.json.encode(error.body())
            transport.write(
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
                b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            )
            transport.close()

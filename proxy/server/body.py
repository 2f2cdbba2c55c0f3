"""Reads a request's body: at once where it came with its head, else within bounds of size, time and memory."""

from __future__ import annotations

import asyncio
import io
from typing import Final

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_writer import HttpVersion11
from aiohttp.web_exceptions import HTTPException

from proxy.access import PriorityPolicy
from proxy.access.ratelimit import Admission
from proxy.config import Settings
from proxy.errors import Code, GatewayError
from proxy.flights import Held, Memory
from proxy.server.context import RequestContext
from proxy.server.listener.request import AT_HAND, Request, buffered_body
from proxy.wire.http import require_json, require_plain

BODY_COST: Final = 2
"""Memory that one byte of a body costs until its request has ended: the body and the request decoded from it."""
GRANULE: Final = 256 * 1024  # bytes by which the charge of a body of unknown length grows
AHEAD: Final = 64 * 1024
"""Bytes of a body of known length that are charged before they come, and as many again as have come: a client that
announces 16 MiB and sends nothing holds little of the budget."""
LEAST_FREE: Final = 4 * 1024


class BodyReader:
    """Reads the bodies of all requests. `free`: bytes of a body that are not charged to the memory budget."""

    def __init__(
        self,
        settings: Settings,
        memory: Memory | None,
        admission: Admission | None,
        priority_policy: PriorityPolicy,
    ) -> None:
        self._settings = settings
        self._memory = memory
        self._admission = admission
        self._priority_policy = priority_policy
        self.free = free_body(memory.budget, settings.max_connections) if memory is not None else AT_HAND

    async def read(self, context: RequestContext, *, json: bool, limit: int = 0) -> bytes:
        """The body, buffered or received. `limit` replaces `max_body_bytes`. Raises GatewayError."""
        body = body_if_buffered(context.request, self._settings, json=json, most=self.free, limit=limit)
        return await self.receive(context, limit) if body is None else body

    async def receive(self, context: RequestContext, limit: int = 0) -> bytes:
        """A body that is large or has not arrived: the head passes admission control before the body is read."""
        if self._admission is not None:
            await self._admission.head(context)
        held = None
        if self._memory is not None:
            owner = self._priority_policy.current_fairness_key(context.caller, context.request)
            held = context.charge_upload(Held(self._memory, owner, "uploads"))
        return await read_body(context.request, self._settings, held, limit)


def free_body(budget: int, max_connections: int) -> int:
    """Bytes of a body that are not charged to the memory budget: all connections together use a quarter of it."""
    return min(AT_HAND, max(LEAST_FREE, budget // 4 // max_connections))


def body_if_buffered(
    request: Request, settings: Settings, *, json: bool, most: int = AT_HAND, limit: int = 0
) -> bytes | None:
    """The body, where it came with its head, as small ones do. None: it has to be awaited, see `read_body`.
    `limit` replaces `max_body_bytes`. Raises GatewayError 413 or 415."""
    if json and not request.plain:
        headers = request.headers
        if headers.get("content-type") != "application/json":
            require_json(headers)
        if "content-encoding" in headers:
            require_plain(headers)
    body = request.body
    if body is None or len(body) > most:
        body = buffered_body(request.content, most)
    size = len(body) if body is not None else request.content_length or 0
    if size > (limit or settings.max_body_bytes):
        raise _too_large(limit or settings.max_body_bytes)
    return body


async def read_body(request: Request, settings: Settings, held: Held | None = None, limit: int = 0) -> bytes:
    """The complete body, within the limits of bytes and seconds, charged to `held` as it comes. Where all of it
    does not fit at its begin it is refused then. Raises GatewayError 400, 408, 413 or 503."""
    largest = limit or settings.max_body_bytes
    length = request.content_length
    if held is not None:
        held.need(BODY_COST * (length or GRANULE))
        if length is not None and length > AHEAD:
            held.resize(BODY_COST * AHEAD)
    expects = request.headers.get("expect", "").lower() == "100-continue" and request.version >= HttpVersion11
    if expects and request.transport is not None:  # RFC 9110 10.1.1: HTTP/1.0 has no 100
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = io.BytesIO()  # `getvalue` makes no copy, and it grows by realloc: no pieces to join
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout or None):
            while piece := await request.content.readany():
                size += len(piece)
                if size > largest:
                    raise _too_large(largest)
                if held is not None and BODY_COST * size > held.size:
                    held.need(BODY_COST * (size + GRANULE if length is None else min(length, 2 * size + AHEAD)))
                body.write(piece)
    except TimeoutError:
        raise GatewayError(
            Code.BODY_TIMEOUT, f"The body did not arrive within {settings.body_timeout:g} s."
        ) from None
    except (HttpProcessingError, HTTPException, ClientPayloadError, web.RequestPayloadError, ValueError):
        raise GatewayError(
            Code.INVALID_VALUE,
            "The body is malformed: it ends too early, or its chunks or encoding cannot be read.",
        ) from None
    return body.getvalue()


def _too_large(largest: int) -> GatewayError:
    return GatewayError(Code.BODY_TOO_LARGE, f"The body exceeds the limit of {largest} bytes.")

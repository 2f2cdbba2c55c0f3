"""The page's paths: `/`, `/-/state` and `/-/readers`, and how many clients may use each at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec
from aiohttp import HttpVersion11

from proxy.access import AccessPolicy, ClientRequest
from proxy.errors import Code, GatewayError
from proxy.server import respond
from proxy.server.context import RequestContext
from proxy.server.gateway import Gateway
from proxy.server.page.document import document
from proxy.server.page.event_stream import EventStream
from proxy.server.page.prompt import wanted
from proxy.server.page.rates import Rising
from proxy.server.page.readers import Playground, Read
from proxy.server.page.state import Sources, StateView, Visible
from proxy.telemetry import Audit

MAX_WATCHERS: Final = 32
MAX_SENT: Final = 64 * 1024 * 1024
"""Bytes of the requests of one playground's readers, where each is sent for itself and the request is large."""
MAX_BOARDS: Final = 8
"""Playgrounds at a time: each is up to 50 requests, which all else bounds and limits as it does any others."""


class Page:
    """The handlers. Nothing runs while the page is closed."""

    def __init__(
        self,
        gateway: Gateway,
        sources: Sources,
        access_policy: AccessPolicy | None,
        audit: Audit,
        address: Callable[[ClientRequest], str],
        *,
        every: float = 1.0,
    ) -> None:
        """`every`: seconds between two states of an event stream."""
        self._gateway = gateway
        self._responder = gateway.responder
        self._sources = sources
        self._access_policy = access_policy
        self._audit = audit
        self._address = address
        self._every = every
        self._stall = sources.settings.client_stall_timeout
        self._shell = document()
        self._closing = asyncio.Event()
        self._delivered = Rising()
        self.watchers = 0
        self.boards = 0
        gateway.routes.add_route("/", "GET", "page", self.page)
        gateway.routes.add_route("/-/state", "GET", "state", self.state)
        gateway.routes.add_route("/-/readers", "POST", "readers", self.readers)

    def close(self) -> None:
        """End the event streams of the state, so that the drain waits for answers only."""
        self._closing.set()

    async def page(self, context: RequestContext) -> respond.Sent:
        headers = [*self._shell.headers, *context.headers()]
        return await self._responder.send(context, 200, headers, self._shell.html, shared=True)

    async def state(self, context: RequestContext) -> respond.Sent:
        """Once as JSON, or every second to a client that accepts an event stream. Raises GatewayError 503."""
        request = context.request
        view = StateView(self._sources, self._visible(context), self._delivered)
        events = "text/event-stream" in request.headers.get("accept", "")
        if not events or request.method == "HEAD" or request.version < HttpVersion11:
            headers = [("content-type", "application/json"), ("cache-control", "no-store"), *context.headers()]
            return await self._responder.send(context, 200, headers, msgspec.json.encode(await view.look()))
        if self.watchers >= MAX_WATCHERS:
            raise _full(MAX_WATCHERS, "watchers")
        self.watchers += 1
        try:
            return await self._watch(context, view)
        finally:
            self.watchers -= 1

    async def _watch(self, context: RequestContext, view: StateView) -> respond.Sent:
        stream = EventStream(context.request, context.headers(), self._stall)
        context.begin_response(200, endless=True)
        try:
            while not self._closing.is_set():
                stream.put(msgspec.json.encode(await view.look()))
                await stream.wait_writable()
                try:
                    async with asyncio.timeout(self._every):
                        await self._closing.wait()
                except TimeoutError:
                    pass
            return stream.end()
        except asyncio.CancelledError:
            return self._cut(context, stream)
        finally:
            context.wrote(stream.sent)

    def _cut(self, context: RequestContext, stream: EventStream) -> respond.Sent:
        """Its key has ended: the last event is the error. Raises CancelledError where the client has left."""
        if context.ending is None or context.request.task.uncancel():
            raise asyncio.CancelledError
        context.failed(context.ending.code.code)
        stream.put(context.ending.json())
        stream.end()
        return respond.Sent(200, False, stream.sent)

    async def readers(self, context: RequestContext) -> respond.Sent:
        """One prompt, N readers, one event stream of all of them. Raises GatewayError 400 or 503."""
        body = await self._gateway.bodies.read(context, json=True)
        if context.request.headers.get("content-type") is None or context.request.version < HttpVersion11:
            raise GatewayError(Code.UNSUPPORTED_MEDIA_TYPE, "Send application/json over HTTP/1.1.")
        if self.boards >= MAX_BOARDS:
            raise _full(MAX_BOARDS, "playgrounds")
        self.boards += 1
        stream: EventStream | None = None
        try:
            read, delays = await self._read(context, body)
            who, model = (
                context.caller.name if context.caller is not None else "",
                getattr(read, "model", None) or "",
            )
            self._audit.acted(
                "playground used",
                who,
                self._address(context.request),
                what=f"{len(delays)} readers",
                model=model[:256],
            )
            stream = EventStream(context.request, context.headers(), self._stall)
            context.begin_response(200, endless=True)
            context.describe(None, stream=True)
            try:
                board = Playground(stream, context)
                await board.run(self._gateway, read, delays)
                stream.put(b'{"done":true}')
                return stream.end()
            finally:
                context.wrote(stream.sent)
        except asyncio.CancelledError:
            if stream is None:
                raise
            return self._cut(context, stream)
        finally:
            self.boards -= 1

    async def _read(self, context: RequestContext, body: bytes) -> tuple[Read, list[float]]:
        """The request, decoded once for all readers, and the delay of each. Raises GatewayError."""
        large = self._gateway.large
        each = RequestContext(request=context.request, id=context.id, endpoint="chat", caller=context.caller)
        if large is None or len(body) <= large.inline or not large.heavy(body):
            board = wanted(body)
            try:
                return await self._gateway.generation.read(each, "chat", bytes(board.request)), board.delays_ms
            except GatewayError as e:
                return e, board.delays_ms  # each reader's own answer
        api_request, delays = await large.page(each, body)
        size = len(api_request.body) * len(delays)
        if size > MAX_SENT and api_request.large is not None and api_request.large.key is None:
            raise GatewayError(
                Code.BODY_TOO_LARGE,
                f"{len(delays)} readers without sharing would send {size} bytes; at most"
                f" {MAX_SENT} are allowed. Use fewer readers or temperature 0.",
            )
        return api_request, delays

    def _visible(self, context: RequestContext) -> Visible:
        access_policy = self._access_policy
        return (
            (lambda models: models)
            if access_policy is None
            else (lambda models: access_policy.visible_models(context, models))
        )


def _full(most: int, what: str) -> GatewayError:
    return GatewayError(Code.QUEUE_FULL, f"Too many {what} (limit {most}); try again later.", retry_after=5)

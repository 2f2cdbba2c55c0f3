"""Owns the handler of `/embed`: `/v1/embeddings` under a short name, and a marked stub where that is wanted.
Must not know how a request is read, joined or sent: it is given the steps.
Called by the gateway, once a request to that path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from proxy.errors import Code, GatewayError
from proxy.flights import Subscriber
from proxy.server import respond
from proxy.server.context import RequestContext
from proxy.server.handlers.embed_stub import CANNOT_EMBED, names_model, stub_vector
from proxy.wire import ApiRequest


class Reply(Protocol):
    """Answers with a JSON value of ours."""

    def __call__(
        self, call: RequestContext, status: int, answer: object, headers: respond.Headers = ()
    ) -> Awaitable[respond.Sent]: ...


_BUSY: Final = frozenset({Code.QUEUE_FULL, Code.QUEUE_SHARE, Code.QUEUE_TIMEOUT, Code.DEADLINE_UNMEETABLE})
"""There are engines, but not now: what a stub is not for."""


class EmbedHandler:
    """Where no engine can embed it answers a stub, if the setting says so."""

    def __init__(
        self,
        stub: bool,
        ask: Callable[[RequestContext], Awaitable[ApiRequest]],
        join: Callable[[RequestContext, ApiRequest], Subscriber],
        body: Callable[[RequestContext, Subscriber], Awaitable[respond.Sent]],
        reply: Reply,
    ) -> None:
        self._stub = stub
        self._ask = ask
        self._join = join
        self._body = body
        self._reply = reply

    async def __call__(self, call: RequestContext) -> respond.Sent:
        ask = await self._ask(call)
        try:
            reader = self._join(call, ask)
            reader.whole = True
            while not reader.flight.ended:
                await reader.changed()
            head = reader.flight.head
            if reader.flight.error is not None:
                raise reader.flight.error
            if head is None or head.status not in CANNOT_EMBED or names_model(reader.flight.log):
                return await self._body(call, reader)
            if not self._stub:
                raise GatewayError(
                    Code.EMBEDDINGS_UNAVAILABLE,
                    "No engine behind this gateway can embed; add a --backend that serves an embedding model.",
                )
        except GatewayError as e:
            if not self._stub or e.code in _BUSY:
                raise
        return await self._reply(call, 200, stub_vector(ask), [("x-gateway-stub", "1")])

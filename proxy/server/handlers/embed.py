"""`/embed`: `/v1/embeddings` under a short name, and a marked stub where the setting allows one."""

from __future__ import annotations

from typing import Final

from proxy.access.ratelimit import Admission
from proxy.config import Settings
from proxy.errors import Code, GatewayError
from proxy.server.body import BodyReader
from proxy.server.context import RequestContext
from proxy.server.handlers.embed_stub import CANNOT_EMBED, names_model, stub_vector
from proxy.server.handlers.generation import Generation
from proxy.server.respond import Sent
from proxy.server.responder import Responder
from proxy.wire import embeds_bytes

_BUSY: Final = frozenset({Code.QUEUE_FULL, Code.QUEUE_SHARE, Code.QUEUE_TIMEOUT, Code.DEADLINE_UNMEETABLE})
"""Engines exist but are busy: never a reason for a stub."""


class EmbedHandler:
    """The handler. With the setting `embed_stub` it answers a stub where no engine can embed."""

    def __init__(
        self,
        settings: Settings,
        bodies: BodyReader,
        generation: Generation,
        admission: Admission | None,
        responder: Responder,
    ) -> None:
        self._stub = settings.embed_stub
        self._bodies = bodies
        self._generation = generation
        self._admission = admission
        self._responder = responder

    async def __call__(self, context: RequestContext) -> Sent:
        body = await self._bodies.read(context, json=True)
        api_request = await self._generation.read(context, "embeddings", body)
        if embeds_bytes(api_request):
            return await self._generation.forward(context, api_request)
        if self._admission is not None:
            await self._admission(context)
        try:
            sharing = self._generation.sharing(context, api_request)
            reader = self._generation.attach(context, api_request, sharing)
            reader, _ = await self._generation.settle(context, body, reader)
            await reader.complete()
            head = reader.flight.head
            if reader.flight.error is not None:
                raise reader.flight.error
            if head is None or head.status not in CANNOT_EMBED or names_model(reader.flight.log):
                return await self._responder.body(context, reader)
            if not self._stub:
                raise GatewayError(
                    Code.EMBEDDINGS_UNAVAILABLE,
                    "No engine behind this gateway can embed; add a --backend that serves an embedding model.",
                )
        except GatewayError as e:
            if not self._stub or e.code in _BUSY:
                raise
        return await self._responder.reply(context, 200, stub_vector(api_request), [("x-gateway-stub", "1")])

"""What follows where a model's engines cannot answer: a look for an adapter that was loaded meanwhile, then the
models that answer in its place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import HttpVersion11

from proxy.access import AccessRules
from proxy.config import Settings
from proxy.errors import Code, GatewayError
from proxy.flights import Mode, Subscriber
from proxy.server.context import RequestContext
from proxy.telemetry import Log, Metrics
from proxy.upstream import STATUSES, Backends, HealthChecks, repeatable
from proxy.upstream.http import ConnectionRefused

Again = Callable[[str], Awaitable[Subscriber]]
"""Sends the request again, for this model. Returns its new reader."""

_NOT_SENT: Final = frozenset({Code.NO_BACKEND, Code.UPSTREAM_CONNECT_TIMEOUT})
_UNSERVED: Final = _NOT_SENT | {
    Code.UPSTREAM_UNREACHABLE,
    Code.UPSTREAM_TRUNCATED,
    Code.UPSTREAM_FIRST_TOKEN_TIMEOUT,
}
_REFUSED: Final = frozenset({429, 503})
"""Statuses of engines that have done nothing."""


class Standby:
    """One for a gateway."""

    def __init__(
        self,
        settings: Settings,
        rules: AccessRules,
        backends: Backends,
        health_checks: HealthChecks,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._patience = settings.keepalive_seconds
        self._rules = rules
        self._backends = backends
        self._health_checks = health_checks
        self._metrics = metrics
        self._log = log

    async def settle(self, context: RequestContext, reader: Subscriber, again: Again) -> tuple[Subscriber, bool]:
        """The reader of the first answer that a model gives, and whether its client has waited so long that its
        head goes out now. Where no model can answer it is the last one's reader. Nothing is sent to the client
        before. Raises GatewayError."""
        model = context.model or ""
        unlisted = not self._backends.lists(model)
        if not await self._answered(context, reader):
            return reader, True
        if unlisted and await self._appears(model, reader):
            reader = await self._anew(reader, again, model)
            if not await self._answered(context, reader):
                return reader, True
        elif unlisted and model and await self._lacks_path(reader):
            words = f"The model {model[:200]!r} does not exist: no engine lists it."
            raise GatewayError(Code.MODEL_NOT_FOUND, words, param="model")
        for other in self._rules.names.standbys.get(model, ()):
            why = cannot_serve(reader)
            if not why:
                break
            if not self._backends.serves(other):
                continue
            self._metrics.model_fallback(model, other)
            self._log.often("warning", "model fallback", model, model=model, to=other, detail=why)
            context.falls_back(other)
            reader = await self._anew(reader, again, other)
            if not await self._answered(context, reader):
                return reader, True
        return reader, False

    async def _answered(self, context: RequestContext, reader: Subscriber) -> bool:
        """Wait until it is known whether the model answers. False: a streaming client has waited long."""
        if reader.whole:
            while not reader.visible and reader.flight.folds:  # else the handler asks for a body at once
                await reader.changed()
            return True
        chunks = context.request.version >= HttpVersion11
        if self._patience and chunks and reader.flight.spec.mode is Mode.STREAM:
            return await reader.ready_within(self._patience)
        await reader.ready()
        return True

    async def _appears(self, model: str, reader: Subscriber) -> bool:
        """Whether an engine has a model now that none listed when the request was sent."""
        head = reader.flight.head
        missing = head is not None and head.status == 404 and len(self._backends.all) > 1
        if not missing and not (model in self._rules.names.standbys and cannot_serve(reader)):
            return False
        if not self._backends.lists(model):
            await self._health_checks.look_again(patient=missing)
        return self._backends.lists(model)

    async def _lacks_path(self, reader: Subscriber) -> bool:
        """Whether the engine answered that it has no such path, as one for embeddings does to a chat: of several
        engines that says nothing of the model, and has no error object for a client to read."""
        flight = reader.flight
        if flight.head is None or flight.head.status != 404 or len(self._backends.all) == 1:
            return False
        while not flight.ended:
            await reader.changed()
        return b'"error"' not in b"".join(flight.view(usage=False))

    async def _anew(self, reader: Subscriber, again: Again, model: str) -> Subscriber:
        reader.leave()
        return await again(model)


def cannot_serve(reader: Subscriber) -> str:
    """Why no engine of a model could serve a request, of whose answer nothing was sent; empty where one did, or
    where the request is the reason. A request that must not run twice has certainly not begun."""
    flight = reader.flight
    error, head = flight.error, flight.head
    passed = flight.spec.mode is Mode.RAW or flight.spec.event_api is not None
    once = passed and not repeatable(flight.spec.method, flight.spec.path)
    if error is not None:
        if flight.mode is Mode.STREAM and flight.view(usage=reader.usage):
            return ""
        begun = once and not isinstance(error, ConnectionRefused) and error.code not in _NOT_SENT
        return error.message if error.code in _UNSERVED and not begun else ""
    if head is not None and head.status in (_REFUSED if once else STATUSES):
        return f"The engine answered {head.status}."
    return ""

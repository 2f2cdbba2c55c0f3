"""Owns the short answers that need no flight: the models, whether it lives, whether it can serve, its metrics.
Must not know generations, limits or keys.
Called by the gateway, once a request for one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from proxy import respond
from proxy.backends import Backends
from proxy.call import Call
from proxy.errors import Code, GatewayError
from proxy.gate import Gate
from proxy.metrics import Metrics

Reply = Callable[[Call, int, object], Awaitable[respond.Sent]]
Send = Callable[[Call, int, list[tuple[str, str]], bytes], Awaitable[respond.Sent]]


class Plain:
    """One method an endpoint."""

    def __init__(self, backends: Backends, metrics: Metrics, gate: Gate | None, reply: Reply, send: Send) -> None:
        self._backends = backends
        self._metrics = metrics
        self._gate = gate
        self._reply = reply
        self._send = send

    async def models(self, call: Call) -> respond.Sent:
        if not self._backends.ready:
            raise GatewayError(Code.NO_BACKEND, "No engine answers, so no model is served.", retry_after=1)
        models = self._backends.models()
        if self._gate is not None:
            models = self._gate.visible(call, models)
        return await self._reply(call, 200, {"object": "list", "data": models})

    async def health(self, call: Call) -> respond.Sent:
        return await self._reply(call, 200, {"status": "ok"})

    async def ready(self, call: Call) -> respond.Sent:
        if not self._backends.ready:
            raise GatewayError(Code.NO_BACKEND, "No engine answers.", retry_after=1)
        return await self._reply(call, 200, {"status": "ready"})

    async def metrics(self, call: Call) -> respond.Sent:
        body, kind = self._metrics.render(call.request.headers.get("accept", ""))
        return await self._send(call, 200, [("content-type", kind), ("x-request-id", call.id)], body)

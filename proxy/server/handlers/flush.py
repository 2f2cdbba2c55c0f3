"""`DELETE /-/cache`: removes stored answers, of one model or of all, and writes an audit line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl

from proxy.access import AccessRules
from proxy.errors import Code, GatewayError
from proxy.flights import FlightGroup, model_tag
from proxy.redis import Cache, WireError
from proxy.server.context import RequestContext
from proxy.server.gateway import Gateway
from proxy.server.respond import Sent
from proxy.telemetry import Audit

PATH: Final = "/-/cache"


class Flush:
    """The handler. One flush at a time."""

    def __init__(
        self,
        gateway: Gateway,
        group: FlightGroup,
        cache: Cache | None,
        audit: Audit,
        address: Callable[[RequestContext], str],
        rules: AccessRules,
    ) -> None:
        self._responder = gateway.responder
        self._group = group
        self._cache = cache
        self._audit = audit
        self._address = address
        self._rules = rules
        self._busy = False
        gateway.routes.add_route(PATH, "DELETE", "cache", self.handle)

    async def handle(self, context: RequestContext) -> Sent:
        """Raises GatewayError 400 or 503."""
        model = _model_of(context)
        if model is not None and model in self._rules.names.aliases:
            models = ", ".join(name for name, _ in self._rules.names.aliases[model])
            raise GatewayError(Code.INVALID_VALUE, f"{model!r} is an alias: name {models}.", param="model")
        if self._busy:
            raise GatewayError(Code.QUEUE_FULL, "Another flush is running; try again later.", retry_after=1)
        self._busy = True
        result, removed, flights = "failed", 0, 0
        try:
            begin = b"" if model is None else model_tag(model)
            flights = self._group.unpublish_all(begin)
            if self._cache is not None:
                removed = await self._removed(self._cache, begin)
            result = "good"
        except asyncio.CancelledError:
            result = "cut short"
            raise
        finally:
            self._busy = False
            self._audit.acted(
                "cache flushed",
                context.caller.name if context.caller is not None else "",
                self._address(context),
                result=result,
                what="all models" if model is None else model[:256],
                removed=removed,
                flights=flights,
            )
        answer = {"object": "cache.flush", "model": model, "removed": removed, "flights": flights}
        return await self._responder.reply(context, 200, answer)

    async def _removed(self, cache: Cache, begin: bytes) -> int:
        try:
            return await cache.flush(begin)
        except (WireError, TimeoutError) as e:
            raise GatewayError(
                Code.CACHE_UNAVAILABLE,
                f"Redis did not remove all answers ({str(e) or type(e).__name__}); send the request again.",
                retry_after=1,
            ) from None


def _model_of(context: RequestContext) -> str | None:
    """The one parameter there is. Raises GatewayError 400."""
    query = parse_qsl(context.request.raw_path.partition("?")[2], keep_blank_values=True)
    unknown = next((name for name, _ in query if name != "model"), None)
    models = [value for _, value in query]
    if unknown is not None or len(models) > 1 or models == [""]:
        raise GatewayError(
            Code.INVALID_VALUE,
            "Name one model (?model=NAME), or leave the parameter out to flush the answers of all models.",
            param="model" if unknown is None else unknown[:64],
        )
    return models[0] if models else None

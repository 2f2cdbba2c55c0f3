"""The short answers that need no Flight: models, health, readiness, metrics, OPTIONS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from proxy.access import PREFLIGHT, AccessPolicy, AccessRules
from proxy.access.ratelimit import Admission
from proxy.config import ModelNames
from proxy.errors import Code, GatewayError
from proxy.server.context import RequestContext
from proxy.server.respond import Sent
from proxy.server.responder import Responder
from proxy.telemetry import Metrics
from proxy.upstream import Backends

ALLOWED: Final = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
"""All methods of all paths, for `OPTIONS *` and for unsupported methods."""

Render = Callable[[Metrics, str], Awaitable[tuple[bytes, str]]]

_NAME_CHARS: Final = 200  # of an unknown model's name, in its error
_METHOD_CHARS: Final = 16  # the same of a method


class StatusHandlers:
    """One method an endpoint."""

    def __init__(
        self,
        backends: Backends,
        metrics: Metrics,
        access_policy: AccessPolicy | None,
        admission: Admission | None,
        responder: Responder,
        rules: AccessRules,
        render: Render | None = None,
        ask_engine: Callable[[RequestContext], Awaitable[Sent]] | None = None,
    ) -> None:
        """`render` makes the /metrics page where other processes count too. `ask_engine` answers for models where
        engines list theirs to the key of a client only."""
        self._render = render
        self._ask_engine = ask_engine
        self._backends = backends
        self._metrics = metrics
        self._access_policy = access_policy
        self._admission = admission
        self._responder = responder
        self._rules = rules

    async def models(self, context: RequestContext) -> Sent:
        if self._ask_engine is not None and not self._backends.models():
            return await self._ask_engine(context)
        if self._admission is not None:
            await self._admission(context)
        return await self._responder.reply(context, 200, {"object": "list", "data": self._visible(context)})

    def _visible(self, context: RequestContext) -> list[dict[str, Any]]:
        if not self._backends.ready:
            raise GatewayError(Code.NO_BACKEND, "No engine is available, so no model is served.", retry_after=1)
        models = self._backends.models()
        models += aliases_in(models, self._rules.names)
        return models if self._access_policy is None else self._access_policy.visible_models(context, models)

    async def model(self, context: RequestContext) -> Sent:
        """One of them: the rest of the path is its id, slashes and all."""
        if self._ask_engine is not None and not self._backends.models():
            return await self._ask_engine(context)
        name = context.request.path.removeprefix("/v1/models/")
        models = self._visible(context)
        entry = next((model for model in models if model.get("id") == name), None)
        if entry is None:
            raise GatewayError(
                Code.MODEL_NOT_FOUND,
                f"The model {name[:_NAME_CHARS]!r} does not exist or you do not have access to it.",
            )
        return await self._responder.reply(context, 200, entry)

    async def health(self, context: RequestContext) -> Sent:
        return await self._responder.reply(context, 200, {"status": "ok"})

    async def ready(self, context: RequestContext) -> Sent:
        if not self._backends.ready:
            raise GatewayError(Code.NO_BACKEND, "No engine is available.", retry_after=1)
        return await self._responder.reply(context, 200, {"status": "ready"})

    def other(self, context: RequestContext, takes: str) -> Callable[[RequestContext], Awaitable[Sent]]:
        """The handler for a method that a path does not accept. Raises GatewayError 405."""
        request = context.request
        context.allows(f"{takes}, HEAD" if takes.startswith("GET") else takes)
        if request.method == "OPTIONS":
            return self.server
        methods = takes.replace(", ", " and ")
        words = f"{request.path} accepts {methods}, not {request.method[:_METHOD_CHARS]}."
        raise GatewayError(Code.METHOD_NOT_ALLOWED, words)

    async def server(self, context: RequestContext) -> Sent:
        """`OPTIONS`: of one path here, or `*`, the server as a whole (RFC 9110 9.3.7)."""
        if context.allow is None:
            context.allows(ALLOWED)
        return await self._responder.send(context, 204, context.headers(), b"")

    async def preflight(self, context: RequestContext) -> Sent:
        """What a page of another origin may send here: `context.cors` says whether it may at all."""
        return await self._responder.send(context, 204, [*context.headers(), *PREFLIGHT], b"")

    async def metrics(self, context: RequestContext) -> Sent:
        accept = context.request.headers.get("accept", "")
        if self._render is not None:
            body, kind = await self._render(self._metrics, accept)
        else:
            body, kind = self._metrics.render(accept)
        return await self._responder.send(
            context, 200, [("content-type", kind), ("x-request-id", context.id)], body
        )


def aliases_in(models: Sequence[dict[str, Any]], names: ModelNames) -> list[dict[str, Any]]:
    """The aliases of these models, each as the first of its models that is served, under its own name."""
    served = {str(model.get("id")): model for model in models}
    found = (
        (alias, next((served[model] for model, _ in shares if model in served), None))
        for alias, shares in names.aliases.items()
    )
    return [{**model, "id": alias} for alias, model in found if model is not None and alias not in served]

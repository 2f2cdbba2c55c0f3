"""`/openapi.json` and `/docs`."""

from __future__ import annotations

import msgspec

from proxy.access import OPEN, OPERATING
from proxy.access.ratelimit import Admission
from proxy.config import Settings
from proxy.server.context import RequestContext
from proxy.server.gateway import Gateway
from proxy.server.openapi.describe import describe
from proxy.server.page.document import document
from proxy.server.respond import Sent


class ApiDocument:
    """The handlers. A user's key is shown no path of operators, as they do not exist for it."""

    def __init__(self, gateway: Gateway, admission: Admission | None, settings: Settings) -> None:
        self._routes = gateway.routes
        self._responder = gateway.responder
        self._admission = admission
        self._keyless = None
        if settings.api_keys_file:
            self._keyless = OPEN - {"metrics"} if settings.metrics_key else OPEN
        self._engines = not settings.deny_answers
        self._made: dict[tuple[bool, bool], bytes] = {}
        self._routes.add_route("/openapi.json", "GET", "openapi", self.description, public=True)
        if settings.page:
            self._shell = document("proxy.server.openapi")
            self._routes.add_route("/docs", "GET", "docs", self.docs, public=True)

    async def description(self, context: RequestContext) -> Sent:
        """Of the listener's paths that this caller may use; made when it is first asked for."""
        if self._admission is not None:
            await self._admission(context)
        caller = context.caller
        which = (context.admin, self._keyless is None or (caller is not None and caller.operator))
        body = self._made.get(which)
        if body is None:
            body = self._made[which] = self._make(*which)
        headers = [("content-type", "application/json"), ("cache-control", "no-cache"), *context.headers()]
        return await self._responder.send(context, 200, headers, body, shared=True)

    def _make(self, admin: bool, operators: bool) -> bytes:
        paths = [route for route in self._routes.offered(admin=admin) if operators or route[2] not in OPERATING]
        return msgspec.json.encode(describe(paths, self._keyless, engines=self._engines and not admin))

    async def docs(self, context: RequestContext) -> Sent:
        headers = [*self._shell.headers, *context.headers()]
        return await self._responder.send(context, 200, headers, self._shell.html, shared=True)

"""Which handler answers a request, by path and method: the API, the operators' paths, and what is passed
through."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from proxy.access import OPERATING, AccessPolicy, is_preflight, not_found
from proxy.errors import Code, GatewayError
from proxy.server import respond
from proxy.server.context import RequestContext
from proxy.server.handlers.relay import STREAMS, asks_for_websocket, is_allowed
from proxy.server.handlers.status import ALLOWED, StatusHandlers

Handler = Callable[[RequestContext], Awaitable[respond.Sent]]
Route = tuple[str, str, Handler]
"""The method that a path takes (or some, as in `Allow`), the endpoint's label, the handler."""


PASSED: Final = {"/v1/messages": "messages", "/v1/responses": "responses"}
"""Endpoints' labels of engine paths; that of all others is `passthrough`."""

_NOWHERE: Final = frozenset(
    (
        "CONNECT",
        "TRACE",
        "PRI",
        "ANNOUNCE",
        "DESCRIBE",
        "FLUSH",
        "GET_PARAMETER",
        "PAUSE",
        "PLAY",
        "RECORD",
        "REDIRECT",
        "SETUP",
        "SET_PARAMETER",
        "SOURCE",
        "TEARDOWN",
    )
)
"""Methods without a resource here: for proxies, and of other protocols that the parser accepts."""


_STREAMS: Final = STREAMS + "/"
STREAM_PATH: Final = _STREAMS + "{stream}"


class Routes:
    """The paths of the public listener and of the operators' one, which is the same where they have none."""

    def __init__(
        self,
        public: dict[str, Route],
        plain: StatusHandlers,
        access_policy: AccessPolicy | None,
        passed: Handler,
        *,
        admin: bool,
        streams: Handler | None = None,
    ) -> None:
        """`passed`: answers engine paths. `admin`: operators have a listener, the only one with their paths.
        `streams`: gives clients the rest of a stream."""
        self._public = public
        self.posted = {
            path: (label, handler) for path, (method, label, handler) in public.items() if method == "POST"
        }
        """Of the public paths that take POST: endpoint and handler. `find` gives the same, in more steps."""
        self._admin = {path: public[path] for path in ("/health", "/ready")} if admin else public
        self._plain = plain
        self._access_policy = access_policy
        self._passed = passed
        self._streams = streams

    def add_route(self, path: str, method: str, endpoint: str, handler: Handler, *, public: bool = False) -> None:
        """Add a path for operators, or (`public`) for all."""
        self._admin[path] = (method, endpoint, handler)
        if public:
            self._public[path] = self._admin[path]

    @property
    def listed(self) -> list[tuple[str, str]]:
        """Every path that is not passed through, and its method."""
        return [(path, method) for path, (method, _, _) in (self._public | self._admin).items()]

    def offered(self, *, admin: bool) -> list[tuple[str, str, str]]:
        """Path, methods and endpoint of what a listener offers; a path comes twice where its methods differ."""
        table = self._admin if admin else self._public
        routes = [(path, method, endpoint) for path, (method, endpoint, _) in table.items()]
        if not admin and self._streams is not None:
            routes += [(STREAM_PATH, method, "streams") for method in ("GET", "DELETE")]
        return routes

    def find(self, context: RequestContext) -> Handler:
        """The handler; `context` has its endpoint then. Raises GatewayError 404, 405 or 501."""
        request = context.request
        path, method = request.path, request.method
        if method in _NOWHERE:
            context.allows(ALLOWED)
            raise GatewayError(Code.METHOD_NOT_ALLOWED, f"{method} is not supported.")
        if method == "GET" and asks_for_websocket(request.headers):
            raise GatewayError(
                Code.UPGRADE_NOT_SUPPORTED, "WebSockets are not supported: answers stream over HTTP."
            )
        route = (self._admin if context.admin else self._public).get(path)
        if route is None and path.startswith("/v1/models/") and not context.admin:
            route = ("GET", "models", self._plain.model)
        if route is None and path.startswith(_STREAMS) and self._streams is not None and not context.admin:
            route = ("GET, DELETE", "streams", self._streams)
        if is_preflight(method, request.headers) and (route is None or route[1] not in OPERATING):
            context.routed("preflight")
            return self._plain.preflight
        if route is None:
            if path == "*":
                context.routed("server")
                return self._plain.server
            if context.admin or not is_allowed(path):
                raise not_found(path)
            context.routed(PASSED.get(path, "passthrough"))
            return self._passed
        takes, endpoint, handler = route
        context.routed(endpoint)
        if method == takes or method in (f"{takes}, HEAD" if takes[:3] == "GET" else takes).split(", "):
            return handler
        if self._access_policy is not None and context.endpoint in OPERATING:
            self._access_policy.authenticate(context)  # only an operator may learn which methods exist
        return self._plain.other(context, takes)

"""The entry of every request: host, route, authentication, deadline, its handler, and its end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from enum import Enum
from typing import Final

from proxy.access import (
    OPEN,
    OPERATING,
    AccessPolicy,
    AccessRules,
    Authenticator,
    CorsHeaders,
    Hosts,
    Origins,
    PriorityPolicy,
    TrustedProxies,
    caller_for_address,
    parse_request_timeout,
)
from proxy.access.ratelimit import Admission
from proxy.config import NORMAL, Settings
from proxy.errors import shutting_down
from proxy.flights import Flight, FlightGroup, Keyer, Memory, Scheduler
from proxy.flights.embeddings import Embedder
from proxy.flights.resuming import Streams
from proxy.redis import ResponseAffinity
from proxy.server.body import BodyReader
from proxy.server.context import RequestContext, request_id
from proxy.server.deadline import run_with_deadline
from proxy.server.handlers.embed import EmbedHandler
from proxy.server.handlers.generation import Affinity, Generation
from proxy.server.handlers.passthrough import PassThrough
from proxy.server.handlers.responses import ResponseEngines
from proxy.server.handlers.standby import Standby
from proxy.server.handlers.status import Render, StatusHandlers
from proxy.server.handlers.streams import Resumption, StreamHandler
from proxy.server.listener.request import Request
from proxy.server.offload.large import LargeRequests
from proxy.server.outcome import Outcomes, RecordedOutcomes
from proxy.server.respond import Sent
from proxy.server.responder import Responder
from proxy.server.routes import PASSED, Handler, Route, Routes
from proxy.server.tracing import Tracing
from proxy.telemetry import Fault, Log, Metrics, Recording, raised
from proxy.upstream import Backends, HealthChecks
from proxy.wire import PATHS
from proxy.wire.fold import Unfoldable

ENGINES: Final = frozenset({"passthrough", *PASSED.values()})
"""Endpoints that an engine answers, whatever is sent: no page of another origin may lead there."""


class Stage(Enum):
    """Which requests the gateway answers. `Drain` moves it forward."""

    ACCEPTING = "accepting"
    NOT_READY = "not ready"  # all but /ready: a load balancer sends requests until it has noticed
    DRAINING = "draining"  # /health and /metrics only


_ACCEPTING: Final = Stage.ACCEPTING  # a global is cheaper to look up than a member of a class


class Gateway:
    """Routes requests to handlers, and sees each of them to its end. Has no state but its stage."""

    def __init__(
        self,
        *,
        settings: Settings,
        group: FlightGroup,
        scheduler: Scheduler,
        backends: Backends,
        keyer: Keyer,
        metrics: Metrics,
        log: Log,
        affinity: Affinity | None = None,
        admission: Admission | None = None,
        access_policy: AccessPolicy | None = None,
        priority_policy: PriorityPolicy | None = None,
        embedder: Embedder | None = None,
        tracing: Tracing | None = None,
        fault: Fault = raised,
        memory: Memory | None = None,
        large: LargeRequests | None = None,
        response_affinity: ResponseAffinity | None = None,
        origins: Origins | None = None,
        hosts: Hosts | None = None,
        admin_hosts: Hosts | None = None,
        unfolded: Callable[[Flight, Unfoldable], None] = lambda flight, why: None,
        recording: Recording | None = None,
        render: Render | None = None,
        rules: AccessRules | None = None,
        health_checks: HealthChecks | None = None,
        streams: Streams | None = None,
    ) -> None:
        """`unfolded` is called with a stream that did not fold although readers had waited for its fold; `render`
        makes the /metrics page where other processes count too."""
        anywhere = Hosts("", ("*",))
        priority_policy = priority_policy or PriorityPolicy(NORMAL, lambda request: "")
        rules = rules or AccessRules(Authenticator(None, TrustedProxies(())))
        standby = Standby(settings, rules, backends, health_checks or HealthChecks(backends), metrics, log)
        self._stage = Stage.ACCEPTING
        self._hosts, self._admin_hosts = hosts or anywhere, admin_hosts or anywhere
        self._scheduler = scheduler
        self._access_policy = access_policy
        self._origins = origins or Origins()
        self._cors = self._origins.headers if self._origins else None
        self.tracing = tracing
        self.large = large
        shown = settings.log_prompts
        self.outcomes = (
            Outcomes(metrics, log, priority_policy, fault, show_prompt=shown)
            if recording is None
            else RecordedOutcomes(metrics, log, priority_policy, fault, recording, show_prompt=shown)
        )
        self.responder = responder = Responder(settings, priority_policy, memory, large)
        self.bodies = bodies = BodyReader(settings, memory, admission, priority_policy)
        passthrough = PassThrough(
            settings,
            bodies=bodies,
            responder=responder,
            group=group,
            scheduler=scheduler,
            priority_policy=priority_policy,
            access_policy=access_policy,
            admission=admission,
            large=large,
            responses=None
            if response_affinity is None
            else ResponseEngines(
                response_affinity, backends, lambda request: caller_for_address(rules.identity.address(request))
            ),
            rules=rules,
            backends=backends,
            standby=standby,
        )
        self.generation = generation = Generation(
            settings,
            bodies=bodies,
            responder=responder,
            passthrough=passthrough,
            group=group,
            scheduler=scheduler,
            keyer=keyer,
            metrics=metrics,
            priority_policy=priority_policy,
            access_policy=access_policy,
            admission=admission,
            affinity=affinity,
            embedder=embedder,
            large=large,
            unfolded=unfolded,
            rules=rules,
            backends=backends,
            standby=standby,
            resumption=None if streams is None else Resumption(streams, responder, priority_policy),
        )
        resume = (
            None
            if streams is None
            else StreamHandler(
                streams,
                responder,
                admission=admission,
                access_policy=access_policy,
                priority_policy=priority_policy,
                remake=generation.remake,
            )
        )
        # A key of the gateway's may be for some models only, which the engine does not know.
        asks = settings.forward_authorization and rules.identity.ring is None
        status = StatusHandlers(
            backends, metrics, access_policy, admission, responder, rules, render, passthrough if asks else None
        )
        handlers = {endpoint: generation.handler(endpoint) for endpoint in PATHS}
        public: dict[str, Route] = {
            **{path: ("POST", endpoint, handlers[endpoint]) for endpoint, path in PATHS.items()},
            "/chat": ("POST", "chat", handlers["chat"]),
            "/embed": ("POST", "embeddings", EmbedHandler(settings, bodies, generation, admission, responder)),
            "/v1/models": ("GET", "models", status.models),
            "/health": ("GET", "health", status.health),
            "/ping": ("GET, POST", "health", status.health),
            "/ready": ("GET", "ready", status.ready),
        }
        self.routes = Routes(
            public, status, access_policy, passthrough, admin=settings.admin_port != 0, streams=resume
        )
        self.routes.add_route("/metrics", "GET", "metrics", status.metrics)

    def enter(self, stage: Stage) -> None:
        """Answer fewer requests from now on."""
        self._stage = stage

    async def handle(self, request: Request, admin: bool = False) -> bool:
        """Answer one request, count it and log it. True: the connection may be kept. `admin`: it came through the
        operators' listener."""
        headers = None if request.plain else request.headers
        given = None if headers is None else headers.get("x-request-id")
        name = os.urandom(16).hex() if given is None else request_id(given)
        route: tuple[str, Handler | None] = ("unknown", None)
        if not admin and request.method == "POST" and request.host in self._hosts.known:  # nearly every request
            route = self.routes.posted.get(request.path, route)
        endpoint, handler = route
        cors: CorsHeaders = ()
        if self._cors is not None and not admin:
            cors = self._cors(None if headers is None else headers.get("origin"))
        context = RequestContext(request, name, endpoint, named=name is given, admin=admin, cors=cors)
        sent: Sent | None = None
        try:
            try:
                if handler is None:
                    handler = self._find(context)
                if self._stage is not _ACCEPTING:
                    self._check_stage(context.endpoint)
                if self.tracing is not None:
                    self.tracing.begin(context)
                if self._access_policy is not None:
                    self._access_policy.authenticate(context)
                timeout = None
                if headers is not None:
                    if context.caller is None and ("sec-fetch-site" in headers or "origin" in headers):
                        endpoint = context.endpoint
                        listed = not admin and endpoint not in OPERATING
                        self._origins.check(headers, request.method, opens=endpoint not in ENGINES, listed=listed)
                    timeout = headers.get("x-request-timeout")
                if timeout is None:
                    sent = await handler(context)
                else:
                    seconds = parse_request_timeout(timeout)
                    context.within(seconds)
                    sent = await run_with_deadline(context, handler, seconds, self._scheduler.metrics.missed)
            except asyncio.CancelledError:
                if context.ending is None:
                    raise
                sent = await self.responder.end_early(context, context.ending)
            except Exception as e:  # noqa: BLE001 - the border of one request: its client gets an error
                sent = await self.responder.refuse(context, self.outcomes.error_of(context, e))
        except (asyncio.CancelledError, ConnectionError):
            self.outcomes.disconnected(context)
            raise
        finally:
            self.outcomes.finish(context, sent.bytes if sent is not None else 0)
        return sent.keep_alive

    def _find(self, context: RequestContext) -> Handler:
        """The handler of a request. Raises GatewayError 404, 405, 421 or 501."""
        request = context.request
        hosts = self._admin_hosts if context.admin else self._hosts
        if request.host not in hosts.known:
            hosts.check(request.host, brought=getattr(request.protocol, "source", ""))
        return self.routes.find(context)

    def _check_stage(self, endpoint: str) -> None:
        """Raises GatewayError 503 for an endpoint that is not answered any more."""
        draining = self._stage is Stage.DRAINING
        if endpoint == "ready" or (draining and endpoint not in OPEN):
            raise shutting_down(retry_after=1)

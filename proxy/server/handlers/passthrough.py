"""Every other path of vLLM: the body is checked and charged, then a Flight with one reader relays the bytes."""

from __future__ import annotations

from proxy.access import AccessPolicy, PriorityPolicy
from proxy.access.ratelimit import Admission
from proxy.config import Settings
from proxy.errors import GatewayError
from proxy.flights import FlightGroup, FlightSpec, Mode, QueueState, Scheduler, estimate_raw
from proxy.server.body import BodyReader
from proxy.server.context import RequestContext
from proxy.server.handlers.relay import end_to_end_headers
from proxy.server.handlers.responses import ResponseEngines
from proxy.server.offload.large import LargeRequests
from proxy.server.respond import Sent
from proxy.server.responder import Responder
from proxy.upstream import raw_affinity, session_of
from proxy.wire import read_passed, takes_json_only
from proxy.wire.event_apis import EVENT_APIS, RESPONSES, EventApi
from proxy.wire.http import Media, media_of


class PassThrough:
    """The handler. One for a gateway."""

    def __init__(
        self,
        settings: Settings,
        *,
        bodies: BodyReader,
        responder: Responder,
        group: FlightGroup,
        scheduler: Scheduler,
        priority_policy: PriorityPolicy,
        access_policy: AccessPolicy | None,
        admission: Admission | None,
        large: LargeRequests | None,
        responses: ResponseEngines | None,
    ) -> None:
        self._settings = settings
        self._bodies = bodies
        self._responder = responder
        self._group = group
        self._scheduler = scheduler
        self._priority_policy = priority_policy
        self._access_policy = access_policy
        self._admission = admission
        self._large = large
        self._responses = responses

    async def __call__(self, context: RequestContext) -> Sent:
        body = await self.read(context)
        request = context.request
        event_api = EVENT_APIS.get(request.path) if request.method == "POST" else None
        engine = await self._responses.find(context) if self._responses is not None else None
        return await self.forward(context, request.raw_path, body, event_api, engine)

    async def forward(
        self,
        context: RequestContext,
        path: str,
        body: bytes,
        event_api: EventApi | None = None,
        engine: str | None = None,
    ) -> Sent:
        """Relay a request that is admitted. It shares nothing. `event_api`: its answer is of this API; `engine`:
        the only one that may answer. Raises GatewayError."""
        request = context.request
        mode = Mode.RAW if event_api is None else Mode.STREAM if context.stream else Mode.WHOLE
        spec = FlightSpec(
            method=request.method,
            path=path,
            body=body,
            mode=mode,
            request_id=context.id,
            headers=(
                *end_to_end_headers(request.raw_headers, authorization=self._settings.forward_authorization),
                ("X-Request-Id", context.id),
            ),
            model=context.model,
            cost=context.cost,
            affinity=context.raw.affinity,
            event_api=event_api,
            engine=engine,
        )
        priority, owner = self._priority_policy.turn(context.caller, request)
        queue_state = QueueState(
            owner=owner,
            priority=priority,
            deadline=context.deadline,
            latest=context.deadline,
        )
        flight = self._group.launch(spec, queue_state)
        try:
            if event_api is RESPONSES and self._responses is not None:
                flight.when_named(self._responses.keeper(context))
            reader = self._group.attach(flight, usage=True, whole=mode is Mode.WHOLE, owner=owner)
            context.attach_reader(reader)
            self._scheduler.submit(flight)
        except GatewayError:
            raise
        except Exception:
            self._scheduler.abandon(flight)
            raise
        if mode is Mode.WHOLE:
            return await self._responder.body(context, reader)
        return await self._responder.stream(context, reader)

    async def read(self, context: RequestContext) -> bytes:
        """The body as it is sent to the engine. Sets the context's model and cost. Raises GatewayError."""
        request = context.request
        media = None
        if request.body_exists:
            media = media_of(request.headers, json_only=takes_json_only(request.path))
        upload = media is not None and media.kind == "form"
        limit = self._settings.max_upload_bytes if upload else 0
        body = await self._bodies.read(context, json=False, limit=limit)
        if media is not None and self._offloaded(media, body):
            assert self._large is not None
            body = await self._large.raw(context, media, body)
            if self._admission is not None:
                await self._admission(context)
            return body
        passed = read_passed(media, body)
        affinity = 0
        if request.path in EVENT_APIS:
            affinity = raw_affinity(self._settings.routing, passed, session_of(request.headers))
        context.describe_raw(passed.model, passed.facts(affinity))
        if self._access_policy is not None:
            passed = self._access_policy.check_raw(context, passed)
        context.price(estimate_raw(request.path, passed, self._settings.rate_limit_assumed_tokens))
        if self._admission is not None:
            await self._admission(context, passed)
        return passed.body

    def _offloaded(self, media: Media, body: bytes) -> bool:
        """Whether the body is too large to be read on the event loop."""
        large = self._large
        return media.kind != "other" and large is not None and len(body) > large.inline and large.heavy(body)

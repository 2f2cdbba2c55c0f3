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
from proxy.server.offload.large import LargeRequests
from proxy.server.respond import Sent
from proxy.server.responder import Responder
from proxy.wire import read_passed, takes_json_only
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

    async def __call__(self, context: RequestContext) -> Sent:
        body = await self.read(context)
        return await self.forward(context, context.request.raw_path, body)

    async def forward(self, context: RequestContext, path: str, body: bytes) -> Sent:
        """Relay a request that is admitted. It shares nothing. Raises GatewayError."""
        request = context.request
        spec = FlightSpec(
            method=request.method,
            path=path,
            body=body,
            mode=Mode.RAW,
            request_id=context.id,
            headers=(
                *end_to_end_headers(request.raw_headers, authorization=self._settings.forward_authorization),
                ("X-Request-Id", context.id),
            ),
            model=context.model,
            cost=context.cost,
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
            reader = self._group.attach(flight, usage=True, whole=False, owner=owner)
            context.attach_reader(reader)
            self._scheduler.submit(flight)
        except GatewayError:
            raise
        except Exception:
            self._scheduler.abandon(flight)
            raise
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
        context.describe(passed.model)
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

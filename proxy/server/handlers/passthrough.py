"""Every other path of vLLM: the body is checked and charged, then a Flight with one reader relays the bytes."""

from __future__ import annotations

from typing import NamedTuple

from proxy.access import AccessPolicy, AccessRules, PriorityPolicy, resolve_raw, scope_of
from proxy.access.ratelimit import Admission
from proxy.config import Settings
from proxy.errors import GatewayError
from proxy.flights import FlightGroup, FlightSpec, Mode, QueueState, Scheduler, Subscriber, estimate_raw
from proxy.server.body import BodyReader
from proxy.server.context import RequestContext
from proxy.server.handlers.relay import end_to_end_headers, session_of
from proxy.server.handlers.standby import Standby
from proxy.server.offload.large import LargeRequests
from proxy.server.respond import Sent
from proxy.server.responder import Responder
from proxy.upstream import Backends
from proxy.wire import read_passed, takes_json_only
from proxy.wire.http import Media, media_of


class Checked(NamedTuple):
    """A body as it is sent, and what is known of it."""

    body: bytes
    media: Media | None = None
    salt: str = ""  # the `cache_salt` that it is sent with; empty: none


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
        rules: AccessRules,
        backends: Backends,
        standby: Standby,
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
        self._rules = rules
        self._backends = backends
        self._standby = standby
        self._scope = scope_of(access_policy)

    async def __call__(self, context: RequestContext) -> Sent:
        checked = await self.read(context)
        path, model = context.request.raw_path, context.model
        reader = self._launch(context, path, checked.body, checked.salt)
        if model in self._rules.names.standbys or model not in self._backends.listed:

            async def again(model: str) -> Subscriber:
                return self._launch(context, path, await self._body_for(context, checked, model), checked.salt)

            reader, _ = await self._standby.settle(context, reader, again)
        return await self._responder.stream(context, reader)

    async def forward(self, context: RequestContext, path: str, body: bytes, salt: str = "") -> Sent:
        """Relay a request that is admitted. It shares nothing. `salt`: the `cache_salt` that it is sent with.
        Raises GatewayError."""
        return await self._responder.stream(context, self._launch(context, path, body, salt))

    def _launch(self, context: RequestContext, path: str, body: bytes, salt: str) -> Subscriber:
        """The reader of a new Flight."""
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
            salt=salt,
            falls_back=context.model in self._rules.names.standbys,
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
        return reader

    async def _body_for(self, context: RequestContext, checked: Checked, model: str) -> bytes:
        """The body for another model."""
        media, body = checked.media, checked.body
        if media is None or media.kind == "other":
            return body
        if self._large is not None and self._offloaded(media, body):
            return await self._large.raw_for(context, media, body, model)
        return read_passed(media, body).with_model(model).body

    async def read(self, context: RequestContext) -> Checked:
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
            body, own, takes_salt = await self._large.raw(context, media, body)
            if self._admission is not None:
                await self._admission(context)
            return Checked(body, media, self._salt(context, own) if takes_salt else "")
        passed = read_passed(media, body)
        context.describe(passed.model)
        if self._access_policy is not None:
            passed = self._access_policy.check_raw(context, passed)
        context.price(estimate_raw(request.path, passed, self._settings.rate_limit_assumed_tokens))
        if self._admission is not None:
            await self._admission(context, passed)
        if passed.model in self._rules.names.aliases:
            passed = resolve_raw(self._rules.names, passed, session_of(request.headers))
            context.answered_by(passed.model or "")
        salt = ""
        if self._rules.salt and passed.takes_salt(request.path):
            passed, own = passed.without_salt()
            salt = self._salt(context, own)
        return Checked(passed.body, media, salt)

    def _salt(self, context: RequestContext, own: str | None) -> str:
        """The `cache_salt` of a request. `own`: the client's."""
        return self._rules.cache_salt(self._scope(context), own) if self._rules.salt else ""

    def _offloaded(self, media: Media, body: bytes) -> bool:
        """Whether the body is too large to be read on the event loop."""
        large = self._large
        return media.kind != "other" and large is not None and len(body) > large.inline and large.heavy(body)

"""Every other path of vLLM: the body is checked and charged, then a Flight with one reader relays the bytes."""

from __future__ import annotations

from typing import NamedTuple

from proxy.access import AccessPolicy, AccessRules, PriorityPolicy, resolve_raw, scope_of
from proxy.access.ratelimit import Admission
from proxy.config import Settings
from proxy.errors import GatewayError
from proxy.flights import (
    REQUEST_ID,
    FlightGroup,
    FlightSpec,
    Mode,
    QueueState,
    Scheduler,
    Subscriber,
    estimate_raw,
)
from proxy.server.body import BodyReader
from proxy.server.context import RequestContext
from proxy.server.handlers.relay import end_to_end_headers
from proxy.server.handlers.responses import ResponseEngines
from proxy.server.handlers.standby import Standby
from proxy.server.offload.large import LargeRequests
from proxy.server.respond import Sent
from proxy.server.responder import Responder
from proxy.upstream import Backends, raw_affinity, session_of
from proxy.wire import read_passed, takes_json_only
from proxy.wire.event_apis import EVENT_APIS, RESPONSES, EventApi
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
        responses: ResponseEngines | None,
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
        self._responses = responses
        self._rules = rules
        self._backends = backends
        self._standby = standby
        self._scope = scope_of(access_policy)

    async def __call__(self, context: RequestContext, body: bytes | None = None) -> Sent:
        """`body`: the request's, where it has been read already. Raises GatewayError."""
        checked = await self.read(context, body)
        request = context.request
        path = request.raw_path
        event_api = EVENT_APIS.get(request.path) if request.method == "POST" else None
        engine = await self._responses.find(context) if self._responses is not None else None
        if engine is not None:
            checked = await self._named_there(context, checked, engine)

        def launch(body: bytes) -> Subscriber:
            return self._launch(context, path, body, checked.salt, event_api, engine)

        async def again(model: str) -> Subscriber:
            return launch(await self._body_for(context, checked, model))

        reader, late, model = launch(checked.body), False, context.model
        if engine is None and (model in self._rules.names.standbys or model not in self._backends.listed):
            reader, late = await self._standby.settle(context, reader, again)
        if reader.flight.spec.mode is Mode.WHOLE:
            return await self._responder.body(context, reader)
        return await self._responder.stream(context, reader, late=late)

    async def forward(self, context: RequestContext, path: str, body: bytes, salt: str = "") -> Sent:
        """Relay a request that is admitted. It shares nothing. `salt`: the `cache_salt` that it is sent with.
        Raises GatewayError."""
        return await self._responder.stream(context, self._launch(context, path, body, salt))

    async def _named_there(self, context: RequestContext, checked: Checked, engine: str) -> Checked:
        """The request for a model of the one engine that may answer: its client's name may have several models,
        and a fallback may have begun the conversation."""
        backend, names = self._backends.named(engine), self._rules.names
        if backend is None or context.model is None or context.model in backend.served:
            return checked
        shares = [model for model, _ in names.aliases.get(context.asked_model or "", ())]
        standbys = names.standbys.get(context.model, ())
        for model in (*shares, *standbys):
            if model in backend.served:
                body = await self._body_for(context, checked, model)
                if model in shares:
                    context.answered_by(model)
                else:
                    context.falls_back(model)
                return checked._replace(body=body)
        return checked

    def _launch(
        self,
        context: RequestContext,
        path: str,
        body: bytes,
        salt: str,
        event_api: EventApi | None = None,
        engine: str | None = None,
    ) -> Subscriber:
        """The reader of a new Flight. `event_api`: its answer is of this API; `engine`: the only one that may
        answer."""
        request = context.request
        mode = Mode.RAW if event_api is None else Mode.STREAM if context.stream else Mode.WHOLE
        spec = FlightSpec(
            method=request.method,
            path=path,
            body=body,
            mode=mode,
            request_id=context.id,
            headers=(
                *end_to_end_headers(
                    request.raw_headers,
                    authorization=self._settings.forward_authorization,
                    encoded=event_api is None,
                ),
                # An engine takes the id in a header before one in the body.
                *(() if context.raw.names_itself and not context.named else ((REQUEST_ID, context.id),)),
            ),
            model=context.model,
            cost=context.cost,
            affinity=context.raw.affinity,
            event_api=event_api,
            engine=engine,
            salt=salt,
            falls_back=engine is None and context.model in self._rules.names.standbys,
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
        return reader

    async def _body_for(self, context: RequestContext, checked: Checked, model: str) -> bytes:
        """The body for another model."""
        media, body = checked.media, checked.body
        if media is None or media.kind == "other":
            return body
        if self._large is not None and self._offloaded(media, body):
            return await self._large.raw_for(context, media, body, model)
        return read_passed(media, body).with_model(model).body

    async def read(self, context: RequestContext, body: bytes | None = None) -> Checked:
        """The body as it is sent to the engine. Sets the context's model and cost. `body`: the client's, where it
        has been read already. Raises GatewayError."""
        request = context.request
        media = None
        if request.body_exists:
            media = media_of(request.headers, json_only=takes_json_only(request.path))
        upload = media is not None and media.kind == "form"
        limit = self._settings.max_upload_bytes if upload else 0
        if body is None:
            body = await self._bodies.read(context, json=False, limit=limit)
        if media is not None and self._offloaded(media, body):
            assert self._large is not None
            body, own, takes_salt = await self._large.raw(context, media, body)
            if self._admission is not None:
                await self._admission(context)
            return Checked(body, media, self._salt(context, own) if takes_salt else "")
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

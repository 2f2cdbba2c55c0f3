"""The generating endpoints: decode a request, check it, admit it, attach it to a Flight, answer from that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from proxy.access import AccessPolicy, AccessRules, PriorityPolicy, resolve, scope_of
from proxy.access.ratelimit import Admission
from proxy.config import Settings
from proxy.errors import Code, GatewayError
from proxy.flights import (
    REQUEST_ID,
    Flight,
    FlightGroup,
    FlightSpec,
    Keyer,
    Mode,
    Phase,
    QueueState,
    Scheduler,
    Sharing,
    Subscriber,
    headers_in_common,
    new_id,
    sharing_of,
)
from proxy.flights.embeddings import Embedder
from proxy.flights.resuming import Record, Request
from proxy.server.body import BodyReader, body_if_buffered
from proxy.server.context import RequestContext, request_id
from proxy.server.handlers.passthrough import PassThrough
from proxy.server.handlers.relay import engine_headers, passed_on
from proxy.server.handlers.standby import Standby
from proxy.server.handlers.streams import RESUME, Resumption
from proxy.server.offload.large import LargeRequests
from proxy.server.respond import Sent
from proxy.server.responder import Responder
from proxy.server.routes import Handler
from proxy.telemetry import Metrics
from proxy.upstream import Backends, session_of
from proxy.wire import (
    PATHS,
    ApiRequest,
    Endpoint,
    decode,
    embeds_bytes,
    embeds_chat,
    outgrows,
    refers,
    renamed,
    without_salt,
)
from proxy.wire.fold import Unfoldable, foldable

_STREAM: Final = Mode.STREAM  # a global is cheaper to look up than a member of a class
_WHOLE: Final = Mode.WHOLE

Affinity = Callable[[ApiRequest, Mapping[str, str]], int]


class Generation:
    """Chat, completions and embeddings. `/embed` and the page use its steps `read`, `join` and `attach`."""

    def __init__(
        self,
        settings: Settings,
        *,
        bodies: BodyReader,
        responder: Responder,
        passthrough: PassThrough,
        group: FlightGroup,
        scheduler: Scheduler,
        keyer: Keyer,
        metrics: Metrics,
        priority_policy: PriorityPolicy,
        access_policy: AccessPolicy | None,
        admission: Admission | None,
        affinity: Affinity | None,
        embedder: Embedder | None,
        large: LargeRequests | None,
        unfolded: Callable[[Flight, Unfoldable], None],
        rules: AccessRules,
        backends: Backends,
        standby: Standby,
        resumption: Resumption | None,
    ) -> None:
        """`unfolded` is called with a stream that did not fold although readers had waited for its fold."""
        self._settings = settings
        self._bodies = bodies
        self._responder = responder
        self._passthrough = passthrough
        self._group = group
        self._scheduler = scheduler
        self._keyer = keyer
        self._metrics = metrics
        self._priority_policy = priority_policy
        self._access_policy = access_policy
        self._admission = admission
        self._affinity = affinity
        self._embedder = embedder
        self._large = large
        self._unfolded = unfolded
        self._rules = rules
        self._backends = backends
        self._standby = standby
        self._resumption = resumption
        self._passed_on = passed_on(settings)
        self._forwards = settings.forward_authorization  # a header that a plain request may have
        self._scope = scope_of(access_policy)

    def handler(self, endpoint: Endpoint) -> Handler:
        """The handler of one endpoint, whichever path it is reached by."""

        async def handle(context: RequestContext) -> Sent:
            wish = None
            request = context.request
            if self._resumption is not None and not request.plain and RESUME in request.headers:
                wish = self._resumption.wish(context)
            body = body_if_buffered(request, self._settings, json=True, most=self._bodies.free)
            if body is None:
                body = await self._bodies.receive(context)
            if endpoint == "embeddings" and b'"messages"' in body and await self._embeds_chat(context, body):
                return await self._passthrough(context, body)
            large = self._large
            if large is not None and len(body) > large.inline:
                api_request = await self.read(context, endpoint, body)
            else:
                api_request = self._decode(context, endpoint, body)
            if "prompt_logprobs" in api_request.fields and outgrows(api_request, self._settings.max_flight_bytes):
                if self._settings.deny_answers:
                    raise _unchecked(api_request)
                return await self.forward(context, api_request)
            if "encoding_format" in api_request.fields and endpoint == "embeddings" and embeds_bytes(api_request):
                return await self.forward(context, api_request)
            if self._admission is None:
                default = self._settings.share
                share = sharing_of(api_request, default) if request.plain else self.sharing(context, api_request)
                reader, late = self.attach(context, api_request, share), False  # a coroutine less
            else:
                reader, late = await self.join(context, api_request), False
            model = api_request.model
            if model in self._rules.names.standbys or model not in self._backends.listed:
                reader, late = await self.settle(context, body, reader)
            if context.stream and endpoint != "embeddings":
                if wish is not None and self._resumption is not None:
                    generation = self._again(context)
                    return await self._resumption.stream(context, reader, wish, generation, late=late)
                return await self._responder.stream(context, reader, late=late)
            while not reader.flight.ended and reader.flight.folds:
                await reader.changed()
            if reader.flight.folds:
                try:
                    return await self._responder.body(context, reader)
                except Unfoldable as e:
                    self._unfolded(reader.flight, e)
            # Only the engine can make one body of this stream. Nothing has been sent: the engine is asked for the
            # body, once for all readers that waited.
            assert context.api_request is not None  # it led to this stream
            fresh = await self.join(context, context.api_request, admitted=True, fold=False)
            reader.leave()
            return await self._responder.body(context, fresh)

        return handle

    async def _embeds_chat(self, context: RequestContext, body: bytes) -> bool:
        """Whether it has messages and no input; by another process where it is large. Raises GatewayError."""
        large = self._large
        if large is not None and len(body) > large.inline and large.heavy(body):
            return await large.embeds_chat(context, body)
        return embeds_chat(body)

    def _again(self, context: RequestContext) -> Request:
        """What another gateway needs to generate this answer again; its body only where it would be the same."""
        api_request = context.api_request
        assert api_request is not None  # it has a reader
        body = b""
        if api_request.large is None and sharing_of(api_request, "auto").shared:
            sent = engine_headers(context.request.headers, self._passed_on)
            if not headers_in_common(sent):  # a header may be a secret, which does not go to Redis
                body = api_request.body
        return Request(api_request.endpoint, api_request.model, context.asked_model or context.model, body)

    def remake(self, context: RequestContext, record: Record) -> FlightSpec:
        """The spec of a Flight for a stream that another gateway generates."""
        request, api_request, salt = record.request, None, ""
        if request.body:
            try:
                decoded = decode(request.endpoint, request.body)
                if self._access_policy is None or self._access_policy.may_repeat(decoded):
                    api_request, salt, _ = self._salted(context, decoded)
            except GatewayError:
                pass  # of another version, or under other limits: the stream is read, and not continued
        name = new_id()
        if api_request is not None and "request_id" in api_request.fields:
            name = _own_id(api_request) or name
        return FlightSpec(
            method="POST",
            path=PATHS[request.endpoint],
            body=b"" if api_request is None else api_request.body,
            mode=Mode.STREAM,
            request_id=name,
            headers=[("Content-Type", "application/json"), (REQUEST_ID, name)],
            api_request=api_request,
            model=request.model,
            storable=False,
            usage_added=record.usage_added,
            salt=salt,
        )

    async def read(self, context: RequestContext, endpoint: Endpoint, body: bytes) -> ApiRequest:
        """Steps 1 and 2: the request, decoded and checked; in another process where it is large. Raises
        GatewayError."""
        large = self._large
        if large is not None and len(body) > large.inline and large.heavy(body):
            return await large.read(context, endpoint, body)
        return self._decode(context, endpoint, body)

    async def settle(self, context: RequestContext, body: bytes, reader: Subscriber) -> tuple[Subscriber, bool]:
        """`Standby.settle` for a request of this client's body."""

        async def again(model: str) -> Subscriber:
            api_request = context.api_request
            assert api_request is not None  # it led to this reader
            if api_request.large is not None and self._large is not None:
                api_request = await self._large.read(context, api_request.endpoint, body, model)
            elif api_request.model != model:
                api_request = renamed(api_request, model)
                context.accept(api_request)
            return await self.join(context, api_request, admitted=True)

        return await self._standby.settle(context, reader, again)

    async def forward(self, context: RequestContext, api_request: ApiRequest) -> Sent:
        """A request that shares nothing: its answer is too large to be held, or no JSON. Raises GatewayError."""
        if self._admission is not None:
            await self._admission(context)
        sent, salt, _ = self._salted(context, api_request)
        return await self._passthrough.forward(context, PATHS[api_request.endpoint], sent.body, salt)

    async def join(
        self, context: RequestContext, api_request: ApiRequest, *, admitted: bool = False, fold: bool = True
    ) -> Subscriber:
        """Steps 3 to 5: rate limits, key, Flight. `admitted`: it has passed the rate limits. `fold`: see `attach`.
        Raises GatewayError."""
        share = self.sharing(context, api_request)
        if self._admission is not None and not admitted:
            await self._admission(context)
        return self.attach(context, api_request, share, fold=fold)

    def sharing(self, context: RequestContext, api_request: ApiRequest) -> Sharing:
        """What the request may share. Raises GatewayError 400."""
        headers = context.request.headers
        # Lines of one name are one list (RFC 9110, 5.3).
        cache_control = ", ".join(headers.getall("cache-control", ()))
        override = ", ".join(headers.getall("x-gateway-share", ()))
        return sharing_of(api_request, self._settings.share, cache_control=cache_control, override=override)

    def _decode(self, context: RequestContext, endpoint: Endpoint, body: bytes) -> ApiRequest:
        api_request = decode(endpoint, body)
        if self._access_policy is not None:
            context.describe(api_request.model, stream=api_request.stream)
            api_request = self._access_policy.check(context, api_request)
        names = self._rules.names
        if api_request.model in names.aliases:
            context.describe(api_request.model)
            api_request = resolve(names, api_request, session_of(context.request.headers))
            context.answered_by(api_request.model or "")
        context.accept(api_request)
        return api_request

    def _salted(self, context: RequestContext, api_request: ApiRequest) -> tuple[ApiRequest, str, bytes]:
        """The request without a `cache_salt` of the client's, the one that it is sent with (empty: none), and the
        scope of its inputs: a client's own salt divides its tenant's."""
        scope = self._scope(context)
        if not self._rules.salt:
            return api_request, "", scope
        if api_request.large is not None:
            own = api_request.large.salt
        else:
            api_request, own = without_salt(api_request)
        salt = self._rules.cache_salt(scope, own)
        return api_request, salt, scope if own is None else salt.encode()

    def attach(
        self, context: RequestContext, api_request: ApiRequest, share: Sharing, *, fold: bool = True
    ) -> Subscriber:
        """Steps 4 and 5: a reader of a Flight that is under way, or of a new one. `fold`: a request for one body
        may read a stream. Raises GatewayError."""
        streamed = api_request.stream and api_request.endpoint != "embeddings"
        request = context.request
        priority, owner = self._priority_policy.turn(context.caller, request)
        sent = () if request.plain and not self._forwards else engine_headers(request.headers, self._passed_on)
        key, storable, scope = None, share.storable, b""
        if share.shared or share.merge:
            made = request.made
            scope = made["scope"] if made is not None and "scope" in made else self._scope(context)
        if share.shared:
            if storable and (refers(api_request) if api_request.large is None else api_request.large.refers):
                storable = False  # the image behind a URL may be another one tomorrow
            if api_request.large is not None:
                key = api_request.large.key
            else:
                both = api_request.endpoint == "embeddings" or foldable(api_request.endpoint, api_request.fields)
                common = headers_in_common(sent) if sent else ()
                key = self._keyer.key(api_request, tenant=scope, fold=both, headers=common)
            flight = None
            if key is not None:
                flight = self._group.find(key, stream=streamed, fold=fold, fresh=share.fresh)
            if flight is not None:
                self._metrics.coalesced(api_request.endpoint)
                reader = self._group.attach(
                    flight,
                    usage=api_request.include_usage,
                    whole=not streamed,
                    attached=True,
                    owner=owner if flight.phase is Phase.QUEUED else None,
                    storable=storable,
                )
                context.attach_reader(reader)
                self._scheduler.promote(flight, priority, context.deadline, reader)
                if self._embedder is not None and api_request.endpoint == "embeddings":
                    self._embedder.joined(reader)
                return reader
        if api_request.large is not None:
            affinity = api_request.large.affinity
        else:
            affinity = self._affinity(api_request, request.headers) if self._affinity is not None else 0
        salt = ""
        if self._rules.salt:
            api_request, salt, scope = self._salted(context, api_request)
        # The answer holds the id under which its request was sent: a client's own id must not reach other readers.
        name = new_id() if key is not None and context.named else context.id
        if "request_id" in api_request.fields and not context.named:
            name = _own_id(api_request) or name  # of all who share it, as it is part of the key
        # By place: by name it takes a microsecond more.
        spec = FlightSpec(
            "POST",
            PATHS[api_request.endpoint],
            api_request.body,
            _STREAM if streamed else _WHOLE,
            name,
            [("Content-Type", "application/json"), (REQUEST_ID, name), *sent],
            api_request,
            api_request.model,
            key,
            share.fresh,
            storable,
            streamed and key is not None,  # the gateway asks for usage
            scope if share.merge else b"",
            affinity,
            fold,
            salt,
            api_request.model in self._rules.names.standbys,
        )
        queue_state = QueueState(
            owner=owner,
            priority=priority,
            deadline=context.deadline,
            latest=context.deadline,
            merge=share.merge and api_request.large is None,
        )
        flight = self._group.launch(spec, queue_state)
        usage = api_request.include_usage or key is None
        try:
            whole = not streamed
            reader = self._group.attach(flight, usage=usage, whole=whole, owner=owner, storable=storable)
            context.attach_reader(reader)
            takes = api_request.endpoint == "embeddings" and key is not None and api_request.large is None
            embedder = self._embedder if takes else None
            if embedder is None or not embedder.take(flight, scope):
                self._scheduler.submit(flight)
        except GatewayError:
            raise
        except Exception:
            self._scheduler.abandon(flight)  # other readers must not wait for a Flight that nothing feeds
            raise
        return reader


def _unchecked(api_request: ApiRequest) -> GatewayError:
    """Of an answer that would be passed on without being held."""
    return GatewayError(
        Code.INVALID_VALUE,
        "Answers are checked against the deny list, impossible for one of this size: request fewer "
        "prompt_logprobs or none, or send a shorter prompt.",
        param="prompt_logprobs",
    )


def _own_id(api_request: ApiRequest) -> str | None:
    """The id that the client has chosen in its body, as vLLM allows; None: it is no plain token."""
    try:
        given = msgspec.json.decode(api_request.fields["request_id"], type=str)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return given if request_id(given) == given else None

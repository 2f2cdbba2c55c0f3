"""Owns the straight line of a request: decode, policy, key, join, respond; one handler for each endpoint.
Must not know sockets of engines, Redis or how Flights are fed.
Called by the app, which hands it every request that aiohttp could parse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial

import msgspec
from aiohttp import web

from proxy.access import AccessPolicy, Hosts, Origins, PriorityPolicy, parse_request_timeout, scope_of
from proxy.config import NORMAL, Settings
from proxy.errors import Code, GatewayError, place_of, words_of
from proxy.flights import (
    REQUEST_ID,
    SLICE_BYTES,
    Flight,
    FlightGroup,
    FlightSpec,
    Held,
    Keyer,
    Memory,
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
from proxy.server import respond
from proxy.server.context import RequestContext, body_at_hand, free_body, read_body, request_id
from proxy.server.deadline import end_early, run_with_deadline
from proxy.server.handlers.embed import EmbedHandler
from proxy.server.handlers.passthrough import Admit, PassThrough
from proxy.server.handlers.relay import ACTED_ON, end_to_end_headers, engine_headers
from proxy.server.handlers.status import StatusHandlers
from proxy.server.listener.listener import ClientConnection
from proxy.server.listener.request import AT_HAND
from proxy.server.offload.large import LargeRequests
from proxy.server.routes import Handler, Route, Routes
from proxy.server.tracing import Tracing
from proxy.telemetry import Fault, Log, Metrics, contained, internal, raised
from proxy.upstream import Backends
from proxy.wire import PATHS, ApiRequest, Endpoint, decode, outgrows, refers
from proxy.wire.fold import Unfoldable, foldable


class Gateway:
    """Answers requests. Holds no state of its own but what it was given."""

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
        affinity: Callable[[ApiRequest, Mapping[str, str]], int] | None = None,
        admit: Admit | None = None,
        access_policy: AccessPolicy | None = None,
        priority_policy: PriorityPolicy | None = None,
        embedder: Embedder | None = None,
        tracing: Tracing | None = None,
        fault: Fault = raised,
        memory: Memory | None = None,
        large: LargeRequests | None = None,
        origins: Origins | None = None,
        hosts: Hosts | None = None,
        admin_hosts: Hosts | None = None,
        unfolded: Callable[[Flight, Unfoldable], None] = lambda flight, why: None,
    ) -> None:
        """`unfolded`: is told of a stream that turned out not to fold for readers who had waited for that."""
        self._fault = fault
        anywhere = Hosts("", ("*",))
        self._hosts, self._admin_hosts = hosts or anywhere, admin_hosts or anywhere
        self._unfolded = unfolded
        self._settings = settings
        self._memory = memory
        most = free_body(memory.budget, settings.max_connections) if memory is not None else AT_HAND
        self._free = most  # bytes of a body that is read as it comes, at once
        self._group = group
        self._scheduler = scheduler
        self._backends = backends
        self._keyer = keyer
        self._metrics = metrics
        self._log = log
        self._affinity = affinity
        self._admit = admit
        self._access_policy = access_policy
        self._origins = origins or Origins()
        self._priority_policy = priority_policy or PriorityPolicy(NORMAL, lambda request: "")
        self._embedder = embedder
        self.tracing = tracing
        self.large = large
        self._passed_on = (*ACTED_ON, "authorization") if settings.forward_authorization else ACTED_ON
        self._stall = settings.client_stall_timeout
        embed = EmbedHandler(settings.embed_stub, self._embed_ask, self._embed_join, self._body, self._reply)
        self._plain = plain = StatusHandlers(backends, metrics, access_policy, self._reply, self._send)
        generate = {endpoint: self._generation(endpoint) for endpoint in PATHS}
        self._pass_through = PassThrough(settings, self.body, access_policy, admit, large)
        self._scope = scope_of(access_policy)
        public: dict[str, Route] = {
            **{path: ("POST", endpoint, generate[endpoint]) for endpoint, path in PATHS.items()},
            "/chat": ("POST", "chat", generate["chat"]),
            "/embed": ("POST", "embeddings", embed),
            "/v1/models": ("GET", "models", self._models),
            "/health": ("GET", "health", plain.health),
            "/ping": ("GET, POST", "health", plain.health),
            "/ready": ("GET", "ready", plain.ready),
        }
        self.routes = Routes(public, plain, access_policy, self._pass, admin=settings.admin_port != 0)
        self.routes.serve("/metrics", "GET", "metrics", plain.metrics)
        self.find: Callable[[RequestContext], Handler] = self.routes.find
        """Who answers; the Drain puts its own before it, so that until then nothing is asked about it."""

    async def handle(self, request: web.BaseRequest, admin: bool = False) -> bool:
        """Every request comes through here, and leaves one log line and one count behind. True: the connection
        may be kept. `admin`: it came by the listener for operators."""
        given = request.headers.get("x-request-id")
        name = request_id(given)
        call = RequestContext(request=request, id=name, named=name is given, admin=admin)
        try:
            try:
                hosts = self._admin_hosts if admin else self._hosts
                if request.host not in hosts.known:
                    hosts.check(request.host, brought=getattr(request.protocol, "source", ""))
                answer = self.find(call)
                if self.tracing is not None:
                    self.tracing.begin(call)
                if self._access_policy is not None:
                    self._access_policy.enter(call)
                headers = request.headers
                if call.caller is None and ("sec-fetch-site" in headers or "origin" in headers):
                    self._origins.check(headers, request.method, opens=call.endpoint != "passthrough")
                given = request.headers.get("x-request-timeout")
                if given is None:
                    sent = await answer(call)
                else:
                    seconds = parse_request_timeout(given)
                    call.deadline = asyncio.get_running_loop().time() + seconds
                    sent = await run_with_deadline(call, answer, seconds, self._scheduler.metrics.missed)
            except GatewayError as e:
                # A Flight's error is raised to each of its readers: its traceback would keep the Flight, and its
                # log, alive in a circle.
                sent = await self._refuse(call, e.with_traceback(None))
            except TimeoutError:
                call.error = "client_stalled"
                if request.transport is not None:
                    request.transport.abort()  # a close would wait for the client to take what it does not take
                raise ConnectionResetError("the client took nothing for too long") from None
            except asyncio.CancelledError:
                if call.ending is None:
                    raise
                sent = await self._cut(call, call.ending)
            except ConnectionError:
                raise
            except Exception as e:  # noqa: BLE001 - the door: a fault of ours is told to the log, not to the client
                at = place_of(e)
                self._log.often("error", "internal error", at, request_id=call.id, fault=words_of(e), where=at)
                sent = await self._refuse(call, internal())
        except (asyncio.CancelledError, ConnectionError):
            call.client_left = True
            protocol = request.protocol
            if call.error is None and isinstance(protocol, ClientConnection) and protocol.stalled:
                call.error = "client_stalled"
            raise
        finally:
            try:
                call.close()
            except Exception as e:  # noqa: BLE001 - the answer has gone out: it is still counted and logged
                self._fault("the end of a request", e)
                contained(self._fault, "the end of a request", call.close)  # what is back already stays so
            try:
                self.record(call)
            except Exception as e:  # noqa: BLE001 - what it says to operators is nothing to the client
                self._fault("the record of a request", e)
        return sent.keep_alive

    # -- generations ------------------------------------------------------------------------------

    def _generation(self, endpoint: Endpoint) -> Handler:
        async def handler(call: RequestContext) -> respond.Sent:
            body = body_at_hand(call.request, self._settings, json=True, most=self._free)
            if body is None:
                body = await self._read(call)
            large = self.large
            if large is not None and len(body) > large.inline:
                ask = await self.read(call, endpoint, body)
            else:
                ask = self._decode(call, endpoint, body)
            if "prompt_logprobs" in ask.fields and outgrows(ask, self._settings.max_flight_bytes):
                if self._admit is not None:
                    await self._admit(call)
                return await self._through(call, PATHS[endpoint], ask.body)
            reader = await self.joined(call, ask)
            if call.stream and endpoint != "embeddings":
                return await self._stream(call, reader)
            while not reader.flight.ended and reader.flight.folds:
                await reader.changed()
            if reader.flight.folds:
                try:
                    return await self._body(call, reader)
                except Unfoldable as e:
                    self._unfolded(reader.flight, e)
            # A stream that only the engine can put into one body. Nothing has gone out: that body is asked for,
            # once for all who waited.
            assert call.ask is not None  # of which there is that stream
            fresh = await self.joined(call, call.ask, again=True)
            reader.leave()
            return await self._body(call, fresh)

        return handler

    async def body(self, call: RequestContext, *, json: bool, limit: int = 0) -> bytes:
        """The request's body, at hand or not. Raises GatewayError."""
        body = body_at_hand(call.request, self._settings, json=json, most=self._free, limit=limit)
        return await self._read(call, limit) if body is None else body

    async def _read(self, call: RequestContext, limit: int = 0) -> bytes:
        """A body that is large, or has not come: what the head can tell is judged before it is read."""
        if self._admit is not None:
            await self._admit.head(call)
        if self._memory is not None:
            call.held = Held(self._memory, self._owner(call), "uploads")
        return await read_body(call.request, self._settings, call.held, limit)

    def _owner(self, call: RequestContext) -> Hashable:
        """Whose memory it is: as whose turn it takes."""
        owner = self._priority_policy.owner(call.caller, call.request)
        return owner() if callable(owner) else owner

    async def taken(self, call: RequestContext) -> None:
        """Wait until the client has taken what was written, charged to the memory budget meanwhile."""
        if call.unread is None and self._memory is not None:
            call.unread = Held(self._memory, self._owner(call), "unread")
        await respond.taken(call.request, self._stall, call.unread)

    async def read(self, call: RequestContext, endpoint: Endpoint, body: bytes) -> ApiRequest:
        """1 and 2: the request, decoded and checked; off the loop where it is large."""
        large = self.large
        if large is not None and len(body) > large.inline and large.heavy(body):
            return await large.ask(call, endpoint, body)
        return self._decode(call, endpoint, body)

    async def joined(self, call: RequestContext, ask: ApiRequest, *, again: bool = False) -> Subscriber:
        """3 to 5. `again`: it has been let in, and has read a stream that does not fold. Raises GatewayError."""
        headers = call.request.headers
        share = sharing_of(
            ask,
            self._settings.share,
            cache_control=headers.get("cache-control", ""),
            override=headers.get("x-gateway-share", ""),
        )
        if self._admit is not None and not again:
            await self._admit(call)
        return self._join(call, ask, share, fold=not again)

    def _decode(self, call: RequestContext, endpoint: Endpoint, body: bytes) -> ApiRequest:
        """The label of an endpoint is the endpoint's, under whatever path it came."""
        ask = decode(endpoint, body)
        call.model, call.stream = ask.model, ask.stream
        call.ask = ask = ask if self._access_policy is None else self._access_policy.admit(call, ask)
        return ask

    def _join(self, call: RequestContext, ask: ApiRequest, share: Sharing, *, fold: bool = True) -> Subscriber:
        """4 key, 5 flights. A place at a Flight: one that is under way, or a new one. `fold`: one body may be a
        stream's fold."""
        streamed = ask.stream and ask.endpoint != "embeddings"
        priority = self._priority_policy.priority(call.caller, call.request)
        headers = call.request.headers
        sent = engine_headers(headers, self._passed_on)
        key, storable = None, share.storable
        if share.shared:
            if storable and (refers(ask) if ask.large is None else ask.large.refers):
                storable = False  # what is behind a URL may be another picture tomorrow
            if ask.large is not None:
                key = ask.large.key
            else:
                both = ask.endpoint == "embeddings" or foldable(ask.endpoint, ask.fields)
                common = headers_in_common(sent) if sent else ()
                key = self._keyer.key(ask, tenant=self._scope(call), fold=both, headers=common)
            flight = None
            if key is not None:
                flight = self._group.find(key, stream=streamed, fold=fold, fresh=share.fresh)
            if flight is not None:
                self._metrics.coalesced(ask.endpoint)
                reader = self._group.attach(
                    flight,
                    usage=ask.include_usage,
                    whole=not streamed,
                    attached=True,
                    owner=self._priority_policy.owner(call.caller, call.request)
                    if flight.phase is Phase.QUEUED
                    else None,
                    storable=storable,
                )
                call.reads(reader)
                self._scheduler.promote(flight, priority, call.deadline, reader)
                if self._embedder is not None and ask.endpoint == "embeddings":
                    self._embedder.joined(reader)
                return reader
        if ask.large is not None:
            affinity = ask.large.affinity
        else:
            affinity = self._affinity(ask, headers) if self._affinity is not None else 0
        # An answer holds the id by which its request went up: not a client's own where others may read it.
        name = new_id() if key is not None and call.named else call.id
        spec = FlightSpec(
            method="POST",
            path=PATHS[ask.endpoint],
            body=ask.body,
            mode=Mode.STREAM if streamed else Mode.WHOLE,
            request_id=name,
            headers=[("Content-Type", "application/json"), (REQUEST_ID, name), *sent],
            ask=ask,
            model=ask.model,
            key=key,
            fresh=share.fresh,
            storable=storable,
            fold=fold,
            usage_added=streamed and key is not None,
            tenant=self._scope(call) if share.merge else b"",
            affinity=affinity,
        )
        owner = self._priority_policy.owner(call.caller, call.request)
        queue_state = QueueState(
            owner=owner,
            priority=priority,
            deadline=call.deadline,
            latest=call.deadline,
            merge=share.merge and ask.large is None,
        )
        flight = self._group.launch(spec, queue_state)
        usage = ask.include_usage or key is None
        try:
            whole = not streamed
            reader = self._group.attach(flight, usage=usage, whole=whole, owner=owner, storable=storable)
            call.reads(reader)
            takes = ask.endpoint == "embeddings" and key is not None and ask.large is None
            embedder = self._embedder if takes else None
            if embedder is None or not embedder.take(flight, self._scope(call)):
                self._scheduler.submit(flight)
        except GatewayError:
            raise
        except Exception:
            self._scheduler.abandon(flight)  # who joined it must not wait for what nobody feeds
            raise
        return reader

    async def _stream(self, call: RequestContext, reader: Subscriber) -> respond.Sent:
        """6 respond, as it comes."""
        if not reader.visible:
            await reader.ready()
        if reader.flight.mode is Mode.WHOLE:  # an error, or an engine that will not stream
            return await self._body(call, reader)
        headers, limited = self._headers(call, reader), call.hold is not None
        sent = await respond.stream(call.request, reader, headers, partial(self.taken, call), limited=limited)
        call.status, call.bytes_out = sent.status, sent.bytes
        return sent

    async def _body(self, call: RequestContext, reader: Subscriber) -> respond.Sent:
        """6 respond, with one body."""
        flight = reader.flight
        while not flight.ended:
            reader.whole = True
            await reader.changed()
        if self.large is not None and flight.mode is Mode.STREAM and self.large.folds(flight):
            await self.large.fold(flight)
        status, headers, body = respond.whole(flight, limited=call.hold is not None)
        return await self._send(call, status, [*headers, *self._headers(call, reader)], body, shared=True)

    def _headers(self, call: RequestContext, reader: Subscriber) -> list[tuple[str, str]]:
        headers = [*call.headers(), ("x-gateway-cache", reader.verdict)]
        if reader.flight.items is not None:
            headers.append(("x-gateway-cached-items", str(reader.flight.items)))
        if reader.flight.stored_at is not None:
            headers.append(("age", str(max(0, int(time.time() - reader.flight.stored_at)))))
        return headers

    async def _embed_ask(self, call: RequestContext) -> ApiRequest:
        """The request of `/embed`, let in."""
        ask = await self.read(call, "embeddings", await self.body(call, json=True))
        if self._admit is not None:
            await self._admit(call)
        return ask

    def _embed_join(self, call: RequestContext, ask: ApiRequest) -> Subscriber:
        return self._join(call, ask, sharing_of(ask, self._settings.share))

    # -- everything else --------------------------------------------------------------------------

    async def _pass(self, call: RequestContext) -> respond.Sent:
        """Any other path of vLLM's: bytes and headers through, never shared."""
        body = await self._pass_through.read(call)
        return await self._through(call, call.request.raw_path, body)

    async def _through(self, call: RequestContext, path: str, body: bytes) -> respond.Sent:
        """A Flight with one reader, who gets the engine's bytes as they come."""
        request = call.request
        spec = FlightSpec(
            method=request.method,
            path=path,
            body=body,
            mode=Mode.RAW,
            request_id=call.id,
            headers=(
                *end_to_end_headers(request.raw_headers, authorization=self._settings.forward_authorization),
                ("X-Request-Id", call.id),
            ),
            model=call.model,
            cost=call.cost,
        )
        owner = self._priority_policy.owner(call.caller, call.request)
        queue_state = QueueState(
            owner=owner,
            priority=self._priority_policy.priority(call.caller, call.request),
            deadline=call.deadline,
            latest=call.deadline,
        )
        flight = self._group.launch(spec, queue_state)
        try:
            reader = self._group.attach(flight, usage=True, whole=False, owner=owner)
            call.reads(reader)
            self._scheduler.submit(flight)
        except GatewayError:
            raise
        except Exception:
            self._scheduler.abandon(flight)
            raise
        return await self._stream(call, reader)

    async def _models(self, call: RequestContext) -> respond.Sent:
        if self._admit is not None:
            await self._admit(call)
        return await self._plain.models(call)

    async def _reply(
        self, call: RequestContext, status: int, answer: object, headers: respond.Headers = ()
    ) -> respond.Sent:
        ours = [("content-type", "application/json"), *headers, *call.headers()]
        return await self._send(call, status, ours, msgspec.json.encode(answer))

    async def _refuse(self, call: RequestContext, error: GatewayError) -> respond.Sent:
        """An error as OpenAI's clients know it."""
        call.error, call.client = error.code.code, self._priority_policy.address(call.caller, call.request)
        headers = [*respond.error_headers(error), *call.headers()]
        request = call.request
        # Whether a body comes that waited for a 100, nobody knows: the connection ends.
        waits = "expect" in request.headers and not request.content.is_eof()
        last = waits or request.method == "CONNECT" or error.code in (Code.SHUTTING_DOWN, Code.BODY_TIMEOUT)
        return await self._send(call, error.status, headers, error.json(), keep=not last)

    async def _cut(self, call: RequestContext, error: GatewayError) -> respond.Sent:
        """Its task was cancelled by us, and the client is told why; unless it has left at the same time."""
        if call.request.task.uncancel():
            raise asyncio.CancelledError
        try:
            return end_early(call, error)
        except GatewayError as e:
            return await self._refuse(call, e.with_traceback(None))

    async def _send(
        self,
        call: RequestContext,
        status: int,
        headers: list[tuple[str, str]],
        body: respond.Body,
        *,
        keep: bool = True,
        shared: bool = False,
    ) -> respond.Sent:
        """`shared`: the body is a Flight's, which all its readers hold together."""
        call.status = status
        sent, left = respond.write(call.request, status, headers, body, keep=keep)
        call.bytes_out = sent.bytes
        if left is not None:
            await self._rest(call, left, 0 if shared else len(body))
        return sent

    async def _rest(self, call: RequestContext, left: respond.Left, size: int) -> None:
        """The rest of a body, of which so many bytes are this request's alone."""
        own = None
        if size > SLICE_BYTES and self._memory is not None:
            own = Held(self._memory, self._owner(call), "answers")
            if not own.resize(size) and call.request.transport is not None:
                call.request.transport.abort()
                raise ConnectionResetError("no memory is left for an answer that the client does not take")
        try:
            await respond.rest(call.request, left, partial(self.taken, call))
        finally:
            if own is not None:
                own.release()

    def record(self, call: RequestContext) -> None:
        """One count and one line for the request, after all is said."""
        logged = call.error is not None or call.endpoint not in ("health", "ready", "metrics")
        log = self._log if logged else None
        call.tell(self._metrics, log, show_prompt=self._settings.log_prompts, who=partial(self._owner, call))

"""Owns the straight line of a request: decode, policy, key, join, respond; one handler for each endpoint.
Must not know sockets of engines, Redis or how Flights are fed.
Called by the app, which hands it every request that aiohttp could parse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web

from proxy import respond
from proxy.backends import Backends
from proxy.call import Call, body_at_hand, body_of, read_body, request_id
from proxy.config import Settings
from proxy.embed_handler import Embed
from proxy.embedder import Embedder
from proxy.errors import Code, GatewayError, place_of
from proxy.flight import Subscriber
from proxy.gate import Gate, scope_of
from proxy.group import FlightGroup
from proxy.key import Keyer
from proxy.large import LargeRequests
from proxy.line import NORMAL
from proxy.log import Log
from proxy.metrics import Metrics
from proxy.plain import Plain
from proxy.plan import Mode, Plan
from proxy.policy import PRIVATE, Sharing, sharing
from proxy.punctual import in_time
from proxy.relay import ACTED_ON, acted_on, forwardable, passes
from proxy.scheduler import Scheduler
from proxy.tracing import Tracing
from proxy.urgency import Urgency, timeout_of
from proxy.wire.fold import Unfoldable, foldable
from proxy.wire.openai import PATHS, Ask, Endpoint, decode, model_of

Handler = Callable[[Call], Awaitable[respond.Sent]]
Admit = Callable[[Call, bytes], Awaitable[None]]  # raises GatewayError 429 or 503


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
        affinity: Callable[[Ask, Mapping[str, str]], int] | None = None,
        admit: Admit | None = None,
        gate: Gate | None = None,
        urgency: Urgency | None = None,
        embedder: Embedder | None = None,
        tracing: Tracing | None = None,
        large: LargeRequests | None = None,
    ) -> None:
        self._settings = settings
        self._group = group
        self._scheduler = scheduler
        self._backends = backends
        self._keyer = keyer
        self._metrics = metrics
        self._log = log
        self._affinity = affinity
        self._admit = admit
        self._gate = gate
        self._urgency = urgency or Urgency(NORMAL, lambda request: "")
        self._embedder = embedder
        self.tracing = tracing
        self.large = large
        self.find: Callable[[Call], Handler] = self.route
        """Who answers; the Drain puts its own before it, so that until then nothing is asked about it."""
        self._passed_on = (*ACTED_ON, "authorization") if settings.forward_authorization else ACTED_ON
        embed = Embed(settings.embed_stub, self._embed_ask, self._embed_join, self._body, self._reply)
        self._plain = plain = Plain(backends, metrics, gate, self._reply, self._send)
        generate = {endpoint: self._generation(endpoint) for endpoint in PATHS}
        self._scope = scope_of(gate)
        self._routes: dict[str, tuple[str, str, Handler]] = {
            **{path: ("POST", endpoint, generate[endpoint]) for endpoint, path in PATHS.items()},
            "/chat": ("POST", "chat", generate["chat"]),
            "/embed": ("POST", "embeddings", embed),
            "/v1/models": ("GET", "models", self._models),
            "/health": ("GET", "health", plain.health),
            "/ready": ("GET", "ready", plain.ready),
            "/metrics": ("GET", "metrics", plain.metrics),
        }

    def serve(self, path: str, method: str, endpoint: str, handler: Handler) -> None:
        """One path more."""
        self._routes[path] = (method, endpoint, handler)

    async def handle(self, request: web.BaseRequest) -> bool:
        """Every request comes through here, and leaves one log line and one count behind. True: the connection
        may be kept."""
        call = Call(request=request, id=request_id(request.headers.get("x-request-id")))
        try:
            try:
                answer = self.find(call)
                if self.tracing is not None:
                    self.tracing.begin(call)
                if self._gate is not None:
                    self._gate.enter(call)
                given = request.headers.get("x-request-timeout")
                if given is None:
                    sent = await answer(call)
                else:
                    seconds = timeout_of(given)
                    call.deadline = asyncio.get_running_loop().time() + seconds
                    sent = await in_time(call, answer, seconds, self._scheduler.told.missed)
            except GatewayError as e:
                sent = await self._refuse(call, e)
            except TimeoutError:
                call.error = "client_stalled"
                raise ConnectionResetError("the client took nothing for too long") from None
            except (asyncio.CancelledError, ConnectionError):
                raise
            except Exception as e:  # noqa: BLE001 - the door: a fault of ours is told to the log, not to the client
                self._log.event("error", "internal error", request_id=call.id, fault=repr(e), where=place_of(e))
                sent = await self._refuse(
                    call, GatewayError(Code.INTERNAL, "The gateway failed; its log has the reason.")
                )
        except (asyncio.CancelledError, ConnectionError):
            call.client_left = True
            raise
        finally:
            call.close()
            self.record(call)
        return sent.keep_alive

    def route(self, call: Call) -> Handler:
        """Who answers. Raises GatewayError 404 or 405."""
        path = call.request.path
        route = self._routes.get(path)
        if route is None and path.startswith("/v1/models/"):
            route = ("GET", "models", self._plain.model)
        if route is None:
            if not passes(path, call.request.raw_path):
                raise GatewayError(Code.NOT_FOUND, f"There is no {path[:200]!r} here. The API is under /v1.")
            call.endpoint = "passthrough"
            return self._pass
        method, call.endpoint, handler = route
        if call.request.method != method and not (method == "GET" and call.request.method == "HEAD"):
            call.allow = method
            raise GatewayError(Code.METHOD_NOT_ALLOWED, f"{path} takes {method}, not {call.request.method[:16]}.")
        return handler

    # -- generations ------------------------------------------------------------------------------

    def _generation(self, endpoint: Endpoint) -> Handler:
        async def handler(call: Call) -> respond.Sent:
            body = body_at_hand(call.request, self._settings, json=True)
            if body is None:
                body = await read_body(call.request, self._settings)
            large = self.large
            if large is not None and len(body) > large.inline:
                ask = await self.read(call, endpoint, body)
            else:
                ask = self._decode(call, endpoint, body)
            reader = await self.joined(call, ask)
            if call.stream and endpoint != "embeddings":
                return await self._stream(call, reader)
            while not reader.flight.ended:
                await reader.changed()
            try:
                return await self._body(call, reader)
            except Unfoldable:
                # A stream that only the engine can put into one body. Nothing has gone out: ask for that body.
                reader.leave()
                assert call.ask is not None  # of which there was that stream
                return await self._body(call, self._join(call, call.ask, PRIVATE))

        return handler

    async def read(self, call: Call, endpoint: Endpoint, body: bytes) -> Ask:
        """1 and 2: the request, decoded and checked; off the loop where it is large."""
        large = self.large
        if large is not None and len(body) > large.inline and large.heavy(body):
            return await large.ask(call, endpoint, body)
        return self._decode(call, endpoint, body)

    async def joined(self, call: Call, ask: Ask) -> Subscriber:
        """3 to 5. Raises GatewayError."""
        headers = call.request.headers
        share = sharing(
            ask,
            self._settings.share,
            cache_control=headers.get("cache-control", ""),
            override=headers.get("x-gateway-share", ""),
        )
        if self._admit is not None:
            await self._admit(call, b"")
        return self._join(call, ask, share)

    def _decode(self, call: Call, endpoint: Endpoint, body: bytes) -> Ask:
        """The label of an endpoint is the endpoint's, under whatever path it came."""
        ask = decode(endpoint, body)
        call.model, call.stream = ask.model, ask.stream
        call.ask = ask = ask if self._gate is None else self._gate.admit(call, ask)
        return ask

    def _join(self, call: Call, ask: Ask, share: Sharing) -> Subscriber:
        """4 key, 5 flights. A place at a Flight: one that is under way, or a new one."""
        streamed = ask.stream and ask.endpoint != "embeddings"
        priority = self._urgency.priority(call)
        key = None
        if share.shared:
            if ask.large is not None:
                key = ask.large.key
            else:
                fold = ask.endpoint == "embeddings" or foldable(ask.endpoint, ask.fields)
                key = self._keyer.key(ask, tenant=self._scope(call), fold=fold)
            flight = None if share.fresh or key is None else self._group.find(key, stream=streamed)
            if flight is not None:
                self._metrics.coalesced(ask.endpoint)
                self._scheduler.promote(flight, priority, call.deadline)
                return call.reads(
                    self._group.attach(flight, usage=ask.include_usage, whole=not streamed, verdict="attached")
                )
        headers = call.request.headers
        if ask.large is not None:
            affinity = ask.large.affinity
        else:
            affinity = self._affinity(ask, headers) if self._affinity is not None else 0
        ours = (("Content-Type", "application/json"), ("X-Request-Id", call.id))
        plan = Plan(
            method="POST",
            path=PATHS[ask.endpoint],
            body=ask.body,
            mode=Mode.STREAM if streamed else Mode.WHOLE,
            request_id=call.id,
            headers=[*ours, *acted_on(headers, self._passed_on)],
            ask=ask,
            model=ask.model,
            key=key,
            fresh=share.fresh,
            usage_added=streamed and key is not None,
            merge=share.merge and ask.large is None,
            tenant=self._scope(call) if share.merge else b"",
            affinity=affinity,
            owner=self._urgency.owner(call),
            priority=priority,
            deadline=call.deadline,
            latest=call.deadline,
        )
        flight = self._group.launch(plan)
        verdict = "miss" if share.shared else "bypass"
        usage = ask.include_usage or key is None
        reader = call.reads(self._group.attach(flight, usage=usage, whole=not streamed, verdict=verdict))
        takes = ask.endpoint == "embeddings" and key is not None and ask.large is None
        embedder = self._embedder if takes else None
        if embedder is None or not embedder.take(flight, self._scope(call)):
            self._scheduler.submit(flight)
        return reader

    async def _stream(self, call: Call, reader: Subscriber) -> respond.Sent:
        """6 respond, as it comes."""
        if not reader.visible:
            await reader.ready()
        if reader.flight.mode is Mode.WHOLE:  # an error, or an engine that will not stream
            return await self._body(call, reader)
        sent = await respond.stream(
            call.request, reader, self._headers(call, reader), self._settings.client_stall_timeout
        )
        call.status, call.bytes_out = sent.status, sent.bytes
        return sent

    async def _body(self, call: Call, reader: Subscriber) -> respond.Sent:
        """6 respond, with one body."""
        flight = reader.flight
        while not flight.ended:
            reader.whole = True
            await reader.changed()
        if self.large is not None and flight.mode is Mode.STREAM and self.large.folds(flight):
            await self.large.fold(flight)
        status, headers, body = respond.whole(flight)
        return await self._send(call, status, [*headers, *self._headers(call, reader)], body)

    def _headers(self, call: Call, reader: Subscriber) -> list[tuple[str, str]]:
        headers = [*call.headers(), ("x-gateway-cache", reader.verdict)]
        if reader.flight.items is not None:
            headers.append(("x-gateway-cached-items", str(reader.flight.items)))
        if reader.flight.stored_at is not None:
            headers.append(("age", str(max(0, int(time.time() - reader.flight.stored_at)))))
        return headers

    async def _embed_ask(self, call: Call) -> Ask:
        """The request of `/embed`, let in."""
        ask = await self.read(call, "embeddings", await body_of(call.request, self._settings, json=True))
        if self._admit is not None:
            await self._admit(call, b"")
        return ask

    def _embed_join(self, call: Call, ask: Ask) -> Subscriber:
        return self._join(call, ask, sharing(ask, self._settings.share))

    # -- everything else --------------------------------------------------------------------------

    async def _pass(self, call: Call) -> respond.Sent:
        """Any other path of vLLM's: bytes and headers through, never shared. A Flight with one reader."""
        request = call.request
        body = await body_of(request, self._settings, json=False)
        large = self.large
        if large is not None and len(body) > large.inline and large.heavy(body):
            body = await large.raw(call, body)
        else:
            call.model = model_of(body)
            if self._gate is not None:
                body = self._gate.admit_raw(call, body)
        if self._admit is not None:
            await self._admit(call, body)
        plan = Plan(
            method=request.method,
            path=request.raw_path,
            body=body,
            mode=Mode.RAW,
            request_id=call.id,
            headers=(
                *forwardable(request.raw_headers, authorization=self._settings.forward_authorization),
                ("X-Request-Id", call.id),
            ),
            model=call.model,
            cost=call.cost,
            owner=self._urgency.owner(call),
            priority=self._urgency.priority(call),
            deadline=call.deadline,
            latest=call.deadline,
        )
        flight = self._group.launch(plan)
        reader = call.reads(self._group.attach(flight, usage=True, whole=False, verdict="bypass"))
        self._scheduler.submit(flight)
        return await self._stream(call, reader)

    async def _models(self, call: Call) -> respond.Sent:
        if self._admit is not None:
            await self._admit(call, b"")
        return await self._plain.models(call)

    async def _reply(self, call: Call, status: int, answer: object, headers: respond.Headers = ()) -> respond.Sent:
        ours = [("content-type", "application/json"), *headers, *call.headers()]
        return await self._send(call, status, ours, msgspec.json.encode(answer))

    async def _refuse(self, call: Call, error: GatewayError) -> respond.Sent:
        """An error as OpenAI's clients know it."""
        call.error, call.client = error.code.code, self._urgency.address(call)
        headers = [*respond.error_headers(error), *call.headers()]
        keep = error.code is not Code.SHUTTING_DOWN
        sent = await self._send(call, error.status, headers, error.json(), keep=keep)
        if error.code is Code.BODY_TIMEOUT and call.request.transport is not None:
            call.request.transport.close()  # the rest of the body may never come
        return sent

    async def _send(
        self, call: Call, status: int, headers: list[tuple[str, str]], body: bytes, *, keep: bool = True
    ) -> respond.Sent:
        call.status = status
        sent, fits = respond.write(call.request, status, headers, body, keep=keep)
        call.bytes_out = sent.bytes
        if not fits:
            await respond.taken(call.request, self._settings.client_stall_timeout)
        return sent

    def record(self, call: Call) -> None:
        """One count and one line for the request, after all is said."""
        logged = call.error is not None or call.endpoint not in ("health", "ready", "metrics")
        call.tell(self._metrics, self._log if logged else None, show_prompt=self._settings.log_prompts)

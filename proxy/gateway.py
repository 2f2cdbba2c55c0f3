"""Owns the straight line of a request: decode, policy, key, join, respond; one handler for each endpoint.
Must not know sockets of engines, Redis or how Flights are fed.
Called by the app, which hands it every request that aiohttp could parse."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from proxy import respond
from proxy.backends import Backends
from proxy.call import Call, read_body, request_id
from proxy.config import Settings
from proxy.errors import Code, GatewayError
from proxy.flight import FlightGroup, Subscriber
from proxy.key import Keyer
from proxy.log import Log
from proxy.metrics import Metrics
from proxy.plan import Mode, Plan
from proxy.policy import PRIVATE, Sharing, sharing
from proxy.relay import forwardable, passes
from proxy.scheduler import Scheduler
from proxy.wire.fold import Unfoldable, foldable
from proxy.wire.openai import PATHS, Ask, Endpoint, decode

Handler = Callable[[Call], Awaitable[respond.Sent]]

_FORWARDED: Final = ("traceparent", "tracestate", "x-data-parallel-rank", "x-session-id")
"""Client headers an engine acts on; of a request that may be shared, nothing else goes up."""

_CANNOT_EMBED: Final = frozenset({404, 405, 501})


class _Model(msgspec.Struct):
    model: str | None = None


class _Error(msgspec.Struct):
    error: dict[str, object] | None = None


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
    ) -> None:
        self._settings = settings
        self._group = group
        self._scheduler = scheduler
        self._backends = backends
        self._keyer = keyer
        self._metrics = metrics
        self._log = log
        generate = {endpoint: self._generation(endpoint) for endpoint in PATHS}
        self._routes: dict[str, tuple[str, str, Handler]] = {
            **{path: ("POST", endpoint, generate[endpoint]) for endpoint, path in PATHS.items()},
            "/chat": ("POST", "chat", generate["chat"]),
            "/embed": ("POST", "embeddings", self._embed),
            "/v1/models": ("GET", "models", self._models),
            "/health": ("GET", "health", self._health),
            "/ready": ("GET", "ready", self._ready),
            "/metrics": ("GET", "metrics", self._metrics_page),
        }

    async def handle(self, request: web.BaseRequest) -> bool:
        """Every request comes through here, and leaves one log line and one count behind. True: the connection
        may be kept."""
        call = Call(request=request, id=request_id(request.headers.get("x-request-id")))
        try:
            try:
                sent = await self._route(call)
            except GatewayError as e:
                sent = await self._refuse(call, e)
            except TimeoutError:
                call.error = "client_stalled"
                raise ConnectionResetError("the client took nothing for too long") from None
            except (asyncio.CancelledError, ConnectionError):
                raise
            except Exception as e:  # noqa: BLE001 - the door: a fault of ours is told to the log, not to the client
                self._log.event("error", "internal error", request_id=call.id, fault=repr(e), where=_where(e))
                sent = await self._refuse(
                    call, GatewayError(Code.INTERNAL, "The gateway failed; its log has the reason.")
                )
        except (asyncio.CancelledError, ConnectionError):
            call.client_left = True
            raise
        finally:
            if call.reader is not None:
                call.reader.leave()
            self._record(call)
        return sent.keep_alive

    async def _route(self, call: Call) -> respond.Sent:
        path = call.request.path
        route = self._routes.get(path)
        if route is None:
            if not passes(path, call.request.raw_path):
                raise GatewayError(Code.NOT_FOUND, f"There is no {path[:200]!r} here. The API is under /v1.")
            call.endpoint = "passthrough"
            return await self._pass(call)
        method, call.endpoint, handler = route
        if call.request.method != method and not (method == "GET" and call.request.method == "HEAD"):
            call.allow = method
            raise GatewayError(Code.METHOD_NOT_ALLOWED, f"{path} takes {method}, not {call.request.method[:16]}.")
        return await handler(call)

    # -- generations ------------------------------------------------------------------------------

    def _generation(self, endpoint: Endpoint) -> Handler:
        async def handler(call: Call) -> respond.Sent:
            return await self._generate(call, await self._ask(call, endpoint))

        return handler

    async def _ask(self, call: Call, endpoint: Endpoint) -> Ask:
        """1 decode. The label of an endpoint is the endpoint's, under whatever path it came."""
        body = await read_body(call.request, self._settings, json=True)
        ask = decode(endpoint, body)
        call.ask, call.model, call.stream = ask, ask.model, ask.stream
        return ask

    async def _generate(self, call: Call, ask: Ask) -> respond.Sent:
        """2 policy, 4 key, 5 flights, 6 respond."""
        headers = call.request.headers
        share = sharing(
            ask,
            self._settings.share,
            cache_control=headers.get("cache-control", ""),
            override=headers.get("x-gateway-share", ""),
        )
        reader = self._join(call, ask, share)
        try:
            return await self._answer(call, reader, streamed=ask.stream and ask.endpoint != "embeddings")
        except Unfoldable:
            # A stream that only the engine can put into one body. Nothing has gone out: ask for the body itself.
            reader.leave()
            reader = self._join(call, ask, PRIVATE)
            return await self._answer(call, reader, streamed=False)

    def _join(self, call: Call, ask: Ask, share: Sharing) -> Subscriber:
        """A place at a Flight: one that is under way, or a new one."""
        streamed = ask.stream and ask.endpoint != "embeddings"
        key = None
        if share.shared:
            fold = ask.endpoint == "embeddings" or foldable(ask.endpoint, ask.fields)
            key = self._keyer.key(ask, tenant=tenant(call.request), fold=fold)
            flight = None if share.fresh else self._group.find(key, stream=streamed)
            if flight is not None:
                self._metrics.coalesced(ask.endpoint)
                call.reader = self._group.attach(
                    flight, usage=ask.include_usage, whole=not streamed, verdict="attached"
                )
                return call.reader
        headers = call.request.headers
        passed = [(name, headers[name]) for name in _FORWARDED if name in headers]
        plan = Plan(
            method="POST",
            path=PATHS[ask.endpoint],
            body=ask.body,
            mode=Mode.STREAM if streamed else Mode.WHOLE,
            request_id=call.id,
            headers=(("Content-Type", "application/json"), ("X-Request-Id", call.id), *passed),
            ask=ask,
            model=ask.model,
            key=key,
            fresh=share.fresh,
            usage_added=streamed and key is not None,
        )
        flight = self._group.launch(plan)
        call.reader = self._group.attach(
            flight,
            usage=ask.include_usage or key is None,
            whole=not streamed,
            verdict="miss" if share.shared else "bypass",
        )
        self._scheduler.submit(flight)
        return call.reader

    async def _answer(self, call: Call, reader: Subscriber, *, streamed: bool) -> respond.Sent:
        stall = self._settings.client_stall_timeout
        if streamed:
            await reader.ready()
        else:
            await reader.ended()
        headers = [("x-request-id", call.id), ("x-gateway-cache", reader.verdict)]
        if reader.flight.stored_at is not None:
            headers.append(("age", str(max(0, int(time.time() - reader.flight.stored_at)))))
        send = respond.stream if streamed else respond.whole
        sent = await send(call.request, reader, headers, stall)
        call.status, call.bytes_out = sent.status, sent.bytes
        return sent

    async def _embed(self, call: Call) -> respond.Sent:
        """`/v1/embeddings` under a short name; where no engine can embed, a marked stub if that is wanted."""
        ask = await self._ask(call, "embeddings")
        stub = self._settings.embed_stub
        try:
            reader = self._join(call, ask, sharing(ask, self._settings.share))
            await reader.ended()
            head = reader.flight.head
            if reader.flight.error is not None:
                raise reader.flight.error
            if head is None or head.status not in _CANNOT_EMBED or _names_model(reader.flight.log):
                return await self._answer(call, reader, streamed=False)
            if not stub:
                raise GatewayError(
                    Code.EMBEDDINGS_UNAVAILABLE,
                    "No engine behind this gateway can embed; add a --backend that serves an embedding model.",
                )
        except GatewayError as e:
            if not stub or e.code is Code.QUEUE_FULL:
                raise
        return await self._reply(call, 200, _stub(ask), [("x-gateway-stub", "1")])

    # -- everything else --------------------------------------------------------------------------

    async def _pass(self, call: Call) -> respond.Sent:
        """Any other path of vLLM's: bytes and headers through, never shared. A Flight with one reader."""
        request = call.request
        body = await read_body(request, self._settings, json=False)
        try:
            call.model = msgspec.json.decode(body, type=_Model).model if body else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            call.model = None  # not for us to judge; the engine will
        plan = Plan(
            method=request.method,
            path=request.raw_path,
            body=body,
            mode=Mode.RAW,
            request_id=call.id,
            headers=(*forwardable(request.raw_headers), ("X-Request-Id", call.id)),
            model=call.model,
        )
        flight = self._group.launch(plan)
        call.reader = self._group.attach(flight, usage=True, whole=False, verdict="bypass")
        self._scheduler.submit(flight)
        return await self._answer(call, call.reader, streamed=True)

    async def _models(self, call: Call) -> respond.Sent:
        if not self._backends.ready:
            raise GatewayError(Code.NO_BACKEND, "No engine answers, so no model is served.", retry_after=1)
        return await self._reply(call, 200, {"object": "list", "data": self._backends.models()})

    async def _health(self, call: Call) -> respond.Sent:
        return await self._reply(call, 200, {"status": "ok"})

    async def _ready(self, call: Call) -> respond.Sent:
        if not self._backends.ready:
            raise GatewayError(Code.NO_BACKEND, "No engine answers.", retry_after=1)
        return await self._reply(call, 200, {"status": "ready"})

    async def _metrics_page(self, call: Call) -> respond.Sent:
        body, kind = self._metrics.render(call.request.headers.get("accept", ""))
        return await self._send(call, 200, [("content-type", kind)], body)

    async def _reply(self, call: Call, status: int, answer: object, headers: respond.Headers = ()) -> respond.Sent:
        return await self._send(
            call, status, [("content-type", "application/json"), *headers], msgspec.json.encode(answer)
        )

    async def _refuse(self, call: Call, error: GatewayError) -> respond.Sent:
        """An error as OpenAI's clients know it."""
        call.error = error.code.code
        headers = respond.error_headers(error)
        if call.allow is not None:
            headers.append(("allow", call.allow))
        sent = await self._send(call, error.status, headers, error.json())
        if error.code is Code.BODY_TIMEOUT and call.request.transport is not None:
            call.request.transport.close()  # aiohttp would wait on for the rest of the body
        return sent

    async def _send(self, call: Call, status: int, headers: list[tuple[str, str]], body: bytes) -> respond.Sent:
        call.status = status
        headers.append(("x-request-id", call.id))
        sent = await respond.write(call.request, status, headers, body, self._settings.client_stall_timeout)
        call.bytes_out = sent.bytes
        return sent

    def _record(self, call: Call) -> None:
        """One count and one line for the request, after all is said."""
        logged = call.error is not None or call.endpoint not in ("health", "ready", "metrics")
        call.tell(self._metrics, self._log if logged else None, show_prompt=self._settings.log_prompts)


def tenant(request: web.BaseRequest) -> bytes:
    """Whose answers these are. Without keys of our own, a caller's credential, hashed, keeps answers apart."""
    credential = request.headers.get("authorization")
    return hashlib.sha256(credential.encode("utf-8", "surrogateescape")).digest() if credential else b""


def _names_model(log: list[bytes]) -> bool:
    """Whether a 404 is about the model, not about embedding."""
    try:
        error = msgspec.json.decode(b"".join(log), type=_Error).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return error is not None and error.get("param") == "model"


def _stub(ask: Ask) -> dict[str, object]:
    """A vector that says it is none: zeros, marked, for clients that only need the shape."""
    return {
        "object": "list",
        "stub": True,
        "model": ask.model,
        "data": [{"object": "embedding", "index": 0, "embedding": [0.0] * 8}],
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }


def _where(e: BaseException) -> str:
    """The innermost place of a fault, for the log."""
    at = e.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return f"{at.tb_frame.f_code.co_filename.rpartition('/')[2]}:{at.tb_lineno}" if at is not None else ""

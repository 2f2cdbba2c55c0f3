"""Requests and streams that are too large for the event loop: parsed, checked or folded in a child process. A
small request pays one comparison for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Final

from proxy.access import (
    BUDGET,
    AccessPolicy,
    AccessRules,
    ApiRequestJob,
    EmbedsChatJob,
    FoldJob,
    Found,
    PageJob,
    RawJob,
    Terms,
    TextsJob,
    sizes_of,
    work,
)
from proxy.access.denylist import DenyList
from proxy.config import ModelNames, Settings
from proxy.errors import GatewayError
from proxy.flights import Flight, headers_in_common
from proxy.server.context import RequestContext
from proxy.server.handlers.relay import engine_headers, passed_on
from proxy.server.offload.pool import Offload
from proxy.telemetry import Log
from proxy.upstream import session_of
from proxy.wire import ApiRequest, Endpoint
from proxy.wire.fold import Unfoldable, forces_tool, many_frames
from proxy.wire.http import Media

INLINE: Final = 16_384
"""Bytes up to which a body is parsed on the event loop without an estimate: 17 ms in the worst known case."""
LEAST: Final = 1024  # the same, at least, however costly the deny list is


class LargeRequests:
    """One for a gateway. Bodies of up to `inline` bytes are parsed on the loop."""

    def __init__(
        self,
        settings: Settings,
        rules: AccessRules,
        access_policy: AccessPolicy | None,
        log: Log,
        *,
        scope: Callable[[RequestContext], bytes],
        owner: Callable[[RequestContext], Hashable | Callable[[], Hashable]],
    ) -> None:
        self._settings = settings
        self._rules = rules
        self._access_policy = access_policy
        self._log = log
        self._scope = scope
        self._owner = owner
        self._passed_on = passed_on(settings)
        self._folds: dict[Flight, asyncio.Task[None]] = {}
        self._deny: DenyList | None = None
        self._names: ModelNames | None = None
        self._salted = False
        self._terms: Terms | None = None
        self.inline = INLINE
        self.pool = Offload(self._in_force, on_event=self._tell)
        self._in_force()

    async def close(self) -> None:
        await self.pool.close()
        await asyncio.gather(*self._folds.values(), return_exceptions=True)

    def renew(self) -> None:
        """Use the rules now in force."""
        self._in_force()

    def heavy(self, body: bytes) -> bool:
        """Whether parsing a body would block the loop for too long. Called only above `inline`."""
        return work(body, None if self._deny is None else self._deny.weight) > BUDGET

    async def read(self, context: RequestContext, endpoint: Endpoint, body: bytes, model: str = "") -> ApiRequest:
        """A request, decoded and checked. `model` answers in place of the one that the body names. Raises
        GatewayError."""
        found, sent = await self.pool.do(self._job(context, endpoint, model), body, self._whose(context))
        return self._asked(context, endpoint, found, sent or body)

    async def page(self, context: RequestContext, body: bytes) -> tuple[ApiRequest, list[float]]:
        """A request for many readers, and the delay of each. Raises GatewayError."""
        found, sent = await self.pool.do(PageJob(self._job(context, "chat")), body, self._whose(context))
        return self._asked(context, "chat", found, sent), found.delays

    async def raw(self, context: RequestContext, media: Media, body: bytes) -> tuple[bytes, str | None, bool]:
        """The body of a request that passes through, checked; the client's `cache_salt`, taken out; whether it
        takes one. Sets the context's model and cost. Raises GatewayError."""
        request = context.request
        job = RawJob(request.path, media.kind, media.boundary, session_of(request.headers))
        found, sent = await self.pool.do(job, body, self._whose(context))
        self._told(found, context)
        context.describe_raw(found.model, found.raw)
        context.price(found.cost)
        if self._access_policy is not None:
            self._access_policy.check_found(context, found, raw=True)
        if found.refusal is not None:
            raise found.refusal.error()
        if found.target:
            context.answered_by(found.target)
        return sent or body, found.salt, found.takes_salt

    async def raw_for(self, context: RequestContext, media: Media, body: bytes, model: str) -> bytes:
        """The body of a checked request that passes through, for another model. Raises GatewayError."""
        job = RawJob(context.request.path, media.kind, media.boundary, model=model)
        found, sent = await self.pool.do(job, body, self._whose(context))
        self._told(found, context)
        if found.refusal is not None:
            raise found.refusal.error()
        return sent or body

    async def embeds_chat(self, context: RequestContext, body: bytes) -> bool:
        """`wire.embeds_chat`. Raises GatewayError."""
        found, _ = await self.pool.do(EmbedsChatJob(), body, self._whose(context))
        self._told(found, context)
        if found.refusal is not None:
            raise found.refusal.error()
        return found.embeds_chat

    async def denied(self, flight: Flight, body: bytes) -> int:
        """The line of a rule that the texts of an answer break; 0: none. Raises GatewayError 503."""
        found, _ = await self.pool.do(TextsJob(), body, ("answer", id(flight)))
        if found.refusal is not None:
            raise found.refusal.error()
        return found.denied

    def folds(self, flight: Flight) -> bool:
        """Whether a landed stream is so long that its fold would block the loop."""
        return flight.folded is None and flight.error is None and many_frames(flight.log)

    async def fold(self, flight: Flight) -> None:
        """Fold a landed stream into one body, once for all readers. Raises Unfoldable."""
        task = self._folds.get(flight)
        if task is None:
            task = self._folds[flight] = asyncio.create_task(self._fold(flight))
            task.add_done_callback(lambda _: self._folds.pop(flight, None))
        await asyncio.shield(task)
        if flight.folded is None:
            raise Unfoldable("it could not be folded")

    # -- inside -----------------------------------------------------------------------------------

    def _in_force(self) -> Terms:
        """The terms in force: the same object until the rules change."""
        deny, names, salted = self._rules.deny, self._rules.names, bool(self._rules.salt)
        known = deny is self._deny and names is self._names and salted == self._salted
        if self._terms is None or not known:
            settings = self._settings
            self._deny, self._names, self._salted = deny, names, salted
            self._terms = Terms(
                share=settings.share,
                routing=settings.routing,
                assumed=settings.rate_limit_assumed_tokens,
                sizes=sizes_of(settings),
                deny=None if deny is None else deny.source,
                names=names,
                salted=salted,
            )
            # A byte may become six characters, and its form alone takes 0.4 µs.
            self.inline = INLINE if deny is None else max(LEAST, min(INLINE, int(5e6 / (400 + 6 * deny.weight))))
        return self._terms

    def _job(self, context: RequestContext, endpoint: Endpoint, model: str = "") -> ApiRequestJob:
        headers = context.request.headers
        return ApiRequestJob(
            endpoint,
            _encodable(", ".join(headers.getall("cache-control", ()))),
            _encodable(", ".join(headers.getall("x-gateway-share", ()))),
            self._scope(context),
            session_of(headers),
            tuple(
                (name, _encodable(value))
                for name, value in headers_in_common(engine_headers(headers, self._passed_on))
            ),
            model,
        )

    def _asked(self, context: RequestContext, endpoint: Endpoint, found: Found, body: bytes) -> ApiRequest:
        self._told(found, context)
        context.describe(found.model, stream=found.stream)
        if self._access_policy is not None:
            self._access_policy.check_found(context, found)
        if found.refusal is not None:
            raise found.refusal.error()
        if found.target:
            context.answered_by(found.target)
        api_request = found.api_request(endpoint, body)
        context.accept(api_request)
        return api_request

    def _told(self, found: Found, context: RequestContext) -> None:
        if found.fault:
            self._log.event("error", "internal error", request_id=context.id, fault=found.fault, where="reading")

    def _whose(self, context: RequestContext) -> Hashable:
        owner = self._owner(context)
        return owner() if callable(owner) else owner

    async def _fold(self, flight: Flight) -> None:
        api_request = flight.spec.api_request
        if api_request is None or api_request.endpoint == "embeddings":
            return
        job = FoldJob(api_request.endpoint, forces_tool(api_request.fields), flight.shape)
        try:
            found, body = await self.pool.do(job, b"".join(flight.log), ("fold", id(flight)))
        except GatewayError as e:
            self._log.event("warning", "a stream was not folded", detail=e.message)
            return
        if found.fault:
            self._log.event("error", "internal error", fault=found.fault, where="fold")
        if found.refusal is None and body:
            flight.keep_fold(body)

    def _tell(self, what: str, detail: str) -> None:
        self._log.event("warning", f"a reading process {what}", detail=detail)


def _encodable(value: str) -> str:
    """A header's value as a job can carry it: one byte that is not UTF-8 would fail the whole job."""
    return value.encode("utf-8", "surrogateescape").decode("latin-1")

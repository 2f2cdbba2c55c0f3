"""Clients that come back to a stream: what they ask for with a request, and `/v1/streams/NAME`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from proxy.access import AccessPolicy, PriorityPolicy, tenant_of
from proxy.access.ratelimit import Admission
from proxy.errors import Code, GatewayError
from proxy.flights import FlightSpec, QueueState, Subscriber
from proxy.flights.resuming import Position, Record, Request, Stream, Streams, read_position
from proxy.server import respond
from proxy.server.context import RequestContext, Resumable
from proxy.server.respond import Sent
from proxy.server.responder import Responder

RESUME: Final = "x-gateway-resume"
_WISH: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)[ \t]*(;[ \t]*ids)?")
_SHOWN: Final = 100  # characters of a client's text in an error


class Wish(NamedTuple):
    """What a client asks for by `x-gateway-resume`."""

    grace: float  # seconds
    numbered: bool  # events with ids


class Resumption:
    """Streams to which their clients may come back."""

    def __init__(self, streams: Streams, responder: Responder, priority_policy: PriorityPolicy) -> None:
        self._streams = streams
        self._responder = responder
        self._priority_policy = priority_policy

    def wish(self, context: RequestContext) -> Wish | None:
        """None: the client asks for no time. Raises GatewayError 400."""
        values = context.request.headers.getall(RESUME)
        words = _WISH.fullmatch(values[0].strip()) if len(values) == 1 else None
        if words is None:
            raise GatewayError(
                Code.INVALID_HEADER,
                f"{RESUME}: {', '.join(values)[:_SHOWN]!r} is not a number of seconds, as in '30' or '30; ids'.",
                param=RESUME,
            )
        grace = float(words[1])
        return Wish(min(grace, self._streams.longest), words[2] is not None) if grace else None

    async def stream(
        self, context: RequestContext, reader: Subscriber, wish: Wish, generation: Request, *, late: bool
    ) -> Sent:
        """Answer with a stream, to which its client may come back unless too many are held."""
        lines = context.request.headers.getall("cache-control", ())
        private = any("no-store" in line.lower() for line in lines)
        tenant = tenant_of(context)
        stream = self._streams.hold(
            tenant,
            self._priority_policy.current_fairness_key(context.caller, context.request),
            reader,
            wish.grace,
            generation,
            numbered=wish.numbered,
            private=private,
        )
        if stream is None:
            return await self._responder.stream(context, reader, late=late)
        context.may_resume(_resumable(stream))
        try:
            return await self._responder.stream(context, reader, late=late)
        finally:
            self._streams.leaves(stream, reader)
            if context.hold is not None:
                self._streams.give_slot(tenant, stream.name, context.hold.lend())


class StreamHandler:
    """`GET /v1/streams/NAME`: the rest of a stream. `DELETE`: its client does not come back."""

    def __init__(
        self,
        streams: Streams,
        responder: Responder,
        *,
        admission: Admission | None,
        access_policy: AccessPolicy | None,
        priority_policy: PriorityPolicy,
        remake: Callable[[RequestContext, Record], FlightSpec],
    ) -> None:
        """`remake` gives the spec of a Flight for a stream that another gateway holds."""
        self._streams = streams
        self._responder = responder
        self._admission = admission
        self._access_policy = access_policy
        self._priority_policy = priority_policy
        self._remake = remake

    async def __call__(self, context: RequestContext) -> Sent:
        if context.request.method == "DELETE":
            return await self._delete(context)
        position = _position(context)
        if self._admission is None:
            return await self._answer(context, position)
        tenant, name = tenant_of(context), _name(context)
        slots, slot = self._streams.take_slot(tenant, name)
        try:
            await self._admission.head(context, slots=slots)
            return await self._answer(context, position)
        finally:
            if slot is None and context.hold is not None:
                slot = context.hold.lend()
            self._streams.give_slot(tenant, name, slot)

    async def _delete(self, context: RequestContext) -> Sent:
        if self._admission is not None:
            await self._admission.head(context, slots=0)
        name = _name(context)
        await self._streams.delete(tenant_of(context), name)
        return await self._responder.reply(context, 200, {"id": name, "object": "stream", "deleted": True})

    async def _answer(self, context: RequestContext, position: Position) -> Sent:
        request = context.request
        priority, owner = self._priority_policy.turn(context.caller, request)
        stream = await self._streams.find(
            tenant_of(context),
            _name(context),
            self._priority_policy.current_fairness_key(context.caller, request),
            lambda record: self._remake(context, record),
            QueueState(owner=owner, priority=priority),
        )
        reader = None
        try:
            context.describe(stream.request.asked_model, stream=True)
            if self._access_policy is not None:
                self._access_policy.check_model(context)
            resumable = _resumable(stream, position.frames)
            if request.method == "HEAD":
                context.begin_response(200)
                return respond.head_only(request, [*context.headers(), *resumable.headers()])
            reader = await self._streams.read_from(stream, position)
            context.resumes(resumable, reader)
            return await self._responder.stream(context, reader)
        finally:
            self._streams.leaves(stream, reader)


def _name(context: RequestContext) -> str:
    return context.request.path.rpartition("/")[2]


def _resumable(stream: Stream, after: int | None = None) -> Resumable:
    return Resumable(stream.name, stream.entry.grace, after, stream.numbered, stream.seams)


def _position(context: RequestContext) -> Position:
    """What the client has: `Last-Event-ID`, which a browser sends with the URL that it was given, goes before
    `after`. Raises GatewayError 400."""
    request = context.request
    values = request.headers.getall("last-event-id", ())
    where = "last-event-id"
    if not any(values):
        where = "after"
        query = parse_qsl(request.raw_path.partition("?")[2], keep_blank_values=True)
        unknown = next((name for name, _ in query if name != "after"), None)
        if unknown is not None:
            raise GatewayError(
                Code.INVALID_VALUE,
                f"The parameter {unknown[:_SHOWN]!r} is not known here: 'after' is.",
                param="after",
            )
        values = [value for _, value in query] or ["0"]
    position = read_position(values[0].strip()) if len(values) == 1 else None
    if position is None:
        raise GatewayError(
            Code.INVALID_HEADER if where == "last-event-id" else Code.INVALID_VALUE,
            f"{where}: {', '.join(values)[:_SHOWN]!r} is neither the id of an event nor a count of events, a "
            "whole number from 0.",
            param=where,
        )
    return position

"""Writes the responses of all handlers: JSON of the gateway's own, errors, and a Flight as a stream or one body.
Whatever a slow client has not taken yet is charged to the memory budget."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import Final

import msgspec
from aiohttp import HttpVersion11

from proxy.access import PriorityPolicy
from proxy.config import Settings
from proxy.errors import Code, GatewayError
from proxy.flights import SLICE_BYTES, Held, Memory, Mode, Subscriber
from proxy.flights.resuming import Turns
from proxy.server import respond
from proxy.server.context import RequestContext
from proxy.server.deadline import end_early
from proxy.server.offload.large import LargeRequests
from proxy.server.respond import Body, Headers, Remainder, Sent
from proxy.server.waits import Waits
from proxy.wire.event_apis import is_messages

_STREAM: Final = Mode.STREAM  # a global is cheaper to look up than a member of a class


class Responder:
    """One for a gateway. Each method writes one response and records it in the request's context."""

    def __init__(
        self,
        settings: Settings,
        priority_policy: PriorityPolicy,
        memory: Memory | None,
        large: LargeRequests | None,
    ) -> None:
        self._stall = settings.client_stall_timeout
        self._keepalive = settings.keepalive_seconds
        self._priority_policy = priority_policy
        self._memory = memory
        self._large = large
        self._turns = Turns()
        self._waits = Waits(settings.keepalive_seconds)

    # -- answers of the gateway's own -------------------------------------------------------------

    async def reply(self, context: RequestContext, status: int, answer: object, headers: Headers = ()) -> Sent:
        """A JSON value."""
        ours = [("content-type", "application/json"), *headers, *context.headers()]
        return await self.send(context, status, ours, msgspec.json.encode(answer))

    async def refuse(self, context: RequestContext, error: GatewayError) -> Sent:
        """An error, in the form of the API of its path."""
        context.refused(error, self._priority_policy.address(context.caller, context.request))
        headers = [*respond.error_headers(error), *context.headers()]
        request = context.request
        # A client that waits for a 100 may or may not send its body after this: the connection cannot be kept.
        expects = "expect" in request.headers and not request.content.is_eof()
        last = expects or request.method == "CONNECT" or error.code in (Code.SHUTTING_DOWN, Code.BODY_TIMEOUT)
        body = error.anthropic_json(context.id) if is_messages(request.path) else error.json()
        return await self.send(context, error.status, headers, body, keep=not last)

    async def end_early(self, context: RequestContext, error: GatewayError) -> Sent:
        """The end of a request whose task the gateway cancelled: the client gets the error. Raises CancelledError
        where the client left at the same time."""
        if context.request.task.uncancel():
            raise asyncio.CancelledError
        try:
            return end_early(context, error)
        except GatewayError as e:
            return await self.refuse(context, e.with_traceback(None))

    async def send(
        self,
        context: RequestContext,
        status: int,
        headers: Headers,
        body: Body,
        *,
        keep: bool = True,
        shared: bool = False,
    ) -> Sent:
        """`keep`: the connection may be kept. `shared`: the body belongs to a Flight or to the process, so this
        request does not pay for its memory."""
        context.begin_response(status)
        sent, left = respond.write(context.request, status, headers, body, keep=keep)
        if left is not None:
            context.wrote(sent.bytes)
            await self._rest(context, left, 0 if shared else len(body))
        return sent

    async def _rest(self, context: RequestContext, left: Remainder, size: int) -> None:
        """The rest of a body, `size` bytes of which are in memory for this request alone."""
        own = None
        if size > SLICE_BYTES and self._memory is not None:
            own = Held(self._memory, self._owner(context), "answers")
            if not own.resize(size) and context.request.transport is not None:
                context.request.transport.abort()
                raise ConnectionResetError("no memory is left for an answer that the client does not read")
        try:
            await respond.write_rest(context.request, left, partial(self.wait_writable, context))
        finally:
            if own is not None:
                own.release()

    # -- answers of a Flight ----------------------------------------------------------------------

    async def stream(self, context: RequestContext, reader: Subscriber, *, late: bool = False) -> Sent:
        """A Flight's frames or bytes as they arrive. `late`: its client has waited long already. Raises the
        Flight's GatewayError where nothing was sent."""
        writable = partial(self.wait_writable, context)
        if not reader.visible and (late or not await self._ready(context, reader)):
            headers = context.headers(reader)
            context.begin_response(200)
            sent, code = await respond.stream_late(
                context.request, reader, headers, writable, self._keepalive, context.resumable
            )
            if code is not None:
                context.failed(code)
            return sent
        if reader.flight.mode is Mode.WHOLE:  # an error, or an engine that does not stream
            return await self.body(context, reader)
        headers, limited = context.headers(reader), context.hold is not None
        passed = reader.flight.spec.event_api is not None  # its first events come before its first token
        every = self._keepalive if passed and context.request.version >= HttpVersion11 else 0.0
        resumable = context.resumable
        if resumable is not None and (resumable.numbered or resumable.after is not None):
            writable = partial(self._writable_in_turn, context)
            await self._turns.take()
        sent = await respond.stream(
            context.request, reader, headers, writable, limited=limited, every=every, resumable=resumable
        )
        context.begin_response(sent.status)
        return sent

    def _ready(self, context: RequestContext, reader: Subscriber) -> Awaitable[bool]:
        """Wait until there is something to answer with. False: the client has waited long, and gets its head and
        comments from now on. Only a stream of events can have comments, in chunks of HTTP/1.1."""
        events = reader.flight.spec.mode is _STREAM and context.request.version >= HttpVersion11
        return self._waits.ready(reader) if events and self._keepalive else reader.ready()

    async def body(self, context: RequestContext, reader: Subscriber) -> Sent:
        """A Flight as one JSON body, once it has ended. Raises the Flight's GatewayError, or Unfoldable."""
        if not reader.flight.ended:
            await reader.complete()
        flight = reader.flight
        if flight.mode is _STREAM and self._large is not None and self._large.folds(flight):
            await self._large.fold(flight)
        status, headers, body = respond.json_response(flight, limited=context.hold is not None)
        ours = context.headers(reader)
        context.begin_response(status)
        sent, left = respond.write(context.request, status, ours, body, passed=tuple(headers))
        if left is not None:
            context.wrote(sent.bytes)
            await self._rest(context, left, 0)
        return sent

    # -- backpressure -----------------------------------------------------------------------------

    async def wait_writable(self, context: RequestContext) -> None:
        """Wait until the client has taken what was written, which is charged to the memory budget meanwhile.
        Raises TimeoutError where it takes nothing for too long."""
        if context.unread is None and self._memory is not None:
            context.charge_unread(Held(self._memory, self._owner(context), "unread"))
        await respond.wait_writable(context.request, self._stall, context.unread)

    async def _writable_in_turn(self, context: RequestContext) -> None:
        await self.wait_writable(context)
        await self._turns.take()

    def _owner(self, context: RequestContext) -> object:
        return self._priority_policy.current_fairness_key(context.caller, context.request)

"""One client request while it is answered: its sender, its demands, its resources, and what is logged."""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Final, Protocol

import msgspec

from proxy.access import OPERATING, Caller, CorsHeaders
from proxy.access.ratelimit import Reservation
from proxy.errors import GatewayError
from proxy.flights import Held, Mode, Pipe, Subscriber
from proxy.flights.resuming import Numbered, Seam
from proxy.server.listener.request import Request
from proxy.telemetry import Log, Metrics, Recorded, RequestRecord
from proxy.wire import NO_FACTS, ApiRequest, RawFacts, settable

MAX_MODEL: Final = 256  # characters of a model's name that are logged
MAX_METHOD: Final = 16  # the same of a method
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")


def request_id(given: str | None) -> str:
    """The client's own id where it is a plain token of at most 128 characters, else a new one."""
    return given if given is not None and _ID.fullmatch(given) else os.urandom(16).hex()


class Traced(Protocol):
    """The trace of a request; see `tracing.py`."""

    @property
    def id(self) -> str | None: ...

    def reads(self, context: RequestContext, reader: Subscriber) -> None: ...

    def ended(self, context: RequestContext) -> None: ...


class Resumable(msgspec.Struct, frozen=True):
    """A stream to which a client may come back."""

    name: str
    grace: float  # seconds
    after: int | None = None  # events that its client has; None: it has not come back
    numbered: bool = False  # its events have ids
    seams: Sequence[Seam] = ()  # of the stream, which may grow

    def pipe(self, pipe: Pipe) -> Pipe:
        """Where its stream is written to, before `pipe`."""
        return Numbered(pipe, self.after or 0, self.seams) if self.numbered else pipe

    def headers(self) -> list[tuple[str, str]]:
        return [("x-gateway-stream", self.name), ("x-gateway-resume", f"{self.grace:g}")]


@settable
class RequestContext(msgspec.Struct, eq=False):
    """One request at the gateway. A Struct, made in C: a dataclass with these fields takes 3 µs."""

    request: Request
    id: str
    endpoint: str = "unknown"
    model: str | None = None  # of the engines, once it is read; before, as the client names it
    stream: bool = False
    api_request: ApiRequest | None = None
    caller: Caller | None = None  # None: no key was required
    raw: RawFacts = NO_FACTS  # of one that is passed through
    cost: tuple[int, int] | None = None  # tokens of the prompt and of the completion, where they are known
    hold: Reservation | None = None  # its part of the rate limits
    reader: Subscriber | None = None
    held: Held | None = None  # memory charged for its body
    unread: Held | None = None  # memory charged for its unread answer, unless others share it
    status: int = 0
    error: str | None = None
    allow: str | None = None
    bytes_out: int = 0
    client_left: bool = False
    endless: bool = False  # its answer lasts until the client leaves
    deadline: float = math.inf  # by the loop's clock, where the client gave one
    client: str | None = None  # its address, where it was refused
    named: bool = True  # its id may be the client's own
    trace: Traced | None = None
    admin: bool = False  # it came through the operators' listener
    cors: CorsHeaders = ()  # of its answer, unless it is for operators
    forget: Callable[[], None] | None = None  # called when it is closed
    ending: GatewayError | None = None  # why it is ended early
    asked_model: str | None = None  # the client's name for the model, where another one answers
    fallback_from: str | None = None  # the model that could not answer
    resumable: Resumable | None = None  # its client may come back to its stream, or has come back
    began: float = msgspec.field(default_factory=time.monotonic)

    def cut(self, error: GatewayError) -> bool:
        """End it: its task is cancelled, and answers with this error. False: it is being ended already."""
        task = self.request.task
        if self.ending is not None or task.done():
            return False
        self.ending = error
        task.cancel()
        return True

    # -- what becomes known of it -----------------------------------------------------------------

    def routed(self, endpoint: str) -> None:
        """The endpoint's label is known."""
        self.endpoint = endpoint

    def allows(self, methods: str) -> None:
        """The response has this `Allow` header."""
        self.allow = methods

    def identified(self, caller: Caller) -> None:
        """Authentication succeeded."""
        self.caller = caller

    def within(self, seconds: float) -> None:
        """The client's own deadline, in seconds from now."""
        self.deadline = asyncio.get_running_loop().time() + seconds

    def describe(self, model: str | None, *, stream: bool = False) -> None:
        """The body is decoded; it is not checked yet."""
        self.model, self.stream = model, stream

    def describe_raw(self, model: str | None, facts: RawFacts) -> None:
        """`describe` for a body that is passed through."""
        self.model, self.stream, self.raw = model, facts.stream, facts

    def accept(self, request: ApiRequest) -> None:
        """The body is decoded and checked, and possibly lowered in its demands."""
        self.api_request, self.model, self.stream = request, request.model, request.stream

    def answered_by(self, model: str) -> None:
        """Another model answers than the one that the client named."""
        if model != self.model:
            self.asked_model = self.asked_model or self.model
            self.model = model

    def falls_back(self, model: str) -> None:
        """No engine could serve the model; this one answers in its place."""
        self.fallback_from = self.fallback_from or self.model
        self.answered_by(model)

    def price(self, cost: tuple[int, int]) -> None:
        """Tokens of the prompt and of the completion, as rate limits estimate them."""
        self.cost = cost

    def traced(self, trace: Traced) -> None:
        """It has a span."""
        self.trace = trace

    # -- resources it holds until it is closed ----------------------------------------------------

    def charge_upload(self, held: Held) -> Held:
        """The body's part of the memory budget."""
        self.held = held
        return held

    def charge_unread(self, held: Held) -> None:
        """The part of the memory budget for bytes that the client has not taken."""
        self.unread = held

    def reserves(self, reserve: Callable[[], Reservation | None]) -> Reservation | None:
        """Hold what `reserve` returns of the rate limits. Nothing can fail between the two."""
        self.hold = hold = reserve()
        return hold

    def when_closed(self, forget: Callable[[], None]) -> None:
        """Call this when it is closed."""
        self.forget = forget

    def attach_reader(self, reader: Subscriber) -> None:
        """It reads a Flight, its own or another request's."""
        self.reader = reader
        if self.hold is not None:
            self.hold.joins(reader)
        if self.trace is not None:
            self.trace.reads(self, reader)

    def may_resume(self, resumable: Resumable) -> None:
        """Its client may come back to its stream."""
        self.resumable = resumable

    def resumes(self, resumable: Resumable, reader: Subscriber) -> None:
        """It reads the rest of a stream, which another request has paid for."""
        self.resumable, self.reader = resumable, reader
        if self.trace is not None:
            self.trace.reads(self, reader)

    # -- its response -----------------------------------------------------------------------------

    def begin_response(self, status: int, *, endless: bool = False) -> None:
        """`endless`: the answer lasts until the client leaves, which is no 499 then."""
        self.status = status
        self.endless = endless

    def wrote(self, sent: int) -> None:
        """So many bytes were written or are about to be, framing included: for the log, should it not end as it
        began."""
        self.bytes_out = sent

    def refused(self, error: GatewayError, client: str | None = None) -> None:
        """The response is this error. `client`: the address to log."""
        self.error, self.client = error.code.code, client

    def failed(self, code: str) -> None:
        """The answer ended with this error, possibly after a part of it had been sent."""
        self.error = code

    def disconnected(self, *, stalled: bool = False) -> None:
        """The client left, or (`stalled`) was disconnected because it took nothing for too long."""
        self.client_left = True
        if stalled and self.error is None:
            self.error = "client_stalled"

    def headers(self, answer: Subscriber | None = None) -> list[tuple[str, str]]:
        """The gateway's own headers of every response, and of a Flight's `answer`."""
        ours = [("x-request-id", self.id)]
        if self.endpoint == "messages":
            ours.append(("request-id", self.id))  # Anthropic's name for it, which its clients show
        if self.allow is not None:
            ours.append(("allow", self.allow))
        if self.hold is not None:
            ours += self.hold.headers()
        if self.cors and self.endpoint not in OPERATING:
            ours += self.cors
        if self.asked_model is not None and self.model is not None:
            ours.append(("x-gateway-model", self.model))
            if self.fallback_from is not None:
                ours.append(("x-gateway-fallback", self.fallback_from))
        if answer is not None:
            flight = answer.flight
            ours.append(("x-gateway-cache", "attached" if answer.attached else flight.origin))
            if self.resumable is not None and flight.mode is Mode.STREAM:
                ours += self.resumable.headers()
            if flight.items is not None:
                ours.append(("x-gateway-cached-items", str(flight.items)))
            if flight.stored_at is not None:
                ours.append(("age", str(max(0, int(time.time() - flight.stored_at)))))
        return ours

    def close(self) -> None:
        """Leave the Flight and give memory and unused quota back. Safe after any outcome, and to call again."""
        if self.forget is not None:
            self.forget()
        try:
            if self.held is not None:
                self.held.release()
            if self.unread is not None:
                self.unread.release()
        finally:
            try:
                if self.reader is not None:
                    self.reader.leave()
            finally:
                if self.hold is not None:
                    self.hold.close(answered=0 < self.status < 400)

    def whose(self) -> str:
        """The key's id, or the address of the connection's peer."""
        return self.caller.id if self.caller is not None else self.request.remote or ""

    @property
    def ttft_ms(self) -> float | None:
        """To the first token, as this client saw it."""
        first = self.reader.flight.times.first if self.reader is not None else None
        return None if first is None else round(max(0.0, first - self.began) * 1000, 3)

    @property
    def verdict(self) -> str:
        return self.reader.verdict if self.reader is not None else "bypass"

    def failure(self) -> str | None:
        """The error's code: of a refusal, or of a stream that broke after its head had gone out."""
        if self.error is None and self.reader is not None:
            flight = self.reader.flight
            return flight.told_error if flight.error is None else flight.error.code.code
        return self.error

    def recorded(self) -> Recorded:
        """The request for a recording."""
        total = time.monotonic() - self.began
        flight = None if self.reader is None else self.reader.flight
        usage = None if flight is None or flight.estimated else flight.usage
        return Recorded(
            at=round(time.time() - total, 6),
            endpoint=self.endpoint,
            model=self.model,
            stream=self.stream,
            status=self.status,
            verdict=self.verdict,
            total_ms=round(total * 1000, 3),
            ttft_ms=self.ttft_ms,
            prompt_tokens=None if usage is None else usage.prompt_tokens,
            completion_tokens=None if usage is None else usage.completion_tokens,
            left=self.client_left,
        )

    def record_outcome(
        self,
        metrics: Metrics,
        log: Log | None,
        sent: int = 0,
        *,
        show_prompt: bool,
        owner: Callable[[], Hashable] | None = None,
    ) -> None:
        """Count the request and, where `log` is given, log it. `sent`: bytes of its whole response, framing
        included; 0 where it did not end. The log shares its buffer fairly among owners."""
        began = self.began
        total = time.monotonic() - began
        status = 499 if self.client_left and (self.error or not self.endless) else self.status
        model = self.model
        if model is not None and len(model) > MAX_MODEL:
            model = model[:MAX_MODEL] + "…"
        reader, error = self.reader, self.error
        verdict, items, sent_as = "bypass", None, self.id  # not by the properties: three Python calls less
        queue, ttft = 0.0, None  # seconds; to the first token as this client saw it
        prompt = completion = source = backend = continued = leader = None
        attempts = 1
        if reader is not None:
            flight = reader.flight
            verdict = "attached" if reader.attached else flight.origin
            if error is None:
                error = flight.told_error if flight.error is None else flight.error.code.code
            items, times, usage = flight.items, flight.times, flight.usage
            if times.dispatched is not None:
                sent_as = flight.carried_as or flight.spec.request_id
            left = times.dispatched or (times.first if flight.leader else None) or times.ended or began
            queue = left - began
            if not 0.0 <= queue <= total:  # `min` and `max` take 0.2 µs each
                queue = 0.0 if queue < 0.0 else total
            if times.first is not None:
                ttft = times.first - began
                if ttft < 0.0:
                    ttft = 0.0
            backend, attempts, continued, leader = flight.backend, flight.attempts, flight.continued, flight.leader
            if usage is not None:
                prompt, completion = usage.prompt_tokens, usage.completion_tokens
                source = "estimated" if flight.estimated else "usage"
            elif flight.content_events:
                completion, source = flight.content_events, "events"
            sent = sent or self.bytes_out or reader.sent
        # By place: by name the two take a microsecond and a half more.
        metrics.request(self.endpoint, status, verdict, self.model, queue, ttft, total, prompt, completion, source)
        if self.trace is not None:
            self.trace.ended(self)
        if log is None:
            return
        record = RequestRecord(
            self.id,
            self.endpoint,
            self.request.method[:MAX_METHOD],
            status,
            verdict,
            self.stream,
            int(queue * 1e6 + 0.5) / 1e3,  # milliseconds; `round` takes 0.7 µs
            int(total * 1e6 + 0.5) / 1e3,
            sent or self.bytes_out,
            self.client_left,
            model,
            None if ttft is None else int(ttft * 1e6 + 0.5) / 1e3,
            prompt,
            completion,
            source,
            backend,
            error,
        )
        # What few requests have.
        if self.caller is not None:
            record.key = self.caller.name or None
        if show_prompt and self.api_request is not None:
            record.prompt = self.api_request.prompt.decode("utf-8", "replace")
        if attempts != 1:
            record.attempts = attempts
        if items is not None:
            record.items, record.items_cached = items.total, items.cached
        if self.trace is not None:
            record.trace_id = self.trace.id
        if self.client is not None:
            record.client = self.client
        if self.hold is not None:
            record.limit = self.hold.limit
        if sent_as != self.id:
            record.upstream_id = sent_as
        if continued is not None:
            record.continued = continued
        if self.asked_model is not None:
            record.asked_model = self.asked_model
        if self.fallback_from is not None:
            record.fallback_from = self.fallback_from
        if leader:
            record.leader = leader
        if self.resumable is not None:
            record.stream_name, record.resumed_after = self.resumable.name[:8], self.resumable.after
        if owner is None:
            log.request(record)
        else:
            log.request(record, owner)

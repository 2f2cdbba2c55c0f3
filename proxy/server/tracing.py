"""Spans: which exist, how they are nested and linked, and their attributes, by OTel's `gen_ai.*` names where it
has one. A span holds no key, and a prompt only with the setting for it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from proxy.flights import Flight, Mode, Phase, Subscriber
from proxy.flights.merging import MergedFlight
from proxy.server.context import RequestContext
from proxy.server.routes import STREAM_PATH
from proxy.telemetry import Otel

UNTRACED: Final = frozenset({"health", "ready", "metrics", "page", "state"})
MAX_BODY: Final = 1024 * 1024  # bytes of a JSON answer that is parsed for attributes
MAX_PROMPT: Final = 64 * 1024  # characters; a longer one is cut
MAX_REASONS: Final = 64  # of the choices of one answer

_OPERATIONS: Final = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}
_PARAMETERS: Final = (
    ("max_tokens", "gen_ai.request.max_tokens", int),
    ("max_completion_tokens", "gen_ai.request.max_tokens", int),
    ("top_p", "gen_ai.request.top_p", float),
    ("top_k", "gen_ai.request.top_k", int),
    ("frequency_penalty", "gen_ai.request.frequency_penalty", float),
    ("presence_penalty", "gen_ai.request.presence_penalty", float),
    ("n", "gen_ai.request.choice.count", int),
)
_OURS: Final = frozenset({"traceparent", "tracestate"})
_ROUTES: Final = {"passthrough": "{vllm}", "streams": STREAM_PATH}
"""Of endpoints with many paths. No span has the name of a stream: a client that knows it can read the stream."""


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    """The members of an answer that are attributes of its span."""

    id: str | None = None
    model: str | None = None
    choices: list[_Choice] = []


class Tracing:
    """Makes the spans of requests."""

    def __init__(self, otel: Otel, *, prompts: bool) -> None:
        self.otel = otel
        self._prompts = prompts

    def begin(self, context: RequestContext, *, inside: RequestContext | None = None) -> None:
        """Begin the span of a request: a child of the span `inside`, else of the one in the client's headers."""
        if context.endpoint in UNTRACED:
            return
        otel, request = self.otel, context.request
        if inside is not None and isinstance(inside.trace, RequestTrace):
            parent = otel.within(inside.trace.span)
        else:
            headers = request.headers
            parent = otel.incoming(list(headers.getall("traceparent", ())), list(headers.getall("tracestate", ())))
        route = _ROUTES.get(context.endpoint, request.path)
        path = route if context.endpoint == "streams" else clean(request.path[:512])
        span = otel.tracer.start_span(
            f"{request.method[:16]} {route}",
            context=parent,
            kind=otel.api.SpanKind.SERVER,
            attributes={
                "http.request.method": request.method,
                "http.route": route,
                "url.path": path,
                "gateway.request_id": context.id,
                "gateway.endpoint": context.endpoint,
            },
        )
        context.traced(RequestTrace(self, span))

    def request_attributes(self, context: RequestContext) -> dict[str, Any]:
        """Attributes of the request, by OTel's names."""
        api_request = context.api_request
        if api_request is None:
            return {"gen_ai.request.model": clean(context.model[:256])} if context.model else {}
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": _OPERATIONS[api_request.endpoint],
            "gen_ai.provider.name": "openai",  # by the API's format
            "gen_ai.request.stream": api_request.stream,
        }
        if api_request.model is not None:
            attributes["gen_ai.request.model"] = clean(api_request.model[:256])
        if api_request.temperature is not None:
            attributes["gen_ai.request.temperature"] = api_request.temperature
        if api_request.seed is not None and fits(api_request.seed):
            attributes["gen_ai.request.seed"] = api_request.seed
        for field, name, kind in _PARAMETERS:
            raw = api_request.fields.get(field)
            try:
                value = None if raw is None else msgspec.json.decode(raw, type=kind | None)
            except msgspec.MsgspecError:
                continue  # the engine reports the error
            if value is not None and fits(value):
                attributes[name] = value
        if self._prompts:
            attributes["gateway.prompt"] = api_request.prompt.decode("utf-8", "replace")[:MAX_PROMPT]
        return attributes


class RequestTrace:
    """The span of one request."""

    __slots__ = ("_tracing", "span")

    def __init__(self, tracing: Tracing, span: Any) -> None:
        self._tracing = tracing
        self.span = span

    @property
    def id(self) -> str | None:
        """The trace id, as log lines have it."""
        parent = self.span.get_span_context()
        return f"{parent.trace_id:032x}" if parent.is_valid else None

    def reads(self, context: RequestContext, reader: Subscriber) -> None:
        """The request reads a Flight, whose span is a child of the first reader's; other readers get a link."""
        flight = reader.flight
        if flight.trace is None:
            flight.traced_by(FlightSpan(self._tracing, context, flight, self.span))
        elif isinstance(flight.trace, FlightSpan):
            self.span.add_link(flight.trace.span.get_span_context(), {"gateway.link": "reads"})

    def ended(self, context: RequestContext) -> None:
        """End the span, with the outcome of the request."""
        span, otel = self.span, self._tracing.otel
        if span.is_recording():
            attributes = self._tracing.request_attributes(context)
            attributes["gateway.verdict"] = context.verdict
            if context.status:
                attributes["http.response.status_code"] = context.status
            if context.client_left:
                attributes["gateway.client_left"] = True
            if context.caller is not None and context.caller.name:
                attributes["gateway.key_name"] = context.caller.name
            first = context.ttft_ms
            if first is not None:
                attributes["gen_ai.response.time_to_first_chunk"] = first / 1000
            if context.reader is not None:
                attributes |= _spent(context.reader.flight)
                if isinstance(context.reader.flight.trace, FlightSpan):
                    attributes |= context.reader.flight.trace.answer_attributes()
            span.set_attributes(attributes)
            failure = context.failure()
            if context.status >= 500 or (failure is not None and context.status < 400):
                otel.failed(span, failure or str(context.status))
            elif failure is not None:
                span.set_attribute(
                    "error.type", failure
                )  # a client error: OTel leaves a server's span status unset
        span.end()


class FlightSpan:
    """The span of one Flight, and of each attempt at an engine inside it."""

    __slots__ = (
        "_attempt", "_clock", "_id", "_kind", "_model", "_name", "_reasons", "_requested_model", "_resent",
        "_tracing", "span",
    )  # fmt: skip

    def __init__(self, tracing: Tracing, context: RequestContext | None, flight: Flight, parent: Any) -> None:
        self._tracing = tracing
        spec = flight.spec
        self._kind = _OPERATIONS[spec.api_request.endpoint] if spec.api_request is not None else "passthrough"
        self._requested_model = None if spec.model is None else clean(spec.model[:256])
        self._name = f"{self._kind} {self._requested_model or 'unknown'}"
        self._resent = 0
        self._clock = time.time_ns() - round(flight.clock() * 1e9)  # wall-clock time less the flight's clock
        self._attempt: Any = None
        self._reasons: list[str] = []
        self._model: str | None = None
        self._id: str | None = None
        otel = tracing.otel
        attributes = tracing.request_attributes(context) if context is not None else {}
        attributes.pop("gateway.prompt", None)
        self.span = otel.tracer.start_span(
            f"flight {self._name}",
            context=otel.within(parent),
            kind=otel.api.SpanKind.INTERNAL,
            attributes=attributes,
            start_time=self._time(flight.times.created),
        )

    # -- FlightTrace ------------------------------------------------------------------------------

    def event(self, name: str, **attributes: str | int | bool) -> None:
        self.span.add_event(f"gateway.{name}", {f"gateway.{key}": value for key, value in attributes.items()})

    def attempt(self, backend: str) -> None:
        otel = self._tracing.otel
        parts = urlsplit(backend)
        where: dict[str, Any] = {"gen_ai.operation.name": self._kind, "gen_ai.provider.name": "openai"}
        if self._requested_model is not None:
            where["gen_ai.request.model"] = self._requested_model
        if self._resent:
            where["http.request.resend_count"] = self._resent
        if parts.hostname is not None:
            where["server.address"] = parts.hostname
            where["server.port"] = parts.port or (443 if parts.scheme == "https" else 80)
        else:
            where["server.address"] = parts.path or backend
        self.event("lease", backend=where["server.address"])
        self._attempt = otel.tracer.start_span(
            self._name, context=otel.within(self.span), kind=otel.api.SpanKind.CLIENT, attributes=where
        )

    def headers(self, headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        span = self._attempt if self._attempt is not None else self.span
        ours = self._tracing.otel.outgoing(span)
        if not ours:
            return list(headers)  # OTel's environment variables switch tracing off
        return [*(header for header in headers if header[0].lower() not in _OURS), *ours]

    def frame(self, frame: bytes) -> None:
        if self._model is not None and b'"finish_reason":"' not in frame.replace(b" ", b""):
            return
        for line in frame.splitlines():
            if line.startswith(b"data:"):
                self._read_answer(line[5:])

    def retried(self, cause: str) -> None:
        if self._attempt is not None:
            if cause.isdigit():
                self._attempt.set_attribute("http.response.status_code", int(cause))
            self._tracing.otel.failed(self._attempt, cause)
            self._attempt.end()
            self._attempt = None
            self._resent += 1

    def carries(self, merged: MergedFlight) -> None:
        own = FlightSpan(self._tracing, None, merged, self.span)
        merged.traced_by(own)
        own.span.set_attribute("gateway.merged", len(merged.members))
        for member in merged.members:
            if member is not None and isinstance(member.trace, FlightSpan) and member.trace is not self:
                member.trace.span.add_link(own.span.get_span_context(), {"gateway.link": "rides"})

    def ended(self, flight: Flight) -> None:
        span, times = self.span, flight.times
        if span.is_recording():
            if flight.stored_at is not None:
                self.event("lookup", hit=True)
            elif times.first is not None:
                span.add_event("gateway.first_token", timestamp=self._time(times.first))
            if flight.mode is Mode.WHOLE and flight.spec.api_request is not None and flight.size <= MAX_BODY:
                self._read_answer(b"".join(flight.log))
            attributes = _spent(flight) | self.answer_attributes()
            attributes["gateway.outcome"] = "hit" if flight.stored_at is not None else flight.phase.value
            attributes["gateway.attempts"] = flight.attempts
            attributes["gateway.readers"] = flight.clients
            span.set_attributes(attributes)
            if flight.error is not None:
                self._tracing.otel.failed(span, flight.error.code.code, flight.error.message)
        end = self._time(times.ended) if times.ended is not None else None
        if self._attempt is not None:
            self._end_attempt(flight, end)
        span.end(end_time=end)

    # -- inside -----------------------------------------------------------------------------------

    def answer_attributes(self) -> dict[str, Any]:
        """Attributes of the engine's answer."""
        attributes: dict[str, Any] = {}
        if self._model is not None:
            attributes["gen_ai.response.model"] = self._model
        if self._id is not None:
            attributes["gen_ai.response.id"] = self._id
        if self._reasons:
            attributes["gen_ai.response.finish_reasons"] = self._reasons
        return attributes

    def _end_attempt(self, flight: Flight, end: int | None) -> None:
        attempt, times = self._attempt, flight.times
        self._attempt = None
        attempt.set_attributes(_spent(flight) | self.answer_attributes())
        if times.first is not None and times.dispatched is not None:
            attempt.set_attribute("gen_ai.response.time_to_first_chunk", times.first - times.dispatched)
        if flight.head is not None:
            attempt.set_attribute("http.response.status_code", flight.head.status)
        if flight.error is not None:
            self._tracing.otel.failed(attempt, flight.error.code.code, flight.error.message)
        elif flight.phase is Phase.CANCELLED:
            self._tracing.otel.failed(attempt, "cancelled", "nobody reads it any more")
        elif flight.head is not None and flight.head.status >= 400:
            self._tracing.otel.failed(attempt, str(flight.head.status))
        attempt.end(end_time=end)

    def _read_answer(self, json: bytes) -> None:
        try:
            answer = msgspec.json.decode(json, type=_Answer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return  # [DONE], an error, or no answer in OpenAI's format
        self._model = self._model or (answer.model[:256] if answer.model else None)
        self._id = self._id or (answer.id[:256] if answer.id else None)
        reasons = [choice.finish_reason[:32] for choice in answer.choices if choice.finish_reason]
        self._reasons += reasons[: MAX_REASONS - len(self._reasons)]

    def _time(self, moment: float) -> int:
        """A moment of the flight's clock, in nanoseconds since the epoch."""
        return self._clock + round(moment * 1e9)


def fits(number: Any) -> bool:
    """Whether OTLP can encode the number; where it cannot, the exporter writes a traceback."""
    return isinstance(number, float) or -(2**63) <= number < 2**63


def clean(text: str) -> str:
    """The text without lone surrogates: OTLP cannot encode them, and the exporter would drop the whole batch."""
    return text.encode("utf-8", "replace").decode()


def _spent(flight: Flight) -> dict[str, Any]:
    """Token counts, where the engine reported them."""
    usage = flight.usage
    if usage is None:
        return {"gateway.content_events": flight.content_events} if flight.content_events else {}
    return {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
    }

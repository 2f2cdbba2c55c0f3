"""Owns spans that are kept in memory, and the requests and flights that they are of, as data.
Must not know what a test checks.
Called by the tests of spans."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec

from proxy.flights.phase import Phase
from proxy.flights.spec import Mode
from proxy.wire.openai import ApiRequest, decode


class Span:
    """A span that keeps what it is told."""

    def __init__(
        self, name: str = "", context: Any = None, kind: str = "", attributes: Any = None, start_time: Any = 0
    ):
        self.name, self.inside, self.kind, self.start = name, context, kind, start_time
        self.attributes = dict(attributes or {})
        self.events: list[Any] = []
        self.links: list[Any] = []
        self.failed: list[tuple[str, str]] = []
        self.ends: list[Any] = []
        self.recording = self.valid = True

    def is_recording(self) -> bool:
        return self.recording

    def get_span_context(self) -> Any:
        return SimpleNamespace(is_valid=self.valid, trace_id=0xAB, span=self)

    def set_attribute(self, name: str, value: Any) -> None:
        self.attributes[name] = value

    def set_attributes(self, told: dict[str, Any]) -> None:
        self.attributes |= told

    def add_event(self, name: str, attributes: Any = None, timestamp: Any = None) -> None:
        self.events.append((name, attributes, timestamp))

    def add_link(self, context: Any, attributes: Any) -> None:
        self.links.append((context.span, attributes))

    def end(self, end_time: Any = None) -> None:
        self.ends.append(end_time)


class Memory:
    """OpenTelemetry in memory: the spans that were made."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        kinds = SimpleNamespace(SERVER="server", INTERNAL="internal", CLIENT="client")
        self.api = SimpleNamespace(SpanKind=kinds)
        self.tracer = self
        self.sent = [("traceparent", "ours"), ("tracestate", "x")]

    def start_span(self, name: str, **more: Any) -> Span:
        self.spans.append(Span(name, **more))
        return self.spans[-1]

    def incoming(self, traceparent: list[str], tracestate: list[str]) -> Any:
        return traceparent, tracestate

    def within(self, span: Any) -> Any:
        return span

    def outgoing(self, span: Any) -> list[tuple[str, str]]:
        return self.sent and [*self.sent, ("of", span.name)]

    def failed(self, span: Span, code: str, words: str = "") -> None:
        span.failed.append((code, words))


class Headers(dict[str, list[str]]):
    def getall(self, name: str, default: Any) -> Any:
        return self.get(name, default)


def chat(**more: Any) -> ApiRequest:
    body = {"model": "m1", "messages": [{"role": "user", "content": "hello"}]} | more
    return decode("chat", msgspec.json.encode(body))


def call_of(**more: Any) -> Any:
    request = SimpleNamespace(path="/v1/chat/completions", method="POST", headers=Headers(traceparent=["00"]))
    facts: dict[str, Any] = {
        "endpoint": "chat", "request": request, "id": "r", "api_request": None, "model": None, "verdict": "miss",
        "trace": None, "status": 200, "client_left": False, "caller": None, "ttft_ms": None, "reader": None,
        "failure": lambda: None,
    }  # fmt: skip
    made = SimpleNamespace(**facts | more)
    made.traced = lambda trace: setattr(made, "trace", trace)
    return made


class Flown(SimpleNamespace):
    """What a span asks of a Flight."""

    def traced_by(self, trace: Any) -> None:
        self.trace = trace


def flight_of(api_request: ApiRequest | None = None, **more: Any) -> Any:
    times = {"created": 10.0, "dispatched": None, "first": None, "ended": None} | more.pop("times", {})
    facts: dict[str, Any] = {
        "spec": SimpleNamespace(api_request=api_request, model=more.pop("model", "m1")),
        "clock": lambda: 10.0, "trace": None,
        "times": SimpleNamespace(**times), "stored_at": None, "mode": Mode.STREAM, "size": 0, "log": [],
        "phase": Phase.LANDED, "attempts": 1, "clients": 2, "error": None, "head": None, "usage": None,
        "content_events": 0,
    }  # fmt: skip
    return Flown(**facts | more)

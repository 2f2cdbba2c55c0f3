"""Owns an OTLP collector for tests: an HTTP endpoint that keeps every span it is sent, decoded.
Must not know the gateway.
Called by tests of tracing, which need the extra `trace`."""

from __future__ import annotations

import asyncio
import gzip
import importlib
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiohttp import web

THREADS = ("otel-end", "Otel")
KINDS = {1: "internal", 2: "server", 3: "client"}


def join_exporters() -> None:
    """Wait for OpenTelemetry's threads. One that tries again uses the random numbers of the process, which
    Hypothesis takes for those of a later test in it."""
    for thread in threading.enumerate():
        if thread.name.startswith(THREADS):
            thread.join(30)
            assert not thread.is_alive(), f"{thread.name} has not ended"


@dataclass(frozen=True)
class Span:
    """One span as it was sent."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    links: list[str]  # ids of spans
    events: list[str]
    failed: bool
    start: int
    end: int


@dataclass
class Collector:
    """`spans` holds all that came, `raw` their bytes. `frozen`: it takes requests and never answers."""

    frozen: bool = False
    spans: list[Span] = field(default_factory=list)
    raw: bytes = b""
    resource: dict[str, Any] = field(default_factory=dict)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of(self, kind: str) -> list[Span]:
        return [span for span in self.spans if span.kind == kind]

    async def __aenter__(self) -> Collector:
        self._release = asyncio.Event()
        self._runner = web.ServerRunner(web.Server(self._take), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release.set()
        await self._runner.cleanup()

    async def _take(self, request: web.BaseRequest) -> web.StreamResponse:
        assert request.path == "/v1/traces", request.path
        body = await request.read()
        if self.frozen:
            await self._release.wait()
        data = gzip.decompress(body) if request.headers.get("content-encoding") == "gzip" else body
        service = importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
        sent = service.ExportTraceServiceRequest.FromString(data)
        self.raw += data
        for resource in sent.resource_spans:
            self.resource = _attributes(resource.resource.attributes)
            self.spans += [_span(span) for scope in resource.scope_spans for span in scope.spans]
        return web.Response(body=b"", content_type="application/x-protobuf")


def _span(span: Any) -> Span:
    return Span(
        name=span.name,
        kind=KINDS[span.kind],
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        attributes=_attributes(span.attributes),
        links=[link.span_id.hex() for link in span.links],
        events=[event.name for event in sorted(span.events, key=lambda e: e.time_unix_nano)],
        failed=span.status.code == 2,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)

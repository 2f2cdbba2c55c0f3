"""Owns OpenTelemetry: its provider, set up as the standard OTEL_* environment says, and its end within a bound.
Must not know requests or flights. Its packages are an extra: they are looked for where tracing is asked for.
Called by the app, once, and by `tracing.py` for each span."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from proxy.config import VERSION
from proxy.errors import SettingsError
from proxy.telemetry.log import Log

FLUSH_SECONDS: Final = 3.0
"""For what is not sent yet, at the end. A collector that hangs costs no more than that."""
TELL_SECONDS: Final = 30.0  # between two log lines about a collector that is away

_PACKAGES: Final = (
    "opentelemetry.trace",
    "opentelemetry.trace.propagation.tracecontext",
    "opentelemetry.sdk.trace",
    "opentelemetry.sdk.trace.export",
    "opentelemetry.sdk.resources",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
)


class Otel:
    """The tracer, and what spans are made of. Its types are foreign, and only here when they are installed."""

    def __init__(self, log: Log, *, environ: Mapping[str, str] | None = None) -> None:
        """Raises SettingsError where the extra is not installed, or the environment asks for what it cannot."""
        environ = os.environ if environ is None else environ
        api, context, sdk, export, resources, exporter = packages(environ)
        self.api = api
        self._words = _Words(log)
        known = {"service.version": VERSION}
        if "OTEL_SERVICE_NAME" not in environ and "service.name" not in environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        ):
            known["service.name"] = "streaming-gateway"
        try:
            self._provider = sdk.TracerProvider(resource=resources.Resource.create(known), shutdown_on_exit=False)
            self._provider.add_span_processor(export.BatchSpanProcessor(exporter.OTLPSpanExporter()))
        except ValueError as e:
            self._words.close()
            raise SettingsError(f"trace = 'otlp': the OTEL_* environment cannot be used: {e}") from None
        self.tracer = self._provider.get_tracer("streaming-gateway", VERSION)
        self._propagator = context.TraceContextTextMapPropagator()

    def incoming(self, traceparent: list[str], tracestate: list[str]) -> Any:
        """The context that a request brought; an empty one where it brought none that is valid (W3C Trace Context:
        one traceparent, of its form)."""
        empty = self.api.set_span_in_context(self.api.INVALID_SPAN)
        if len(traceparent) != 1:
            return empty
        merged = {"traceparent": traceparent[0].strip(), "tracestate": ",".join(tracestate)}
        return self._propagator.extract(merged, context=empty)

    def within(self, span: Any) -> Any:
        """The context of what happens inside a span."""
        return self.api.set_span_in_context(span)

    def outgoing(self, span: Any) -> list[tuple[str, str]]:
        """The headers that make what a server does part of this span."""
        merged: dict[str, str] = {}
        self._propagator.inject(merged, context=self.within(span))
        return list(merged.items())

    def failed(self, span: Any, code: str, words: str = "") -> None:
        """The span is of something that failed."""
        span.set_attribute("error.type", code)
        told = words.encode("utf-8", "replace").decode()
        span.set_status(self.api.Status(self.api.StatusCode.ERROR, told or None))

    async def close(self, seconds: float = FLUSH_SECONDS) -> None:
        """Send what is left, for at most so long: in a thread of its own, that nothing waits for."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def told() -> None:
            if not done.done():
                done.set_result(None)

        def end() -> None:
            try:
                self._provider.shutdown()
            finally:
                try:
                    loop.call_soon_threadsafe(told)
                except RuntimeError:
                    pass  # the loop has ended meanwhile: nobody waits any more

        threading.Thread(target=end, name="otel-end", daemon=True).start()
        try:
            async with asyncio.timeout(seconds):
                await done
        except TimeoutError:
            self._words.tell(f"spans were not taken within {seconds:g} s at the end; what was left is lost")
        self._words.close()


def packages(environ: Mapping[str, str]) -> list[Any]:
    """OpenTelemetry's, as far as they are used. Raises SettingsError where they are not installed, or the
    environment asks for another protocol."""
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environ.get(name, "http/protobuf") != "http/protobuf":
            raise SettingsError(f"{name} = {environ[name]!r}: traces are sent by http/protobuf only")
    try:
        return [importlib.import_module(name) for name in _PACKAGES]
    except ImportError:
        raise SettingsError(
            "trace = 'otlp': OpenTelemetry is not installed; pip install 'streaming-gateway[trace]'"
        ) from None


class _Words(logging.Handler):
    """What OpenTelemetry says, into our log: its first words at once, then at most once in TELL_SECONDS."""

    def __init__(self, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._clock = clock
        self._told = float("-inf")
        self._logger = logging.getLogger("opentelemetry")
        self._before = self._logger.propagate
        self._logger.addHandler(self)
        self._logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        now = self._clock()
        if now - self._told >= TELL_SECONDS:
            self._told = now
            self.tell(record.getMessage())

    def tell(self, words: str) -> None:
        self._log.event("warning", "tracing", detail=words[:300])

    def close(self) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._before
        super().close()

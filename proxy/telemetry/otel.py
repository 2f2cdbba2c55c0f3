"""OpenTelemetry: its provider, configured by the standard OTEL_* environment, and its shutdown within a bound.
Its packages are an extra and are imported only where tracing is on."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from proxy import __version__
from proxy.errors import SettingsError
from proxy.telemetry.log import Log

FLUSH_SECONDS: Final = 3.0
"""Time to send the remaining spans at the end, also where the collector hangs."""
TELL_SECONDS: Final = 30.0  # between two log lines about an unavailable collector

_PACKAGES: Final = (
    "opentelemetry.trace",
    "opentelemetry.trace.propagation.tracecontext",
    "opentelemetry.sdk.trace",
    "opentelemetry.sdk.trace.export",
    "opentelemetry.sdk.resources",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
)


class Otel:
    """The tracer and its propagation. OpenTelemetry's types are imported only where it is installed."""

    def __init__(self, log: Log, *, environ: Mapping[str, str] | None = None) -> None:
        """Raises SettingsError where the extra is not installed, or the environment is not supported."""
        environ = os.environ if environ is None else environ
        api, context, sdk, export, resources, exporter = packages(environ)
        self.api = api
        self._words = _Words(log)
        known = {"service.version": __version__}
        if "OTEL_SERVICE_NAME" not in environ and "service.name" not in environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        ):
            known["service.name"] = "streaming-gateway"
        try:
            self._provider = sdk.TracerProvider(resource=resources.Resource.create(known), shutdown_on_exit=False)
            self._provider.add_span_processor(export.BatchSpanProcessor(exporter.OTLPSpanExporter()))
        except ValueError as e:
            self._words.close()
            raise SettingsError(f"trace = 'otlp': invalid OTEL_* environment: {e}") from None
        self.tracer = self._provider.get_tracer("streaming-gateway", __version__)
        self._propagator = context.TraceContextTextMapPropagator()

    def incoming(self, traceparent: list[str], tracestate: list[str]) -> Any:
        """The context in a request's headers; an empty one without exactly one valid traceparent (W3C Trace
        Context)."""
        empty = self.api.set_span_in_context(self.api.INVALID_SPAN)
        if len(traceparent) != 1:
            return empty
        merged = {"traceparent": traceparent[0].strip(), "tracestate": ",".join(tracestate)}
        return self._propagator.extract(merged, context=empty)

    def within(self, span: Any) -> Any:
        """The context inside a span."""
        return self.api.set_span_in_context(span)

    def outgoing(self, span: Any) -> list[tuple[str, str]]:
        """The headers that propagate this span to a server."""
        merged: dict[str, str] = {}
        self._propagator.inject(merged, context=self.within(span))
        return list(merged.items())

    def failed(self, span: Any, code: str, words: str = "") -> None:
        """Mark a span as failed."""
        span.set_attribute("error.type", code)
        text = words.encode("utf-8", "replace").decode()
        span.set_status(self.api.Status(self.api.StatusCode.ERROR, text or None))

    async def close(self, seconds: float = FLUSH_SECONDS) -> None:
        """Send the remaining spans, for at most `seconds`, in a daemon thread."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def finished() -> None:
            if not done.done():
                done.set_result(None)

        def end() -> None:
            try:
                self._provider.shutdown()
            finally:
                try:
                    loop.call_soon_threadsafe(finished)
                except RuntimeError:
                    pass  # the loop has ended meanwhile

        threading.Thread(target=end, name="otel-end", daemon=True).start()
        try:
            async with asyncio.timeout(seconds):
                await done
        except TimeoutError:
            self._words.tell(f"the remaining spans were not sent within {seconds:g} s and are lost")
        self._words.close()


def packages(environ: Mapping[str, str]) -> list[Any]:
    """OpenTelemetry's modules that are used. Raises SettingsError where they are not installed, or the environment
    names another protocol."""
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
    """Writes OpenTelemetry's messages to the log, at most one in TELL_SECONDS."""

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

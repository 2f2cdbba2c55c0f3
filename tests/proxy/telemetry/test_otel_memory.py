"""OpenTelemetry as it is set up: names, contexts, failures, and an end that takes no longer than it may."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from proxy import __version__
from proxy.errors import SettingsError
from proxy.telemetry.log import Log
from proxy.telemetry.otel import Otel, packages
from tests.kit.missing import module

module("opentelemetry.exporter.otlp.proto.http", "trace")
module("opentelemetry.sdk", "trace")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{PARENT}-01"


class Noted:
    """A log that keeps its events."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []

    def event(self, level: str, msg: str, *, detail: str) -> None:
        self.told.append((level, msg, detail))


@pytest.fixture
def log() -> Noted:
    return Noted()


@pytest.fixture
def otel(log: Noted, monkeypatch: pytest.MonkeyPatch) -> Iterator[Otel]:
    for name in ("OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    join()  # an earlier test's exporter writes to the same logger until its retries end
    made = Otel(cast(Log, log), environ={})
    yield made
    made._words.close()
    made._provider.shutdown()


def parent(otel: Otel, context: Any) -> Any:
    return otel.api.get_current_span(context).get_span_context()


def test_the_context_that_a_request_brought_counts_where_it_is_one(otel: Otel) -> None:
    for brought in ([HEADER], [f" {HEADER} "]):
        found = parent(otel, otel.incoming(brought, ["a=1", "b=2"]))
        assert (f"{found.trace_id:032x}", f"{found.span_id:016x}") == (TRACE, PARENT)
        assert dict(found.trace_state) == {"a": "1", "b": "2"}
    for none in ([], [HEADER, HEADER], ["00-x"]):
        assert not parent(otel, otel.incoming(none, [])).is_valid
    span = otel.tracer.start_span("x", context=otel.incoming([HEADER], []))
    assert f"{parent(otel, otel.within(span)).trace_id:032x}" == TRACE
    ((name, value),) = otel.outgoing(span)
    assert (name, value.split("-")[1]) == ("traceparent", TRACE)


def test_a_span_of_what_failed_says_why(otel: Otel) -> None:
    for words, told in (("why", "why"), ("a\ud800", "a?"), ("", None)):
        span = otel.tracer.start_span("x")
        otel.failed(span, "code", words)
        assert span.attributes["error.type"] == "code"
        assert (span.status.status_code, span.status.description) == (otel.api.StatusCode.ERROR, told)


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, "streaming-gateway"),
        ({"OTEL_SERVICE_NAME": "x"}, None),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b,service.name=y"}, None),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b"}, "streaming-gateway"),
    ],
)
def test_its_name_is_ours_where_the_environment_has_none(
    log: Noted, environ: dict[str, str], name: str | None
) -> None:
    made = Otel(cast(Log, log), environ=environ)
    known = made._provider.resource.attributes
    assert known["service.version"] == __version__
    assert (known["service.name"] == "streaming-gateway") is (name is not None)
    made._words.close()
    made._provider.shutdown()


def test_an_environment_that_cannot_be_used_is_told_and_leaves_no_handler(
    log: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = logging.getLogger("opentelemetry").handlers[:], logging.getLogger("opentelemetry").propagate
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(SettingsError, match=r"invalid OTEL_. environment"):
        Otel(cast(Log, log), environ={})
    logger = logging.getLogger("opentelemetry")
    assert (logger.handlers, logger.propagate) == before
    assert len(packages({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})) == 6


def test_what_it_says_is_cut_and_goes_nowhere_else_until_it_ends(otel: Otel, log: Noted) -> None:
    logger = logging.getLogger("opentelemetry")
    assert logger.propagate is False
    logger.info("nothing")
    logger.warning("x" * 400)
    assert log.told == [("warning", "tracing", "x" * 300)]
    otel._words.close()
    assert (logger.propagate, otel._words in logger.handlers) == (True, False)


def join() -> None:
    """Wait for the threads that end it."""
    for thread in threading.enumerate():
        if thread.name == "otel-end":
            thread.join(30)


@pytest.mark.parametrize("hangs", [False, True])
async def test_its_end_takes_no_longer_than_it_may(otel: Otel, log: Noted, hangs: bool) -> None:
    go, ended = threading.Event(), threading.Event()
    shutdown = otel._provider.shutdown

    def end() -> None:
        if hangs:
            go.wait(30)
        shutdown()
        ended.set()
        raise ZeroDivisionError

    otel._provider.shutdown = end
    before, threading.excepthook = threading.excepthook, lambda told: None
    try:
        await otel.close(0.01 if hangs else 30.0)
        late = ("warning", "tracing", "the remaining spans were not sent within 0.01 s and are lost")
        assert log.told == [late] * hangs
        go.set()
        assert ended.wait(30)
        await asyncio.to_thread(join)
    finally:
        threading.excepthook = before
        otel._provider.shutdown = shutdown
    assert otel._words not in logging.getLogger("opentelemetry").handlers


def test_an_end_that_comes_after_the_loop_s_is_nobody_s(otel: Otel, log: Noted) -> None:
    go, faults = threading.Event(), list[object]()
    shutdown = otel._provider.shutdown
    otel._provider.shutdown = lambda: go.wait(30)
    before, threading.excepthook = threading.excepthook, faults.append
    try:
        asyncio.run(otel.close(0.01))
        go.set()
        join()
    finally:
        threading.excepthook = before
        otel._provider.shutdown = shutdown
    assert (faults, len(log.told)) == ([], 1)

"""The times of one request in its log line: milliseconds by the clock, to the microsecond."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.kit.clock import virtual
from tests.proxy.server.test_context import Told, call
from tests.proxy.server.test_context_ends import reader_of


@virtual
async def test_seconds_are_logged_as_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of()
    one = call(reader=reader, began=100.0)
    reader.flight.times.dispatched, reader.flight.times.first = 100.5, 101.25
    monkeypatch.setattr("proxy.server.context.time", SimpleNamespace(monotonic=lambda: 103.7500004))
    counted, record = Told().of(one)
    assert (record.queue_ms, record.ttft_ms, record.total_ms) == (500.0, 1250.0, 3750.0)
    assert one.ttft_ms == 1250.0
    assert (counted["queue_s"], counted["ttft_s"], counted["total_s"]) == (0.5, 1.25, pytest.approx(3.7500004))

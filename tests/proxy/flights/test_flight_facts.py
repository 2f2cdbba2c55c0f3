"""A flight's facts, set one at a time, and a reader that has had its end."""

from __future__ import annotations

from typing import Any, cast

import pytest

from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Mode
from proxy.wire.frames import Usage
from proxy.wire.sse import LAST_CHUNK, SIZES, chunk
from tests.kit.clock import virtual
from tests.proxy.flights.test_flight import Sink
from tests.proxy.flights.test_flight_state import made, reading

USAGE = Usage(1, 2, 3)


def test_a_request_is_of_one_client_until_it_is_said_otherwise() -> None:
    spec = FlightSpec("POST", "/", b"", Mode.STREAM, "r")
    assert (spec.many, spec.parts, spec.usage_added, spec.fresh) == (False, 0, False, False)


def test_usage_is_an_engine_s_own_unless_it_is_an_estimate() -> None:
    flight = made()
    flight.reports(USAGE)
    assert (flight.usage, flight.estimated) == (USAGE, False)
    flight.reports(USAGE, estimated=True)
    assert flight.estimated


def test_who_pays_and_who_traces_are_told_of_the_end() -> None:
    told: list[object] = []
    flight = made(at=Phase.STREAMING)
    trace = cast(Any, type("Trace", (), {"ended": lambda self, flight: told.append(("trace", flight))})())
    flight.when_ended(lambda flight: told.append(("pays", flight)))
    flight.traced_by(trace)
    assert flight.trace is trace
    flight.land()
    assert told == [("trace", flight), ("pays", flight)]


@pytest.mark.parametrize(("own", "call", "both"), [(1, 3, 3), (3, 1, 3), (1, 1, 1)])
def test_of_a_call_for_a_part_of_it_the_most_attempts_count(own: int, call: int, both: int) -> None:
    flight, other = made(), made()
    flight.attempts, other.attempts, other.backend = own, call, "e1"
    flight.follows(other)
    assert (flight.attempts, flight.backend, flight.carried_as) == (both, "e1", other.spec.request_id)


@pytest.mark.parametrize("key", [None, b"k"])
@virtual
async def test_a_reader_whose_token_did_not_fit_is_woken(key: bytes | None) -> None:
    flight = made(at=Phase.STREAMING, key=key)
    sink = Sink()
    reader = reading(flight, sink)
    sink.full = True
    woken = reader.changed()
    flight.append_token(b"data: {}\n\n")
    assert (woken.done(), reader.lagging) == (True, True)


@pytest.mark.parametrize("size", [len(SIZES) - 1, len(SIZES), len(SIZES) + 1000])
def test_a_token_of_any_length_is_counted(size: int) -> None:
    flight = made(at=Phase.STREAMING)
    sink = Sink()
    reading(flight, sink)
    flight.append_token(b"x" * size)
    assert (flight.content_events, sink.got) == (1, chunk(b"x" * size))


def test_a_reader_that_has_its_end_is_written_no_more() -> None:
    flight = made(at=Phase.STREAMING, key=b"k")
    sink = Sink()
    reader = reading(flight, sink)
    flight.frames([b"data: {}\n\n"])
    flight.land()
    reader.pump()
    flight.flush()
    assert (sink.got, reader.done) == (chunk(b"data: {}\n\n") + LAST_CHUNK, True)
    assert reader.sent == len(sink.got)

"""The registry of Flights: who finds whom, and that only a flight's own place is given up."""

from __future__ import annotations

from proxy.flight import Flight
from proxy.group import FlightGroup
from proxy.plan import Mode, Plan
from tests.test_flight import lake


def test_a_new_registry_is_empty() -> None:
    group = FlightGroup()
    assert (len(group), group.subscribers, repr(group)) == (0, 0, "<FlightGroup live=0 joinable=0>")


def test_a_private_flight_is_live_and_found_by_nobody() -> None:
    group = FlightGroup()
    flight: Flight = group.launch(Plan("POST", "/", b"", Mode.STREAM, "r"))
    group.attach(flight, usage=True, whole=False, verdict="bypass")
    assert (len(group), group.subscribers, repr(group)) == (1, 1, "<FlightGroup live=1 joinable=0>")
    group.remove(flight)
    assert len(group) == 0


def test_a_stream_is_found_by_all_and_a_whole_body_only_by_those_who_want_one() -> None:
    group, flight = lake(mode=Mode.WHOLE)
    assert group.find(b"k", stream=True) is None
    assert group.find(b"k", stream=False) is flight
    stream = group.launch(Plan(method="POST", path="/", body=b"", mode=Mode.STREAM, request_id="r", key=b"k"))
    assert group.find(b"k", stream=True) is stream
    assert group.find(b"k", stream=False) is stream
    group.remove(stream)
    group.remove(flight)


def test_removing_a_flight_leaves_the_one_that_replaced_it() -> None:
    group, old = lake()
    new = group.launch(old.plan)
    group.remove(old)
    assert group.find(b"k", stream=True) is new
    group.remove(new)
    assert len(group) == 0

"""Who may join a flight that runs: folds, what is asked anew, what may be stored, and what is hidden."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from proxy.flights.group import FlightGroup
from proxy.flights.memory import Memory
from proxy.flights.phase import Phase
from proxy.flights.spec import Mode
from tests.proxy.flights.test_group import spec


@pytest.mark.parametrize(
    ("folds", "flight_folds", "mode", "found"),
    [
        (True, True, Mode.STREAM, True),
        (False, True, Mode.STREAM, False),
        (True, False, Mode.STREAM, False),
        (False, False, Mode.WHOLE, True),
    ],
)
def test_who_wants_one_body_waits_for_a_stream_that_folds_or_is_one_body_by_now(
    folds: bool, flight_folds: bool, mode: Mode, found: bool
) -> None:
    group = FlightGroup(folds=lambda flight: folds)
    flight = group.launch(spec())
    flight.folds, flight.mode = flight_folds, mode
    assert (group.find(b"k", stream=False) is flight) is found
    assert group.find(b"k", stream=False, fold=False) is None
    assert group.find(b"k", stream=True) is flight
    group.remove(flight)


@pytest.mark.parametrize(("at", "asked_fresh", "found"), [(0, False, False), (0, True, True), (1, False, True)])
def test_who_asks_anew_joins_only_what_an_engine_makes(at: int, asked_fresh: bool, found: bool) -> None:
    group = FlightGroup()
    flight = group.launch(replace(spec(), fresh=asked_fresh))
    if at:
        flight.enter(Phase.CONNECTING)
    assert (group.find(b"k", stream=True, fresh=True) is flight) is found
    assert group.find(b"k", stream=True) is flight
    assert group.find(b"another", stream=True, fresh=True) is None
    group.remove(flight)


def test_one_reader_that_allows_it_to_be_stored_is_enough() -> None:
    group = FlightGroup(Memory(5))
    flight = group.launch(spec())
    assert flight.memory is not None
    flight.storable = False
    reader = group.attach(flight, usage=False, whole=True, attached=True, owner="me", storable=False)
    assert (reader.usage, reader.whole, reader.verdict, reader.owner) == (False, True, "attached", "me")
    assert (flight.storable, flight.subscribers) == (False, {reader})
    other = group.attach(flight, usage=True, whole=False)
    assert (flight.storable, other.owner) == (True, None)
    group.remove(flight)


def test_what_is_spoiled_is_joined_no_more_and_what_shares_nothing_cannot_be() -> None:
    group = FlightGroup()
    flight, alone = group.launch(spec()), group.launch(spec(key=None))
    assert flight.on_spoiled is not None
    flight.on_spoiled(flight)
    assert (group.find(b"k", stream=True), alone.on_spoiled) == (None, None)
    group.remove(flight)
    group.remove(alone)


def test_those_whose_keys_begin_alike_are_hidden_together() -> None:
    group = FlightGroup()
    flights = [
        group.launch(spec(key=key, mode=mode))
        for key in (b"a1", b"b1", None)
        for mode in (Mode.STREAM, Mode.WHOLE)
    ]
    assert group.unpublish_all(b"a") == 2
    assert (group.find(b"a1", stream=True), group.find(b"a1", stream=False)) == (None, None)
    assert group.find(b"b1", stream=True) is flights[2]
    assert (len(group), group.unpublish_all(b"x")) == (6, 0)
    for flight in flights:
        group.remove(flight)
    assert repr(group) == "<FlightGroup live=0 joinable=0>"

"""The registry: who may join which Flight, and that removing one never removes another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.flights.flight import Flight
from proxy.flights.group import FlightGroup
from proxy.flights.spec import FlightSpec, Mode


def spec(*, key: bytes | None = b"k", mode: Mode = Mode.STREAM) -> FlightSpec:
    return FlightSpec(method="POST", path="/", body=b"", mode=mode, request_id="r", key=key)


def test_a_stream_is_found_by_all_and_a_whole_body_only_by_those_who_want_one() -> None:
    group = FlightGroup()
    flight = group.launch(spec(mode=Mode.WHOLE))
    assert group.find(b"k", stream=True) is None
    assert group.find(b"k", stream=False) is flight
    stream = group.launch(spec())
    assert group.find(b"k", stream=True) is stream
    assert group.find(b"k", stream=False) is flight  # it is just what is wanted, and began before the stream
    group.remove(flight)
    assert group.find(b"k", stream=False) is stream
    assert group.find(b"k", stream=False, fold=False) is None
    group.remove(stream)
    group.remove(flight)


def test_removing_a_flight_leaves_the_one_that_replaced_it() -> None:
    group = FlightGroup()
    old, new = group.launch(spec()), group.launch(spec())
    group.remove(old)
    assert group.find(b"k", stream=True) is new
    group.remove(new)
    assert len(group) == 0


def test_a_hidden_flight_lives_on_but_is_joined_no_more() -> None:
    group = FlightGroup()
    flight = group.launch(spec())
    group.unpublish(flight)
    assert group.find(b"k", stream=True) is None
    assert group.live == {flight}
    group.remove(flight)


def test_a_flight_without_a_key_is_found_by_nobody() -> None:
    group = FlightGroup()
    flight = group.launch(spec(key=None))
    assert repr(group) == "<FlightGroup live=1 joinable=0>"
    group.remove(flight)
    assert repr(group) == "<FlightGroup live=0 joinable=0>"


def test_readers_are_counted_over_all_flights() -> None:
    group = FlightGroup()
    one, two = group.launch(spec()), group.launch(spec(key=b"other"))
    readers = [group.attach(flight, usage=True, whole=False) for flight in (one, one, two)]
    assert group.subscribers == 3
    assert repr(group) == "<FlightGroup live=2 joinable=2>"
    for reader in readers:
        reader.leave()
    assert group.subscribers == 0
    group.remove(one)
    group.remove(two)


MODES = st.sampled_from([Mode.STREAM, Mode.WHOLE])
KEYS = st.sampled_from([b"a", b"b", None])
SCRIPT = st.lists(st.tuples(st.sampled_from(["launch", "hide", "remove"]), KEYS, MODES, st.integers(0, 9)))


@given(SCRIPT)
def test_whoever_is_found_is_the_latest_of_its_key_and_lives(
    steps: list[tuple[str, bytes | None, Mode, int]],
) -> None:
    group = FlightGroup()
    alive: list[Flight] = []
    joinable: dict[tuple[bytes | None, Mode], Flight] = {}  # the model
    for what, key, mode, pick in steps:
        if what == "launch":
            flight = group.launch(spec(key=key, mode=mode))
            alive.append(flight)
            if key is not None:
                joinable[key, mode] = flight
        elif alive:
            flight = alive[pick % len(alive)]
            if what == "hide":
                group.unpublish(flight)
            else:
                group.remove(flight)
                alive.remove(flight)
            joinable = {place: one for place, one in joinable.items() if one is not flight}
        for name in (b"a", b"b"):
            stream, whole = joinable.get((name, Mode.STREAM)), joinable.get((name, Mode.WHOLE))
            assert group.find(name, stream=True) is stream
            assert group.find(name, stream=False) is (whole or stream)
        assert group.live == set(alive)
    for flight in alive:
        group.remove(flight)
    assert repr(group) == "<FlightGroup live=0 joinable=0>"

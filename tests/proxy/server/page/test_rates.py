"""What the page tells of the recent past, out of counters read at two moments."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.flights.flight import Flight
from proxy.flights.group import FlightGroup
from proxy.flights.spec import FlightSpec, Mode
from proxy.server.page.rates import CounterSnapshot, Rising, quantile, rates_between, read, window
from proxy.server.page.state import recent
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.series import Histogram

BOUNDS = (0.01, 0.1, 1.0)


def told(*values: float) -> dict[float, float]:
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.observe(value)
    return {bound: count for bound, count in histogram.told().items() if isinstance(bound, float)}


@pytest.mark.parametrize(
    ("values", "q", "seconds"),
    [
        ((), 0.5, None),
        ((0.05,), 0.5, 0.055),
        ((0.005, 0.05), 0.5, 0.01),
        ((0.005, 0.05, 0.5, 0.5), 0.5, 0.1),
        ((5.0,), 0.5, 1.0),
        ((0.5,) * 10, 0.95, 0.955),
    ],
)
def test_a_quantile_is_interpolated_inside_its_bucket(
    values: tuple[float, ...], q: float, seconds: float | None
) -> None:
    assert quantile(told(*values), q) == (None if seconds is None else pytest.approx(seconds))


@given(st.lists(st.floats(0, 10), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_no_further_from_the_truth_than_its_bucket_is_wide(values: list[float], q: float) -> None:
    found = quantile(told(*values), q)
    assert found is not None
    exact = sorted(values)[max(0, -int(-q * len(values) // 1) - 1)]
    edges = (0.0, *BOUNDS, inf)
    low, high = next((a, b) for a, b in pairwise(edges) if exact <= b)
    assert min(low, BOUNDS[-1]) - 1e-9 <= found <= min(high, BOUNDS[-1]) + 1e-9


def test_what_lies_between_two_readings_is_rates_shares_and_quantiles_of_that_time_only() -> None:
    before = CounterSnapshot(10.0, {"miss": 4, "attached": 1}, 1, 2, 3, 100, 400, told(5.0, 5.0))
    after = CounterSnapshot(14.0, {"miss": 5, "attached": 20}, 1, 3, 3, 180, 1200, told(5.0, 5.0, 0.05))
    assert rates_between(before, after) == {
        "seconds": 4.0,
        "answered": 20,
        "refused": 0,
        "failed": 1,
        "left": 0,
        "verdicts": {"miss": 1, "attached": 19},
        "generated_per_s": 20.0,
        "delivered_per_s": 200.0,
        "generated": 80,
        "delivered": 800,
        "ttft_ms": {"p50": 55.0, "p95": 95.5},
    }


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30, unique=True), st.floats(0.1, 50))
def test_a_window_begins_with_the_latest_reading_that_is_old_enough(times: list[float], seconds: float) -> None:
    readings = [CounterSnapshot(at) for at in sorted(times)]
    first = window(readings, seconds).at
    old = [at for at in times if max(times) - at >= seconds]
    assert first == (max(old) if old else min(times))


def test_the_first_look_knows_no_rates_and_the_second_does() -> None:
    first = CounterSnapshot(1.0, generated=50, delivered=100)
    assert recent([first])["generated_per_s"] == 0
    found = recent([first, CounterSnapshot(2.0, generated=60, delivered=140)])
    assert (found["generated_per_s"], found["delivered_per_s"]) == (10, 40)


def test_a_flight_that_is_being_stored_is_not_counted_twice() -> None:
    metrics, flight = Metrics(), Flight(FlightSpec("POST", "/", b"", Mode.STREAM, "r", key=b"k"))
    flight.content_events = 5
    assert read(metrics, [flight], 1.0).generated == 5
    flight.frames([b"data: x\n\n"])
    flight.land()
    metrics.flight_landed("landed", "m", None, 5)
    assert read(metrics, [flight], 2.0).generated == 5


def test_delivered_to_clients_only_and_what_another_gateway_generates_is_counted_there() -> None:
    group = FlightGroup()
    flight = group.launch(FlightSpec("POST", "/", b"", Mode.STREAM, "r", key=b"k"))
    for client in (True, True, False):
        group.attach(flight, usage=True, whole=False, client=client)
    flight.content_events = 5
    assert (group.subscribers, flight.clients) == (2, 2)
    assert (read(Metrics(), group.live, 1.0).generated, read(Metrics(), group.live, 1.0).delivered) == (5, 10)
    flight.follows_node("other", None)
    assert (read(Metrics(), group.live, 1.0).generated, read(Metrics(), group.live, 1.0).delivered) == (0, 10)
    group.remove(flight)


@given(st.lists(st.floats(0, 1e9)))
def test_a_total_as_it_is_shown_never_falls(totals: list[float]) -> None:
    rising = Rising()
    shown = [rising.shown(total) for total in totals]
    assert shown == sorted(shown)
    assert all(each >= total for each, total in zip(shown, totals, strict=True))


def test_generations_are_read_and_what_else_was_asked_is_not() -> None:
    metrics = Metrics()
    metrics.request("chat", 200, "miss", "m", 0.0, 0.05, 0.1, 3, 7, "usage")
    metrics.request("chat", 200, "attached", "m", 0.0, 0.05, 0.1, 3, 7, "usage")
    metrics.request("chat", 429, "bypass", "m", 0.0, None, 0.1, None, None, None)
    metrics.request("chat", 502, "miss", "m", 0.0, None, 0.1, None, None, None)
    metrics.request("completions", 499, "miss", "m", 0.0, None, 0.1, None, None, None)
    metrics.request("health", 200, "bypass", None, 0.0, None, 0.1, None, None, None)
    metrics.flight_landed("landed", "m", None, 7)
    found = read(metrics, (), 5.0)
    assert (found.at, found.generated, found.delivered) == (5.0, 7, 14)
    assert (found.refused, found.failed, found.left) == (1, 1, 1)
    assert {name: n for name, n in found.verdicts.items() if n} == {"miss": 1, "attached": 1}
    assert found.ttft[inf] == 2

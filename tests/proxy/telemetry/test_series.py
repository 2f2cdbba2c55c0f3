"""Counters and histograms kept in plain Python, against aioprometheus' own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from aioprometheus import collectors
from aioprometheus.collectors import Registry
from aioprometheus.renderer import render
from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry.series import (
    MAX_LABEL,
    OTHER,
    Counts,
    Histogram,
    Histograms,
    Label,
    ReadCounter,
    ReadGauge,
    clean,
)

BOUNDS = (0.1, 1.0, 10.0)
NUMBERS = st.lists(st.floats(0, 100) | st.sampled_from(BOUNDS))


def page(registry: Registry) -> list[str]:
    text = render(registry, [])[0].decode()
    return [line for line in text.splitlines() if not line.startswith("#")]


@given(NUMBERS)
def test_a_histogram_counts_what_aioprometheus_own_would(values: Sequence[float]) -> None:
    ours, theirs = (
        Histogram(BOUNDS),
        collectors.Histogram("x", "", registry=Registry(), buckets=[*BOUNDS, math.inf]),
    )
    theirs.observe({}, 0.0)
    ours.observe(0.0)
    for value in values:
        ours.observe(value)
        theirs.observe({}, value)
    told = ours.told()
    assert told == theirs.get({})
    assert [key for key in told if isinstance(key, float)] == [*BOUNDS, math.inf]


@given(NUMBERS)
def test_buckets_are_cumulative_and_the_last_is_the_count(values: Sequence[float]) -> None:
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.observe(value)
    told = histogram.told()
    assert [told[bound] for bound in BOUNDS] == [sum(value <= bound for value in values) for bound in BOUNDS]
    assert told[math.inf] == told["count"] == len(values)
    assert told["sum"] == pytest.approx(sum(values))


def test_counts_and_histograms_are_rendered_by_aioprometheus() -> None:
    registry = Registry()
    colour = Label("colour", ["red", "blue"])
    counts = Counts("x_total", "X.", [colour], registry)
    counts.count(("red",), 0)
    counts.count(("blue",))
    counts.count(("blue",), 2.5)
    histograms = Histograms("y_seconds", "Y.", [colour], (1.0,), registry)
    histograms.seen(("red",), 0.5)
    histograms.seen(("red",), 2.0)
    assert page(registry) == [
        'x_total{colour="red"} 0',
        'x_total{colour="blue"} 3.5',
        'y_seconds_bucket{colour="red",le="1.0"} 1.0',
        'y_seconds_bucket{colour="red",le="+Inf"} 2.0',
        'y_seconds_sum{colour="red"} 2.5',
        'y_seconds_count{colour="red"} 2.0',
    ]


def test_what_is_kept_is_shown_only_once_it_has_counted() -> None:
    registry = Registry()
    counts = Counts("x_total", "X.", [Label("colour", ["red", "blue"])], registry)
    histograms = Histograms("y", "Y.", [], (1.0,), registry)
    red, seen = counts.of(("red",)), histograms.of(())
    assert page(registry) == []
    red.value += 2
    counts.count(("red",))
    counts.count(("blue",), 0)
    seen.observe(0.5)
    assert page(registry)[:2] == ['x_total{colour="red"} 3', 'x_total{colour="blue"} 0']
    assert len(page(registry)) == 6


def test_a_value_that_is_not_known_beforehand_is_other() -> None:
    label = Label("x", ["a"])
    assert [label.clean(value) for value in ("a", "b", OTHER)] == ["a", OTHER, OTHER]


def test_the_first_values_take_the_free_places() -> None:
    label = Label("x", room=2)
    assert [label.clean(value) for value in "abcab"] == ["a", "b", OTHER, "a", "b"]


def test_a_value_takes_no_place_that_it_does_not_claim() -> None:
    label = Label("x", room=1)
    assert label.clean("a", claim=False) == OTHER
    assert label.clean("a") == "a"
    assert label.clean("a", claim=False) == "a"
    assert label.clean(OTHER) == OTHER


@given(st.text())
def test_a_clean_value_needs_no_escaping_and_stays_as_it_is(value: str) -> None:
    text = clean(value)
    assert len(text) <= MAX_LABEL
    assert text.isascii()
    assert not set(text) & set('"\\\n ')
    assert clean(text) == text


@given(st.lists(st.text(max_size=3)))
def test_there_are_never_more_series_than_places_and_nothing_is_lost(values: list[str]) -> None:
    registry = Registry()
    counts = Counts("x_total", "X.", [Label("x", room=3)], registry)
    histograms = Histograms("y", "Y.", [Label("x", room=3)], (1.0,), registry)
    for value in values:
        counts.count((value,))
        histograms.seen((value,), 1.0)
    assert len(counts.get_all()) <= 4
    assert sum(count for _, count in counts.get_all()) == len(values)
    assert sum(told["count"] for _, told in histograms.get_all()) == len(values)


def test_a_number_is_read_when_it_is_scraped() -> None:
    registry = Registry()
    box = [1.0]
    ReadGauge("x", "X.", registry).read_by(lambda: box[0], {"of": 'a "b"'})
    ReadCounter("y_total", "Y.", registry).read_by(lambda: box[0] > 0, {})
    assert page(registry) == ['x{of="a__b_"} 1.0', "y_total 1"]
    box[0] = 2.5
    assert page(registry)[0] == 'x{of="a__b_"} 2.5'


def test_a_number_that_cannot_be_read_is_left_out_and_harms_no_other() -> None:
    gauge = ReadGauge("x", "X.", Registry())
    gauge.read_by(lambda: 1 / 0, {"of": "broken"})
    gauge.read_by(lambda: None, {"of": "nothing"})  # type: ignore[arg-type,return-value]
    gauge.read_by(lambda: 1, {"of": "whole"})
    assert gauge.get_all() == [({"of": "whole"}, 1)]


def test_a_second_reader_of_the_same_labels_takes_the_firsts_place() -> None:
    gauge = ReadGauge("x", "X.", Registry())
    gauge.read_by(lambda: 1, {"of": "a"})
    gauge.read_by(lambda: 2, {"of": "a"})
    assert gauge.get_all() == [({"of": "a"}, 2)]


def test_a_value_that_is_forgotten_gives_its_place_back_once() -> None:
    label = Label("x", ["known"], room=1)
    assert [label.clean(value) for value in ("a b", "a_b", "c")] == ["a_b", "a_b", OTHER]
    for _ in range(2):
        label.forget("a b")
        label.forget("known")
        label.forget(OTHER)
    assert [label.clean(value) for value in ("c", "d", "known")] == ["c", OTHER, "known"]


def test_series_of_one_value_of_a_label_can_be_dropped() -> None:
    counts = Counts("x_total", "X.", [Label("a", room=9), Label("b", room=9)], Registry())
    for key in (("one", "two"), ("two", "one"), ("o ne", "two")):
        counts.count(key)
    counts.forget("a", "one")
    counts.forget("a", "o ne")
    assert counts.get_all() == [({"a": "two", "b": "one"}, 1)]
    counts.count(("one", "two"))
    assert counts.get_all()[1:] == [({"a": "one", "b": "two"}, 1)]


def test_what_is_cleaned_to_the_same_value_is_one_series() -> None:
    counts = Counts("x_total", "X.", [Label("x", room=9)], Registry())
    histograms = Histograms("y", "Y.", [Label("x", room=9)], (1.0,), Registry())
    for value in ("a b", "a_b", "a b"):
        counts.count((value,))
        histograms.seen((value,), 0.5)
    assert counts.get_all() == [({"x": "a_b"}, 3)]
    assert histograms.get_all()[0][1] == {1.0: 3, math.inf: 3, "sum": 1.5, "count": 3}


def test_a_number_that_is_forgotten_is_read_no_more() -> None:
    gauge = ReadGauge("x", "X.", Registry())
    for name in ("a b", "c"):
        gauge.read_by(lambda: 1, {"of": name})
    for _ in range(2):
        gauge.forget({"of": "a b"})
    assert gauge.get_all() == [({"of": "c"}, 1)]

"""Two samples: MOVER's coverage by simulation, Cliff's delta against its definition."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.effect import Shift, cliffs_delta, shift, size_of
from loadgen.analysis.stats import Bounds, Sample, describe

some = st.lists(st.integers(0, 20).map(float), min_size=1, max_size=30)


@given(some, some)
def test_cliffs_delta_is_what_all_pairs_say(a: list[float], b: list[float]) -> None:
    pairs = [(x, y) for x in a for y in b]
    expected = (sum(y > x for x, y in pairs) - sum(y < x for x, y in pairs)) / len(pairs)
    found = cliffs_delta(a, b)
    assert found == pytest.approx(expected)
    assert cliffs_delta(b, a) == pytest.approx(-expected)


def test_nothing_is_said_of_an_empty_side() -> None:
    assert cliffs_delta([], [1.0]) is None


@pytest.mark.parametrize(
    ("delta", "word"),
    [(0, "negligible"), (-0.146, "negligible"), (0.2, "small"), (-0.4, "medium"), (0.474, "large"), (-1, "large")],
)
def test_an_effect_has_the_usual_word(delta: float, word: str) -> None:
    assert size_of(delta) == word


def test_a_shifts_interval_holds_the_true_shift_of_medians() -> None:
    source = random.Random(5)
    runs, hits, wrong_side = 400, 0, 0
    for _ in range(runs):
        a, b = Sample(), Sample()
        for _ in range(150):
            a.add((source.expovariate(1),))
            b.add((source.expovariate(1) + 0.4,))
        one, two = (describe(side, (50.0,)).quantiles[0] for side in (a, b))
        assert one.value is not None and two.value is not None  # noqa: PT018
        assert one.interval is not None and two.interval is not None  # noqa: PT018
        found = shift(one.value, one.interval, two.value, two.interval)
        hits += found.interval.low <= 0.4 <= found.interval.high
        wrong_side += found.side == "lower"
    assert hits / runs > 0.93
    assert wrong_side == 0


@given(
    st.floats(-100, 100),
    st.floats(0, 10),
    st.floats(0, 10),
    st.floats(-100, 100),
    st.floats(0, 10),
    st.floats(0, 10),
)
def test_a_shift_turned_around_is_its_mirror(
    a: float, a_down: float, a_up: float, b: float, b_down: float, b_up: float
) -> None:
    of_a, of_b = Bounds(a - a_down, a + a_up), Bounds(b - b_down, b + b_up)
    there, back = shift(a, of_a, b, of_b), shift(b, of_b, a, of_a)
    assert there.value == -back.value
    assert there.interval.low == pytest.approx(-back.interval.high)
    assert there.interval.low <= there.value <= there.interval.high


@pytest.mark.parametrize(
    ("low", "high", "side"), [(1, 2, "higher"), (-2, -1, "lower"), (-1, 1, "unclear"), (0, 1, "unclear")]
)
def test_a_side_is_taken_only_without_doubt(low: float, high: float, side: str) -> None:
    assert Shift(value=(low + high) / 2, interval=Bounds(low, high)).side == side

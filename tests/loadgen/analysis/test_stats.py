"""Percentiles and means: the interval's exact binomial numbers, its coverage, and what dependence does to it."""

from __future__ import annotations

import random
import statistics
from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.stats import (
    PERCENTILES,
    Sample,
    Stat,
    bootstrap_means,
    describe,
    design_effect,
    interpolated,
    into_blocks,
    low_rank,
    needed,
    quantile,
    ranks,
)

SHARES = [Fraction(1, 2), Fraction(9, 10), Fraction(95, 100), Fraction(99, 100)]
values = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


def below(n: int, p: Fraction, upto: int) -> Fraction:
    """P(at most `upto` of n) exactly, in whole numbers."""
    return sum((comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(upto + 1)), Fraction(0))


@pytest.mark.parametrize("n", [1, 5, 6, 40, 72, 400])
@pytest.mark.parametrize("p", SHARES)
def test_the_ranks_are_the_binomial_distributions(n: int, p: Fraction) -> None:
    rank = low_rank(n, float(p), 0.025)
    if rank:
        assert below(n, p, rank - 1) <= Fraction(25, 1000)
    assert below(n, p, rank) > Fraction(25, 1000)


@pytest.mark.parametrize("n", [6, 40, 368, 1000])
@pytest.mark.parametrize("p", SHARES)
def test_an_interval_covers_at_least_what_it_says(n: int, p: Fraction) -> None:
    found = ranks(n, float(p))
    if found is not None:
        low, high = found
        assert below(n, p, high - 1) - below(n, p, low - 1) >= Fraction(95, 100)


def test_simulated_coverage_is_the_binomial_number() -> None:
    source = random.Random(1)
    n, p, runs = 100, 0.9, 4000
    found = ranks(n, p)
    assert found is not None
    hits = 0
    for _ in range(runs):
        ordered = sorted(source.random() for _ in range(n))
        hits += ordered[found[0] - 1] <= p <= ordered[found[1] - 1]
    exact = float(below(n, Fraction(9, 10), found[1] - 1) - below(n, Fraction(9, 10), found[0] - 1))
    assert hits / runs == pytest.approx(exact, abs=4 * (exact * (1 - exact) / runs) ** 0.5)


@pytest.mark.parametrize(("p", "n"), [(50, 6), (90, 36), (95, 72), (99, 368), (99.9, 3688)])
def test_a_percentile_has_an_interval_from_the_first_sample_that_can_hold_it(p: float, n: int) -> None:
    assert needed(p / 100) == n
    assert ranks(n, p / 100) is not None
    assert ranks(n - 1, p / 100) is None
    assert quantile([float(x) for x in range(n)], p).interval is not None
    few = quantile([float(x) for x in range(n - 1)], p)
    assert (few.interval, few.needs, few.effective) == (None, n, n - 1)
    assert few.value == interpolated([float(x) for x in range(n - 1)], p / 100), (
        "the point is numpy's all the same"
    )


def test_a_million_values_have_finite_ranks() -> None:
    found = ranks(1_000_000, 0.999)
    assert found is not None
    assert found[0] == pytest.approx(999_000 - 1.96 * 31.6, abs=3)
    assert found[1] == pytest.approx(999_000 + 1.96 * 31.6, abs=3)


def test_the_point_is_numpys() -> None:
    assert interpolated([1.0, 2.0, 4.0, 8.0], 0.5) == 3.0
    assert interpolated([1.0, 2.0, 4.0, 8.0], 0.9) == pytest.approx(6.8)
    assert interpolated([3.0], 0.99) == 3.0


@given(values)
def test_value_and_interval_stand_in_order(sample: list[float]) -> None:
    for p in PERCENTILES:
        found = quantile(sorted(sample), p)
        if found.value is not None and found.interval is not None:
            assert min(sample) <= found.interval.low <= found.value <= found.interval.high <= max(sample)


def test_a_stall_that_hits_neighbours_counts_as_one_event() -> None:
    together, apart = Sample(), Sample()
    slow = [100.0 if index // 20 % 10 == 0 else 1.0 for index in range(2000)]
    for value in slow:
        together.add((value,))
    shuffled = slow[:]
    random.Random(2).shuffle(shuffled)
    for value in shuffled:
        apart.add((value,))
    many, few = (describe(sample, (90.0,)).quantiles[0] for sample in (apart, together))
    assert few.effective < many.effective / 3
    assert few.needs == many.needs


def test_the_intervals_cover_when_neighbours_depend_on_each_other() -> None:
    """A slowly wandering mean: the textbook interval for independent values would miss far more often."""
    source = random.Random(3)
    widened = naive = 0
    runs = 300
    for _ in range(runs):
        level, sample = 0.0, Sample()
        for _ in range(800):
            level = 0.8 * level + source.gauss(0, 1)
            sample.add((level,))
        found = describe(sample, (50.0,)).quantiles[0].interval
        plain = quantile(sorted(sample.values), 50).interval
        assert found is not None
        assert plain is not None
        widened += found.low <= 0 <= found.high
        naive += plain.low <= 0 <= plain.high
    assert widened / runs > 0.85
    assert naive / runs < 0.75


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=2, max_size=50))
def test_dependence_never_makes_a_sample_worth_more(blocks: list[tuple[int, float]]) -> None:
    counts = [count for count, _ in blocks]
    assert design_effect(counts, [round(count * share) for count, share in blocks]) >= 1


@given(st.lists(st.integers(0, 9), max_size=600))
def test_blocks_take_every_value_once_and_keep_clusters_whole(sizes: list[int]) -> None:
    spans = into_blocks(sizes)
    assert [place for start, end in spans for place in range(start, end)] == list(range(sum(sizes)))
    assert len(spans) <= 200


def test_the_bootstrap_is_seeded_and_centred() -> None:
    source = random.Random(4)
    sums = [source.gauss(50, 5) for _ in range(100)]
    counts = [5.0] * 100
    means = bootstrap_means(sums, counts, seed=7)
    assert means == bootstrap_means(sums, counts, seed=7)
    assert means != bootstrap_means(sums, counts, seed=8)
    assert statistics.fmean(means) == pytest.approx(sum(sums) / sum(counts), abs=0.05)
    assert statistics.stdev(means) == pytest.approx(5 / 5 / 10, rel=0.25)


def test_a_mean_of_few_has_no_interval() -> None:
    sample = Sample()
    for value in range(9):
        sample.add((float(value),))
    assert describe(sample).mean == 4.0
    assert describe(sample).mean_interval is None


def test_an_empty_sample_tells_nothing() -> None:
    found = describe(Sample())
    assert (found.n, found.mean, found.min) == (0, None, None)
    assert all(q.value is None for q in found.quantiles)


# What is only known as an interval


@given(
    st.lists(
        st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=5),
        min_size=8,
        max_size=40,
    ),
    st.randoms(use_true_random=False),
)
def test_whatever_the_truth_is_inside_the_bounds_its_percentile_is_inside_what_is_told(
    clusters: list[list[tuple[float, float, float]]], source: random.Random
) -> None:
    sample, truth = Sample(), []
    for cluster in clusters:
        lows = [value for value, _, _ in cluster]
        highs = [value + one + two for value, one, two in cluster]
        sample.add([value + one for value, one, _ in cluster], lows, highs)
        truth += [source.uniform(low, high) for low, high in zip(lows, highs, strict=True)]
    found = describe(sample, (50.0,)).quantiles[0]
    if found.censoring is not None:
        actual = interpolated(sorted(truth), 0.5)
        assert found.censoring.low - 1e-9 <= actual <= found.censoring.high + 1e-9
        if found.interval is not None:
            assert found.interval.low <= found.censoring.low or found.interval.low <= actual


def test_bounds_that_come_late_leave_what_was_exact_exact() -> None:
    sample = Sample()
    sample.add((1.0, 2.0))
    assert sample.exact
    sample.add((3.0,), (2.5,), (3.5,))
    sample.add((4.0,))
    assert (sample.values, sample.lows, sample.highs) == ([1, 2, 3, 4], [1, 2, 2.5, 4], [1, 2, 3.5, 4])
    assert describe(sample).censored == 0.25
    with pytest.raises(ValueError, match="as many"):
        sample.add((1.0,), (), ())


def test_censoring_widens_a_means_interval() -> None:
    exact, blurred = Sample(), Sample()
    for value in range(200):
        exact.add((float(value),))
        blurred.add((float(value),), (value - 10.0,), (value + 5.0,))
    one, two = describe(exact).mean_interval, describe(blurred).mean_interval
    assert one is not None
    assert two is not None
    assert two.low == pytest.approx(one.low - 10)
    assert two.high == pytest.approx(one.high + 5)


def test_a_stat_finds_its_percentile() -> None:
    stat = Stat(n=0, quantiles=[quantile([], 99.9)])
    assert stat.at(99.9) is stat.quantiles[0]
    assert stat.at(50) is None

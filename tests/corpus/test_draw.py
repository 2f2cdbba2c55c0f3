"""Chance by seed: pinned sequences, and the moments of each distribution."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.draw import Draw

N = 20_000


def test_the_draws_of_a_seed_are_pinned() -> None:
    """A change here changes every workload: it would have to be said."""
    draw = Draw(0, "pinned")
    assert [draw.below(1000) for _ in range(5)] == PINNED
    assert Draw(0, "pinned").unit() != Draw(1, "pinned").unit() != Draw(1, "other").unit()


PINNED = [886, 434, 991, 310, 887]


@pytest.mark.parametrize("shape", [0.2, 0.35, 1.0, 4.0])
def test_gamma_has_its_mean_and_its_variance(shape: float) -> None:
    draw = Draw(0, "gamma", shape)
    values = [draw.gamma(shape, 3.0) for _ in range(N)]
    assert statistics.fmean(values) == pytest.approx(3.0, rel=5 / math.sqrt(shape * N))
    assert statistics.pvariance(values) == pytest.approx(9.0 / shape, rel=0.15)


def test_normal_and_exponential_have_their_moments() -> None:
    draw = Draw(0, "moments")
    normal = [draw.normal() for _ in range(N)]
    assert abs(statistics.fmean(normal)) < 0.03
    assert statistics.pstdev(normal) == pytest.approx(1, abs=0.03)
    exponential = [draw.exponential(2.0) for _ in range(N)]
    assert statistics.fmean(exponential) == pytest.approx(2, rel=0.05)
    assert statistics.pstdev(exponential) == pytest.approx(2, rel=0.06)


@given(st.integers(), st.lists(st.integers()))
def test_a_shuffle_keeps_what_it_shuffles_and_repeats_itself(seed: int, items: list[int]) -> None:
    once, twice = list(items), list(items)
    Draw(seed, "s").shuffle(once)
    Draw(seed, "s").shuffle(twice)
    assert once == twice
    assert sorted(once) == sorted(items)


@given(st.integers(), st.integers(1, 10**9))
def test_below_stays_below(seed: int, n: int) -> None:
    assert 0 <= Draw(seed).below(n) < n

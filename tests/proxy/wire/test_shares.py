"""A count of tokens divided among several requests: in proportion, whole, and adding up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.shares import shares_of


@given(weights=st.lists(st.integers(0, 1000), min_size=1, max_size=16).filter(any))
def test_weights_that_are_counts_and_add_up_are_the_shares(weights: list[int]) -> None:
    assert shares_of(sum(weights), weights) == weights


@given(total=st.integers(0, 10_000), weights=st.lists(st.integers(0, 1000), min_size=1, max_size=16))
def test_shares_are_in_proportion_within_one_and_add_up(total: int, weights: list[int]) -> None:
    found = shares_of(total, weights)
    assert sum(found) == total
    whole = sum(weights) or len(weights)
    for share, weight in zip(found, weights if sum(weights) else [1] * len(weights), strict=True):
        assert abs(share - total * weight / whole) < 1


@pytest.mark.parametrize(
    ("total", "weights", "found"),
    [
        (3, [4, 1, 1], [2, 1, 0]),  # what is over goes to the largest remainder, not to the largest weight
        (10, [1, 1, 1], [4, 3, 3]),
        (7, [0, 0], [4, 3]),
        (5, [0, 1], [0, 5]),
        (10, [1, 4], [2, 8]),
        (3, [1, 1], [2, 1]),
        (0, [1], [0]),
    ],
)
def test_what_is_over_goes_to_the_largest_remainder(total: int, weights: list[int], found: list[int]) -> None:
    assert shares_of(total, weights) == found

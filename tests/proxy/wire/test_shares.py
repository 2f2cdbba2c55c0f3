"""A count of tokens divided among several requests: in proportion, whole, and adding up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.shares import shares, shares_beside


@given(total=st.integers(0, 10_000), weights=st.lists(st.integers(0, 1000), min_size=1, max_size=16))
def test_shares_are_in_proportion_within_one_and_add_up(total: int, weights: list[int]) -> None:
    found = shares(total, weights)
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
    ],
)
def test_what_is_over_goes_to_the_largest_remainder(total: int, weights: list[int], found: list[int]) -> None:
    assert shares(total, weights) == found


@given(
    st.lists(st.tuples(st.integers(0, 500), st.none() | st.integers(0, 500)), min_size=1, max_size=20),
    st.integers(0, 20_000),
)
def test_shares_of_usage_sum_to_what_the_engine_counted(items: list[tuple[int, int | None]], total: int) -> None:
    found = shares_beside(total, [weight for weight, _ in items], [known for _, known in items])
    assert sum(found) == total
    assert min(found) >= 0


@given(st.lists(st.integers(1, 500), min_size=1, max_size=20), st.integers(0, 5000))
def test_what_is_known_keeps_its_count_and_one_that_is_not_has_exactly_the_rest(
    known: list[int], rest: int
) -> None:
    assert shares_beside(sum(known), [1] * len(known), known) == known
    assert shares_beside(sum(known) + rest, [1] * (len(known) + 1), [*known, None]) == [*known, rest]


def test_shares_beside_known_counts_are_in_proportion() -> None:
    assert shares_beside(10, [1, 4], [None, None]) == [2, 8]
    assert shares_beside(3, [1, 1], [None, None]) == [2, 1]
    assert shares_beside(12, [5, 1, 1], [10, None, None]) == [10, 1, 1]


@pytest.mark.parametrize(
    ("total", "weights", "known", "found"),
    [
        (10, [1, 1], [12, None], [9, 1]),  # more is known than there is: it only weighs
        (10, [1, 1], [4, 5], [4, 6]),  # less, and nobody else to have it
        (9, [1, 1], [4, 5], [4, 5]),
        (4, [1, 1], [4, None], [4, 0]),
        (10, [0, 0, 0], [None, None, None], [4, 3, 3]),
        (5, [4, 1, 1], [None, None, None], [3, 1, 1]),
        (3, [4, 1, 1], [None, None, None], [2, 1, 0]),
        (0, [1], [None], [0]),
    ],
)
def test_shares_keep_what_is_known_where_it_can_be(
    total: int, weights: list[int], known: list[int | None], found: list[int]
) -> None:
    assert shares_beside(total, weights, known) == found

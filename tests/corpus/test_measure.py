"""Statistics of a workload, against counts made by hand and against a slow model."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.measure import Prefixes, Twins, dispersion, gap_cv, prompt_bytes, quantile

PROMPTS = st.lists(st.binary(max_size=40).map(lambda b: bytes(x % 2 for x in b)), max_size=12)


@given(PROMPTS, st.integers(1, 8))
def test_the_prefix_cache_counts_like_a_set_of_prefixes(prompts: list[bytes], size: int) -> None:
    cache = Prefixes(size)
    seen: set[bytes] = set()
    hits = blocks = 0
    for prompt in prompts:
        full = [prompt[: end + size] for end in range(0, len(prompt) - size + 1, size)]
        found = sum(prefix in seen for prefix in full)
        assert cache.add(prompt) == found
        hits, blocks = hits + found, blocks + -(-len(prompt) // size)
        seen.update(full)
    assert (cache.hits, cache.blocks) == (hits, blocks)


def test_reuse_of_blocks_is_told_apart_from_single_use() -> None:
    cache = Prefixes(2)
    for prompt in (b"aabb", b"aacc", b"aadd", b"ee"):
        cache.add(prompt)
    assert cache.block_share == 2 / 7
    assert cache.byte_share == 4 / 14
    assert cache.once() == 4 / 5
    assert cache.top_tenth() == 1.0


def test_an_empty_cache_has_no_shares_and_no_errors() -> None:
    cache = Prefixes(4)
    assert (cache.block_share, cache.byte_share, cache.once(), cache.top_tenth()) == (0, 0, 0, 0)


def test_twins_are_the_same_bytes_whatever_their_members_order() -> None:
    twins = Twins()
    twins.add({"prompt": "a", "max_tokens": 1})
    twins.add({"max_tokens": 1, "prompt": "a"})
    twins.add({"prompt": "a", "max_tokens": 2})
    twins.add({"prompt": "a", "max_tokens": 1}, "completions")
    assert twins.duplicate_share == 1 / 4


def test_roles_part_prompts_only_behind_their_text() -> None:
    a = prompt_bytes({"messages": [{"role": "system", "content": "same"}, {"role": "user", "content": "x"}]})
    b = prompt_bytes({"messages": [{"role": "system", "content": "same"}, {"role": "user", "content": "y"}]})
    assert a.startswith(b"same")
    assert a[:-7] == b[:-7]
    assert a != b


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.75, 3), (0.76, 4), (0.99, 4), (0, 1)])
def test_a_quantile_is_a_value_that_occurred(share: float, value: float) -> None:
    assert quantile([1, 2, 3, 4], share) == value


def test_even_arrivals_have_no_spread_and_single_ones_have_no_figures() -> None:
    even = [n / 2 for n in range(200)]
    assert gap_cv(even) == 0
    assert dispersion(even, 1) == 0
    assert math.isnan(gap_cv([1.0]))
    assert math.isnan(dispersion([1.0, 2.0], 1))
    assert math.isnan(dispersion([], 1))


def test_bursts_of_ten_have_a_dispersion_of_their_size() -> None:
    times = sorted(float(second) for second in range(0, 100, 2) for _ in range(10))
    assert dispersion(times, 1) == pytest.approx(5, rel=0.05)  # counts of 10 and 0 in turn: 25 over 5

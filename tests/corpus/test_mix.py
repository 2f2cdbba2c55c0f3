"""Twins: exactly as many as asked, by Zipf's law; and nonces that part every prompt from every other."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.draw import Draw
from corpus.measure import prompt_bytes, zipf_exponent
from corpus.mix import Zipf, mixed, nonce, with_nonce


@given(st.integers(1, 400), st.floats(0, 0.999), st.floats(0, 3), st.integers())
def test_exactly_the_asked_share_repeats_an_earlier_request(
    count: int, duplicates: float, zipf: float, seed: int
) -> None:
    order = mixed(count, duplicates, zipf, Draw(seed))
    assert len(order) == count
    assert count - len(set(order)) == min(round(duplicates * count), count - 1)


@given(st.integers(1, 200), st.floats(0, 0.999), st.integers())
def test_prompts_are_numbered_in_the_order_of_their_first_request(
    count: int, duplicates: float, seed: int
) -> None:
    order = mixed(count, duplicates, 1.1, Draw(seed))
    assert list(dict.fromkeys(order)) == list(range(len(set(order))))
    assert order == mixed(count, duplicates, 1.1, Draw(seed))


@pytest.mark.parametrize("exponent", [0.7, 1.1, 1.6])
def test_zipfs_exponent_is_recovered_from_draws(exponent: float) -> None:
    zipf, chance = Zipf(300, exponent), Draw(0)
    counts = Counter(zipf.draw(chance) for _ in range(20_000))
    assert zipf_exponent([counts[rank] for rank in range(300)]) == pytest.approx(exponent, abs=0.05)


@pytest.mark.parametrize("exponent", [0.8, 1.1, 1.5])
def test_zipfs_exponent_is_recovered_from_a_mix(exponent: float) -> None:
    """Of the pool alone: prompts that are asked once belong to no law. Sorting bends the estimate a little."""
    order = Counter(mixed(20_000, 0.9, exponent, Draw(0)))
    pool = sorted(order.values(), reverse=True)[:300]
    assert zipf_exponent(pool) == pytest.approx(exponent, abs=0.1)


def test_nearly_everything_may_repeat_but_one_request_must_be_the_first() -> None:
    assert mixed(3, 0.999, 1.1, Draw(0)) == [0, 0, 0]
    assert mixed(1, 0.5, 1.1, Draw(0)) == [0]


FIELDS = [
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "max_tokens": 3},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}]}]},
    {"messages": [{"role": "assistant", "content": None}]},
    {"prompt": "p"},
    {"input": "i"},
    {"input": ["a", "b"]},
]


@pytest.mark.parametrize("fields", FIELDS)
def test_a_nonce_stands_at_the_very_front_and_the_original_is_left_alone(fields: dict[str, object]) -> None:
    before = repr(fields)
    made = with_nonce(fields, "0123456789abcdef")
    assert prompt_bytes(made).lstrip(b'[{"type:x,').startswith((b"0123", b'": "text", "text": "0123', b"0123"))
    assert repr(fields) == before
    assert made.get("max_tokens") == fields.get("max_tokens")


def test_token_ids_cannot_carry_a_nonce() -> None:
    with pytest.raises(ValueError, match="token ids"):
        with_nonce({"prompt": [1, 2, 3]}, "x")


def test_nonces_differ_by_salt_and_by_name() -> None:
    made = {nonce(salt, kind, n) for salt in "ab" for kind in ("run", "warm-up") for n in range(500)}
    assert len(made) == 2000
    assert len({n[:8] for n in made}) == 2000

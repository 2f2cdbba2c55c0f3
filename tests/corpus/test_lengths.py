"""Lengths: published moments and quantiles come back, and flags are read or refused."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.draw import Draw
from corpus.lengths import Fixed, Lengths, Lognormal, Quantiles, parse_lengths
from corpus.measure import quantile
from corpus.presets import PRESETS

N = 20_000


def drawn(lengths: Lengths, seed: int = 0) -> list[int]:
    chance = Draw(seed, "lengths")
    return sorted(lengths.draw(chance) for _ in range(N))


@given(st.floats(2, 9), st.floats(0.1, 2), st.integers(0, 99))
def test_a_lognormals_mu_and_sigma_come_back(mu: float, sigma: float, seed: int) -> None:
    chance = Draw(seed, "l")
    logs = [math.log(Lognormal(mu, sigma, longest=10**12).draw(chance)) for _ in range(2000)]
    median = statistics.median(logs)
    assert median == pytest.approx(mu, abs=6 * sigma / math.sqrt(2000) + 0.1)
    if mu > 4 * sigma:  # otherwise rounding up to one token shows
        assert statistics.pstdev(logs) == pytest.approx(sigma, rel=0.12, abs=0.05)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("side", ["input", "output"])
def test_published_quantiles_and_means_come_back(name: str, side: str) -> None:
    preset = PRESETS[name]
    values = drawn(preset.inputs if side == "input" else preset.outputs)
    for share, rel in ((50, 0.05), (90, 0.05), (99, 0.08)):
        assert quantile(values, share / 100) == pytest.approx(preset.published[f"{side} p{share}"], rel=rel, abs=1)
    assert statistics.fmean(values) == pytest.approx(preset.published[f"{side} mean"], rel=0.05)


def test_input_and_output_lengths_are_drawn_apart() -> None:
    asked, answered = Draw(0, "input"), Draw(0, "output")
    lengths = Lognormal(6.63, 0.99)
    pairs = [(math.log(lengths.draw(asked)), math.log(lengths.draw(answered))) for _ in range(5000)]
    assert abs(statistics.correlation(*zip(*pairs, strict=True))) < 0.06


def test_lengths_are_cut_at_the_longest_and_at_one() -> None:
    assert drawn(Lognormal(9, 3, longest=100))[-1] == 100
    assert drawn(Lognormal(0, 3))[0] == 1
    assert drawn(Quantiles(2, 10, 20, 4, longest=25))[-1] <= 25


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("512", Fixed(512)),
        ("lognormal:6.63,0.99", Lognormal(6.63, 0.99)),
        ("quantiles:10,20,30,12", Quantiles(10, 20, 30, 12, longest=120)),
    ],
)
def test_lengths_are_read_from_flags(text: str, lengths: Lengths) -> None:
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-3",
        "1.5",
        "nan",
        "inf",
        "lognormal:1",
        "lognormal:50,1",
        "quantiles:3,2,1,1",
        "uniform:1,2",
        "1e99",
    ],
)
def test_lengths_that_make_no_sense_are_refused_with_what_does(text: str) -> None:
    with pytest.raises(ValueError, match="lognormal:MU,SIGMA"):
        parse_lengths(text)

"""Arrival processes: order, rate, gap CV and dispersion against the published ones and against the formula."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.arrivals import Arrivals, Modulated, OnOff, Renewal, Slotted, modulated
from corpus.draw import Draw
from corpus.measure import dispersion, gap_cv
from corpus.presets import PRESETS

PROCESSES = st.sampled_from(
    [
        Renewal(3),
        Renewal(3, 0.3),
        Renewal(3, float("inf")),
        Modulated(3, 0.5, 2),
        OnOff(3, 2, 5, 0.4),
        Slotted(Renewal(3), 3),
    ]
)


@given(PROCESSES, st.integers(0, 200), st.integers())
def test_times_ascend_from_zero_and_follow_the_seed(process: Arrivals, count: int, seed: int) -> None:
    times = process.times(count, Draw(seed))
    assert len(times) == count
    assert times == sorted(times)
    assert all(t >= 0 for t in times)
    assert times == process.times(count, Draw(seed))


@pytest.mark.parametrize(("burstiness", "cv"), [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5), (float("inf"), 0.0)])
def test_burstiness_sets_the_gap_cv_and_not_the_rate(burstiness: float, cv: float) -> None:
    times = Renewal(4.0, burstiness).times(20_000, Draw(0))
    assert gap_cv(times) == pytest.approx(cv, rel=0.06, abs=1e-6)
    assert len(times) / times[-1] == pytest.approx(4.0, rel=0.06)


@pytest.mark.parametrize(("rate", "at_1", "at_10"), [(5.5, 1.4, 3.9), (3.9, 1.1, 1.2), (10, 3, 20)])
def test_the_modulated_process_is_solved_for_its_dispersions(rate: float, at_1: float, at_10: float) -> None:
    process = modulated(rate, at_1, at_10)
    assert process.dispersion(1) == pytest.approx(at_1, rel=1e-6)
    assert process.dispersion(10) == pytest.approx(at_10, rel=1e-6)


def many(name: str, seeds: int = 5) -> dict[str, float]:
    """Medians over seeds: a trace's own length leaves much to chance."""
    preset = PRESETS[name]
    runs = [preset.arrivals.times(preset.requests, Draw(seed, "arrivals")) for seed in range(seeds)]
    return {
        "rate /s": statistics.median(len(t) / t[-1] for t in runs),
        "gap CV": statistics.median(map(gap_cv, runs)),
        "dispersion 1 s": statistics.median(dispersion(t, 1) for t in runs),
        "dispersion 10 s": statistics.median(dispersion(t, 10) for t in runs),
    }


@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("azure-conv-2023", 0.15),
        ("azure-code-2023", 0.25),
        ("mooncake-conversation", 0.1),
        ("mooncake-synthetic", 0.15),
    ],
)
def test_presets_come_close_to_what_is_published(name: str, within: float) -> None:
    published = PRESETS[name].published
    for row, value in many(name).items():
        if row in published:
            assert value == pytest.approx(published[row], rel=within), row


def test_a_coarse_clock_keeps_its_grid_unless_it_is_jittered() -> None:
    raw = Slotted(Renewal(3.4), 3.0, jitter=False).times(2000, Draw(0))
    assert {t % 3.0 for t in raw} == {0.0}
    spread = Slotted(Renewal(3.4), 3.0).times(2000, Draw(0))
    assert [t // 3 for t in spread] == [t // 3 for t in raw]
    assert len(set(spread)) == 2000

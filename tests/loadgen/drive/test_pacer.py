"""When requests are due: means, spread, seeds, and schedules that never drift or run backwards."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.drive.pacer import Ramp, counted_times, open_loop_times, ramp_times, trace_times


def first(times: object, count: int) -> list[float]:
    return list(itertools.islice(times, count))  # type: ignore[call-overload]


def test_a_constant_rate_is_computed_from_the_index_and_does_not_drift() -> None:
    times = first(open_loop_times(10, math.inf), 100_001)
    assert times[:3] == [0.0, 0.1, 0.2]
    assert times[100_000] == 10_000.0


@given(
    st.floats(0.1, 1000), st.integers(1, 300), st.sampled_from([0.01, 0.5, 1.0, 5.0, math.inf]), st.integers(0, 9)
)
def test_a_stage_has_exactly_its_rate_and_is_not_left_to_chance(
    rate: float, count: int, burstiness: float, seed: int
) -> None:
    times = list(counted_times(rate, count, burstiness, seed=seed))
    assert len(times) == count
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= count / rate * (1 + 1e-9)


def test_counted_poisson_arrivals_are_uniform_over_their_time() -> None:
    drawn = sorted(at for seed in range(200) for at in counted_times(10, 20, seed=seed))
    assert max(abs(at / 2 - (place + 0.5) / 4000) for place, at in enumerate(drawn)) < 0.03
    gaps = [b - a for seed in range(200) for a, b in itertools.pairwise(counted_times(10, 20, seed=seed))]
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(0.95, abs=0.05), "not even"


def test_gaps_that_underflow_are_no_division_by_zero() -> None:
    assert list(counted_times(5, 10, 1e-9)) == [0.0] * 10


def test_an_infinite_rate_is_everything_at_once() -> None:
    assert first(open_loop_times(math.inf), 3) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_and_the_spread_that_were_asked(burstiness: float) -> None:
    times = first(open_loop_times(50, burstiness, seed=7), 40_000)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = statistics.fmean(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(gaps) / mean == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_a_poisson_schedule_is_not_rescaled_to_an_exact_total() -> None:
    ends = {round(first(open_loop_times(10, seed=seed), 100)[-1], 6) for seed in range(20)}
    assert len(ends) == 20
    assert statistics.stdev(ends) == pytest.approx(1.0, rel=0.5)  # sqrt(100) gaps of 0.1 s


@given(st.integers(), st.floats(0.1, 1000), st.floats(0.1, 10))
def test_the_same_seed_gives_the_same_schedule_and_time_never_runs_backwards(
    seed: int, rate: float, burstiness: float
) -> None:
    times = first(open_loop_times(rate, burstiness, seed=seed), 50)
    assert times == first(open_loop_times(rate, burstiness, seed=seed), 50)
    assert times == sorted(times)


@pytest.mark.parametrize(("strategy", "middle"), [("linear", 5.5), ("exponential", math.sqrt(10))])
def test_a_ramp_goes_from_its_start_to_its_end_by_the_share_of_requests_sent(strategy: str, middle: float) -> None:
    shape = Ramp(strategy=strategy, start=1, end=10, over=101)  # type: ignore[arg-type]
    assert shape.rate_at(0) == pytest.approx(1)
    assert shape.rate_at(50) == pytest.approx(middle)
    assert shape.rate_at(100) == shape.rate_at(500) == pytest.approx(10)


def test_a_constant_ramps_gaps_shrink() -> None:
    times = first(ramp_times(Ramp(strategy="linear", start=1, end=10, over=50), math.inf), 50)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps == sorted(gaps, reverse=True)
    assert times[0] == 0.0


def test_a_trace_is_replayed_at_its_speed() -> None:
    assert list(trace_times([0.0, 1.0, 1.0, 4.0], 2.0)) == [0.0, 0.5, 0.5, 2.0]


@pytest.mark.parametrize(
    ("times", "said"), [([0.0, None], "request 1 of the trace has no time"), ([1.0, 0.5], "0.5 s before")]
)
def test_a_trace_that_cannot_be_replayed_says_which_request(times: list[float | None], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list(trace_times(times))

"""Where a server saturates, on servers made of arithmetic."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.knee import (
    Limit,
    SweepStage,
    chance_warning,
    completion_ratio,
    find_limit,
    next_rate,
    saturated,
    unsteady_warning,
)


def mm1(rate: float, capacity: float, base_ms: float = 10.0) -> SweepStage:
    """A queue of one server: waiting grows as 1/(1 - load), and beyond its capacity it only keeps its pace."""
    if rate >= capacity:
        return SweepStage(requested=rate, pace=capacity / rate, ttft_p50_ms=base_ms * 100)
    return SweepStage(requested=rate, pace=1.0, ttft_p50_ms=base_ms / (1 - rate / capacity))


def sweep(capacity: float, start: float = 1.0, limit: float = 10_000.0) -> list[SweepStage]:
    stages: list[SweepStage] = []
    while (rate := next_rate(stages, start=start, limit=limit)) is not None:
        assert len(stages) < 40, "it does not end"
        stages.append(mm1(rate, capacity))
    return stages


@given(st.floats(20, 5000))
def test_the_knee_lies_below_the_capacity_and_near_where_the_queue_quadruples(capacity: float) -> None:
    found = find_limit(sweep(capacity)).knee
    assert found is not None
    assert capacity * 0.5 < found < capacity * 0.8  # TTFT is four times the base's at 75 % load


def test_a_server_that_is_never_saturated_is_tried_up_to_the_limit_and_no_further() -> None:
    stages = sweep(math.inf, limit=100)
    assert [stage.requested for stage in stages] == [1, 2, 4, 8, 16, 32, 64, 100]
    limit = find_limit(stages)
    assert limit == Limit(kept=100)
    assert limit.knee is None, "no rate was too much, so where the limit lies is not known"
    assert str(limit) == "no limit found up to 100 req/s"


def test_a_server_saturated_from_the_start_is_tried_lower() -> None:
    stages = sweep(3.0, start=64)
    assert min(stage.requested for stage in stages) < 3
    assert all(stage.requested <= 64 for stage in stages)


def test_a_lucky_stage_above_a_saturated_one_does_not_move_the_knee() -> None:
    stages = [mm1(1, 100), mm1(2, 100), SweepStage(requested=4, pace=0.5, ttft_p50_ms=10), mm1(8, 100)]
    assert find_limit(stages) == Limit(kept=2, over=4)


@pytest.mark.parametrize(
    ("stage", "bad"),
    [
        (SweepStage(requested=10, pace=0.96, ttft_p50_ms=10), False),
        (SweepStage(requested=10, pace=0.94, ttft_p50_ms=10), True),
        (SweepStage(requested=10, pace=1, ttft_p50_ms=39), False),
        (SweepStage(requested=10, pace=1, ttft_p50_ms=41), True),
        (SweepStage(requested=10, pace=1, ttft_p50_ms=10, failed=0.06), True),
        (SweepStage(requested=10, pace=0, ttft_p50_ms=None), True),
    ],
)
def test_a_stage_is_saturated_by_rate_by_latency_or_by_failures(stage: SweepStage, bad: bool) -> None:
    assert saturated(stage, 10.0) is bad


def test_nothing_measured_has_no_knee() -> None:
    assert find_limit([]) == Limit()
    assert str(Limit()) == "nothing was measured"
    assert next_rate([], start=3, limit=10) == 3


@given(st.integers(40, 400), st.floats(0.3, 3.0), st.integers(0, 2**32))
def test_the_pace_is_the_capacitys_share_of_the_load_whatever_single_answers_take(
    requests: int, load: float, seed: int
) -> None:
    """One place, 1,000 units an answer; then each answer streams on by itself, the last one for long."""
    chance = random.Random(seed)
    dues = [round(place * 1000 / load) for place in range(requests)]
    free, ends = 0, []
    for due in dues:
        free = max(free, due) + 1000
        ends.append(free + chance.randrange(1000))
    ends[-1] += requests * 1000
    assert completion_ratio(dues, ends) == pytest.approx(min(1 / load, 1.0), abs=0.06)


def test_a_pace_of_nothing_is_none_at_all() -> None:
    assert completion_ratio([], []) == completion_ratio([1], []) == 0
    assert completion_ratio([5], [900]) == 1


def test_a_knee_names_what_was_completed_where_that_is_less() -> None:
    """“Knee: 10 req/s” stood below a table with 9.8 done/s."""
    done = [(5.0, 4.98), (10.0, 9.8), (20.0, 11.0)]
    stages = [
        SweepStage(requested=rate, pace=1 if rate < 20 else 0.5, ttft_p50_ms=9, completed=each)
        for rate, each in done
    ]
    assert str(find_limit(stages)) == "10 req/s (9.8 done/s); 20 was too much"
    assert str(find_limit([stages[0], stages[2]])) == "5 req/s; 20 was too much"


def test_a_rate_that_few_random_arrivals_called_too_much_is_told() -> None:
    kept, over = (
        SweepStage(requested=rate, pace=pace, ttft_p50_ms=9, requests=30)
        for rate, pace in ((4.0, 1.0), (8.0, 0.9))
    )
    said = chance_warning([kept, over])
    assert said is not None
    assert said.startswith("8 req/s was too much by 30 requests at random times: with fewer than 120 ")
    assert chance_warning([kept]) is None
    for more in ({"requests": 120}, {"pace": 0.5}, {"failed": 0.1}):
        assert chance_warning([kept, msgspec.structs.replace(over, **more)]) is None


def test_a_lightest_stage_that_was_slower_than_a_heavier_one_is_told() -> None:
    slow, quick = (
        SweepStage(requested=1, pace=1, ttft_p50_ms=7632),
        SweepStage(requested=2, pace=1, ttft_p50_ms=180),
    )
    said = unsteady_warning([quick, slow])
    assert said is not None
    assert "7,632 ms at 1/s, 180 ms at 2/s" in said
    assert unsteady_warning([mm1(rate, 10) for rate in (1, 2, 4, 8)]) is None
    assert unsteady_warning([slow]) is None
    assert unsteady_warning([slow, SweepStage(requested=2, pace=0, ttft_p50_ms=None)]) is None

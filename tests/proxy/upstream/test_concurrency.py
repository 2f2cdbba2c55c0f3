"""The controller of how many requests an engine is sent: it finds the knee, from both sides, and stays there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.concurrency import MOST, QUEUE_SHARE, START, AdaptiveLimit
from proxy.upstream.load import LoadReport


@dataclass
class Simulated:
    """An engine that runs `places` requests at a time and lets the rest wait, in steps of a tenth of a second; a
    request takes `steps` of them. There is always more to send."""

    places: int
    steps: int = 10
    base: float = 0.05  # seconds to the first token with nothing before it
    running: list[int] = field(default_factory=list)  # steps left
    waiting: list[float] = field(default_factory=list)  # when each came
    now: float = 0.0

    def second(self, adaptive_limit: AdaptiveLimit, limit: int, demand: int = 10**6) -> int:
        """One second, and the pacer's tick after it."""
        reached = False
        for _ in range(10):
            while len(self.running) + len(self.waiting) < min(limit, demand):
                self.waiting.append(self.now)
            reached = reached or len(self.running) + len(self.waiting) >= limit
            self.running = [left - 1 for left in self.running if left > 1]
            while self.waiting and len(self.running) < self.places:
                adaptive_limit.answered(self.waiting.pop(0), self.now + self.base)
                self.running.append(self.steps)
            self.now += 0.1
        report = LoadReport(float(len(self.running)), float(len(self.waiting)), 0.5)
        return adaptive_limit.tick(self.now, reached=reached, report=report)


@pytest.mark.parametrize("places", [8, 64, 256, 1000])
@pytest.mark.parametrize("start", [1, 16, START, 2000])
def test_it_finds_what_the_engine_takes_from_below_and_from_above(start: int, places: int) -> None:
    engine, adaptive_limit = Simulated(places), AdaptiveLimit(start)
    limits = [start]
    for _ in range(120):
        limits.append(engine.second(adaptive_limit, limits[-1]))
    settled = limits[-40:]
    assert min(settled) >= 0.7 * places, settled
    assert max(settled) <= 1.6 * places + 4, settled


@pytest.mark.parametrize(
    ("places", "limits"),
    [(16, [256, 128, 64, 32, 17]), (64, [256, 128, 68]), (256, [256, 512]), (1000, [256, 512, 1024])],
)
def test_a_burst_at_a_cold_engine_goes_out_at_once_and_a_small_one_s_queue_is_soon_short(
    places: int, limits: list[int]
) -> None:
    engine, adaptive_limit = Simulated(places, steps=10**9), AdaptiveLimit()
    found = [adaptive_limit.limit]
    for _ in limits[1:]:
        found.append(engine.second(adaptive_limit, found[-1]))
    assert found == limits


def test_it_follows_an_engine_that_gets_slower_and_faster() -> None:
    engine, adaptive_limit = Simulated(64), AdaptiveLimit()
    limit = adaptive_limit.limit
    for places in (64, 16, 64):
        engine.places = places
        for _ in range(90):
            limit = engine.second(adaptive_limit, limit)
        assert 0.6 * places <= limit <= 3 * places, (places, limit)


@pytest.mark.parametrize("ttft", [0.001, 0.1, 30.0], ids=str)
def test_an_engine_that_reports_nothing_keeps_its_places_whatever_its_first_tokens_take(ttft: float) -> None:
    """Prompts of other lengths, a tenth of them or all: that is no queue."""
    adaptive_limit = AdaptiveLimit()
    for now in range(100):
        for n in range(20):
            adaptive_limit.answered(float(now), now + (ttft if n < now else 0.05))
            adaptive_limit.abandoned(float(now), now + ttft)
        assert adaptive_limit.tick(now + 1.0, reached=now % 2 == 0, report=None) == START


def test_without_reports_a_limit_that_was_lower_comes_back() -> None:
    """vLLM with 8 slots is replaced by an engine that reports nothing."""
    engine, adaptive_limit = Simulated(8), AdaptiveLimit()
    for _ in range(60):
        limit = engine.second(adaptive_limit, adaptive_limit.limit)
    assert limit < 12
    assert [adaptive_limit.tick(0.0, reached=False, report=None) for _ in range(9)] == [limit] * 9
    limits = [adaptive_limit.tick(0.0, reached=True, report=None) for _ in range(60)]
    assert limits == sorted(limits)
    assert limits[-20:] == [START] * 20


def test_prompts_that_waited_for_their_prefill_cost_places_for_seconds_only() -> None:
    """256 long prompts at once: for half a minute most wait for their prefill. Then all run: the engine takes so
    many, and as they end it gets as many again, not a tenth more each second."""
    adaptive_limit = AdaptiveLimit()
    for run in range(8, 257, 8):
        adaptive_limit.tick(0.0, reached=True, report=LoadReport(float(run), 256.0 - run, 0.5))
    assert adaptive_limit.limit <= 128, "a queue in the engine cuts it meanwhile"
    limits = [adaptive_limit.tick(0.0, reached=True, report=LoadReport(250.0, 0.0, 0.5)) for _ in range(4)]
    assert limits[-1] >= 256, limits


def test_what_ran_before_the_cache_was_full_is_no_measure_any_more() -> None:
    adaptive_limit = AdaptiveLimit()
    adaptive_limit.tick(0.0, reached=True, report=LoadReport(100.0, 156.0, 0.5))
    adaptive_limit.tick(0.0, reached=True, report=LoadReport(40.0, 20.0, 0.99))
    assert adaptive_limit.limit == 36
    assert adaptive_limit.tick(0.0, reached=True, report=LoadReport(36.0, 0.0, 0.9)) == 39


def test_quiet_times_teach_it_nothing() -> None:
    engine, adaptive_limit = Simulated(64), AdaptiveLimit()
    limit = adaptive_limit.limit
    for _ in range(60):
        limit = engine.second(adaptive_limit, limit)
    busy = limit
    for _ in range(600):
        limit = engine.second(adaptive_limit, limit, demand=3)
    assert limit == pytest.approx(busy, rel=0.35)


@pytest.mark.parametrize("reports", [True, False], ids=["reports", "silent"])
@pytest.mark.parametrize("start", [1, 16, 500])
def test_an_objective_holds_where_an_engine_slows_down_and_its_queue_shows_nothing(
    start: int, reports: bool
) -> None:
    """Its first token takes 20 ms for each request under way: 50 of them take a second."""
    adaptive_limit, limit, now = AdaptiveLimit(start, objective=1.0), start, 0.0
    limits = []
    for _ in range(120):
        for n in range(20):
            sent = now + n / 20
            adaptive_limit.answered(sent, sent + 0.02 * limit)
        now += 1.0
        limit = adaptive_limit.tick(
            now, reached=True, report=LoadReport(float(limit), 0.0, 0.1) if reports else None
        )
        limits.append(limit)
    if reports:
        assert min(limits[-40:]) >= 30, limits
    assert max(limits[-40:]) <= 52, limits


def test_clients_that_leave_for_want_of_a_first_token_speak_too() -> None:
    adaptive_limit = AdaptiveLimit(32, objective=1.0)
    for n in range(5):
        adaptive_limit.abandoned(0.0, 0.5 if n < 2 else 4.0)  # who leaves early says nothing
    assert adaptive_limit.tick(1.0, reached=True, report=LoadReport(32.0, 0.0, 0.1)) == 16


def test_one_slow_prompt_does_not_cut_it() -> None:
    adaptive_limit = AdaptiveLimit(32, objective=1.0)
    for _ in range(10):
        for ttft in (0.05, 0.05, 0.05, 0.06, 9.0):
            adaptive_limit.answered(0.0, ttft)
        before = adaptive_limit.limit
        assert adaptive_limit.tick(0.0, reached=False, report=None) == before


def test_a_full_cache_cuts_below_what_runs() -> None:
    adaptive_limit = AdaptiveLimit(100)
    assert adaptive_limit.tick(0.0, reached=True, report=LoadReport(50.0, 0.0, 0.99)) == 45


def test_with_nothing_seen_nothing_changes() -> None:
    adaptive_limit = AdaptiveLimit(7, objective=1.0)
    for _ in range(5):
        assert adaptive_limit.tick(0.0, reached=True, report=None) == 7


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.one_of(
                st.none(),
                st.builds(LoadReport, st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1)),
            ),
            st.lists(st.floats(0, 1e4), max_size=5),
        ),
        max_size=60,
    )
)
def test_whatever_is_seen_it_stays_within_its_bounds(
    ticks: list[tuple[bool, LoadReport | None, list[float]]],
) -> None:
    adaptive_limit = AdaptiveLimit()
    for reached, report, ttfts in ticks:
        for ttft in ttfts:
            adaptive_limit.answered(0.0, ttft)
        before = adaptive_limit.limit
        limit = adaptive_limit.tick(0.0, reached=reached, report=report)
        assert 1 <= limit <= MOST
        assert limit <= max(2 * before, before + 1), "never more than twice as many at once"
        if not reached:
            assert limit <= before


def test_what_an_engine_queues_decides_at_its_bounds() -> None:
    room = math.ceil(QUEUE_SHARE * 32)

    def tick(waiting: int, *, reached: bool = True) -> int:
        return AdaptiveLimit(100).tick(0.0, reached=reached, report=LoadReport(32.0, float(waiting), 0.1))

    assert tick(room) == 200
    assert tick(room, reached=False) == 100
    assert tick(room + 1) == tick(2 * room) == 100
    assert tick(2 * room + 1) == max(32 + room, 50)

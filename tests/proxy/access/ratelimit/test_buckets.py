"""Meters and permits: what passes, what is refused, what comes back, in which room."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proxy.access.caller import Rates
from proxy.access.ratelimit.buckets import Claim, Levels, Limit, Limits, LocalLimits, limits_of, over, wait

NONE = Limits()


def claim(
    own: Limits = NONE, everyone: Limits = NONE, *, caller: str = "a", tokens: int = 0, permit: str = "p"
) -> Claim:
    return Claim(permit, caller, own, everyone, tokens)


def rps(rate: float, burst: float) -> Limits:
    return Limits(requests=Limit(rate, burst))


@pytest.mark.parametrize(
    ("own", "default", "expected"),
    [
        (Rates(), Rates(), NONE),
        (Rates(), Rates(rps=0, burst=0, tokens_per_minute=0, streams=0), NONE),
        (Rates(), Rates(rps=2), rps(2, 2)),
        (Rates(), Rates(rps=2.5), rps(2.5, 3)),
        (Rates(), Rates(rps=0.1), rps(0.1, 1)),
        (Rates(), Rates(rps=2, burst=9), rps(2, 9)),
        (Rates(rps=5), Rates(rps=2, burst=9), rps(5, 9)),
        (Rates(rps=0), Rates(rps=2, burst=9), NONE),
        (Rates(burst=4), Rates(rps=2), rps(2, 4)),
        (Rates(tokens_per_minute=600), Rates(streams=3), Limits(None, Limit(10, 600), 3)),
        (Rates(streams=0), Rates(streams=3), NONE),
    ],
)
def test_a_caller_s_own_rates_go_before_the_settings(own: Rates, default: Rates, expected: Limits) -> None:
    assert limits_of(own, default) == expected
    assert expected.any is (expected != NONE)


@pytest.mark.parametrize(
    ("bounds", "levels", "tokens", "kind", "seconds"),
    [
        (NONE, Levels(9, 9, 9), 9, None, 0),
        (rps(2, 4), Levels(requests=3), 0, None, 0),
        (rps(2, 4), Levels(requests=3.0000001), 0, None, 0),
        (rps(2, 4), Levels(requests=3.5), 0, "requests", 0.25),
        (Limits(tokens=Limit(10, 600)), Levels(tokens=500), 100, None, 0),
        (Limits(tokens=Limit(10, 600)), Levels(tokens=500), 200, "tokens", 10),
        (Limits(tokens=Limit(10, 600)), Levels(tokens=700), 0, None, 0),
        (Limits(tokens=Limit(10, 600)), Levels(), 601, "tokens", math.inf),
        (Limits(tokens=Limit(10, 600)), Levels(tokens=300), 600, "tokens", 30),
        (Limits(tokens=Limit(10, 600), streams=2), Levels(tokens=700, streams=2), 0, "streams", 1),
        (Limits(streams=2), Levels(streams=1), 0, None, 0),
        (Limits(streams=2), Levels(streams=2), 0, "streams", 1),
        (Limits(Limit(1, 1), Limit(1, 60), 1), Levels(1, 60, 1), 30, "requests", 30),
    ],
)
def test_what_is_over_and_how_long_it_has_to_wait(
    bounds: Limits, levels: Levels, tokens: int, kind: str | None, seconds: float
) -> None:
    assert over(bounds, levels, tokens) == kind
    if kind is not None:
        assert wait(bounds, levels, tokens) == pytest.approx(seconds)


def test_a_burst_passes_at_once_and_then_one_in_each_interval() -> None:
    local = LocalLimits(0.0)
    ask = claim(rps(2, 3))
    assert [local.acquire(ask, 0.0).over for _ in range(4)] == [None, None, None, ("caller", "requests")]
    assert local.acquire(ask, 0.4999).over is not None
    assert local.acquire(ask, 0.5).over is None
    assert local.acquire(ask, 0.5).over is not None
    assert [local.acquire(ask, 100.0).over for _ in range(4)].count(None) == 3


def test_a_refused_request_has_taken_nothing_anywhere() -> None:
    """Complaint: a call rejected by one limit kept what it had taken of another (LiteLLM 27955)."""
    local = LocalLimits(0.0)
    full = claim(Limits(Limit(1, 5), Limit(1, 100)), Limits(streams=1), tokens=10)
    assert local.acquire(full, 0.0).over is None
    levels = local.acquire(full, 0.0)
    assert levels.over == ("global", "streams")
    assert (levels.own, levels.everyone) == (Levels(1, 10, 1), Levels(0, 0, 1))
    assert local.acquire(full, 0.0) == levels


def test_everyone_s_ceiling_holds_whoever_comes_and_one_s_own_is_told_first() -> None:
    local = LocalLimits(0.0)
    everyone = rps(1, 2)
    assert local.acquire(claim(rps(1, 1), everyone, caller="a"), 0.0).over is None
    assert local.acquire(claim(rps(1, 1), everyone, caller="a"), 0.0).over == ("caller", "requests")
    assert local.acquire(claim(rps(1, 1), everyone, caller="b"), 0.0).over is None
    assert local.acquire(claim(rps(1, 1), everyone, caller="c"), 0.0).over == ("global", "requests")


def test_a_correction_above_the_ceiling_is_a_debt_that_leaks_away_first() -> None:
    local = LocalLimits(0.0)
    bounds = Limits(tokens=Limit(10, 600))
    first = claim(bounds, tokens=100)
    assert local.acquire(first, 0.0).over is None
    local.refund(first, 0.0, tokens=900, stream=True)
    decision = local.acquire(claim(bounds, tokens=100), 0.0)
    assert decision.over == ("caller", "tokens")
    assert wait(bounds, decision.own, 100) == 50.0
    assert local.acquire(claim(bounds, tokens=100), 49.9).over is not None
    assert local.acquire(claim(bounds, tokens=100), 50.0).over is None


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    local = LocalLimits(100.0)
    ask = claim(rps(1, 1))
    assert local.acquire(ask, 100.0).over is None
    assert local.acquire(ask, 50.0).over is not None
    assert local.acquire(ask, 50.9).over is not None


def test_a_permit_given_back_twice_is_a_fault_of_ours() -> None:
    local = LocalLimits(0.0)
    ask = claim(Limits(streams=1))
    local.acquire(ask, 0.0)
    local.refund(ask, 0.0, stream=True)
    with pytest.raises(AssertionError, match="twice"):
        local.refund(ask, 0.0, stream=True)


def test_a_caller_whose_meters_are_empty_is_forgotten_and_no_other() -> None:
    local = LocalLimits(0.0, room=100)
    for n in range(10_000):  # a new caller each tenth of a second, each forgotten after two
        local.acquire(c := claim(rps(1, 2), caller=f"c{n}"), n / 10)
        local.refund(c, n / 10, stream=True)
        assert len(local) <= 30
    assert local.acquire(claim(rps(1, 2), caller="c9999"), 999.9).own.requests == pytest.approx(2)


def test_making_callers_up_resets_nobody_s_limit_and_takes_no_more_room() -> None:
    local = LocalLimits(0.0, room=50)
    mine = claim(rps(0.001, 2), caller="mine")
    assert [local.acquire(mine, 0.0).over is None for _ in range(3)] == [True, True, False]
    passed = sum(local.acquire(claim(rps(0.001, 2), caller=f"made up {n}"), 0.0).over is None for n in range(1000))
    assert len(local) == 50
    assert passed == 49 * 1 + 2  # each one known once, and one burst for all who share what is left
    assert local.acquire(mine, 0.0).over is not None


def test_a_caller_without_room_ends_its_permit_where_it_took_it() -> None:
    local = LocalLimits(0.0, room=1)
    kept, spilled = claim(Limits(streams=1), caller="a"), claim(Limits(streams=1), caller="b")
    assert local.acquire(kept, 0.0).over is None
    assert local.acquire(spilled, 0.0).over is None
    assert spilled.spilled
    assert local.acquire(claim(Limits(streams=1), caller="c"), 0.0).over == ("caller", "streams")
    local.refund(kept, 0.0, stream=True)
    local.refund(spilled, 0.0, stream=True)
    assert local.streams == 0


times = st.lists(st.floats(0, 3), min_size=1, max_size=60)


@given(gaps=times, rate=st.floats(0.1, 50), burst=st.integers(1, 20))
def test_in_no_stretch_of_time_more_passes_than_the_burst_and_what_leaked(
    gaps: list[float], rate: float, burst: int
) -> None:
    local, now, passed = LocalLimits(0.0), 0.0, []
    for gap in gaps:
        now += gap
        if local.acquire(claim(rps(rate, burst)), now).over is None:
            passed.append(now)
    for i, start in enumerate(passed):
        for j in range(i, len(passed)):
            assert j - i + 1 <= burst + rate * (passed[j] - start) + 1e-5


@given(gaps=times, rate=st.floats(0.1, 50), burst=st.integers(1, 20))
def test_whoever_keeps_to_the_rate_is_never_refused(gaps: list[float], rate: float, burst: int) -> None:
    local, now = LocalLimits(0.0), 0.0
    for gap in gaps:
        now += max(gap, 1 / rate)
        assert local.acquire(claim(rps(rate, burst)), now).over is None


events = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 400), st.integers(0, 400)), min_size=1, max_size=40)


@given(events=events, minute=st.integers(60, 6000))
def test_charges_less_refunds_keep_to_the_rate_in_any_stretch(
    events: list[tuple[float, int, int]], minute: int
) -> None:
    local, now = LocalLimits(0.0), 0.0
    bounds = Limits(tokens=Limit(minute / 60, minute))
    moved: list[tuple[float, int]] = []
    for gap, tokens, unused in events:
        now += gap
        ask = claim(bounds, tokens=tokens)
        if local.acquire(ask, now).over is None:
            back = min(unused, tokens)
            local.refund(ask, now, tokens=-back, stream=True)
            moved.append((now, tokens - back))
    for i, (start, _) in enumerate(moved):
        total = 0
        for end, tokens in moved[i:]:
            total += tokens
            assert total <= minute + (minute / 60) * (end - start) + 1e-3


@given(before=st.floats(0, 500), tokens=st.integers(1, 500))
def test_a_refund_is_exact(before: float, tokens: int) -> None:
    local = LocalLimits(0.0)
    bounds = Limits(Limit(1, 1000), Limit(10, 1000))
    ask = claim(bounds, bounds, tokens=1)
    local.acquire(ask, 0.0)
    local.refund(ask, 0.0, tokens=before, stream=True)
    was = local.acquire(claim(bounds, bounds, tokens=0, caller="a"), 1.0, force=True)
    local.acquire(ask2 := claim(bounds, bounds, tokens=tokens), 1.0, force=True)
    local.refund(ask2, 1.0, requests=-1, tokens=-tokens, stream=True)
    now = local.acquire(claim(bounds, bounds), 1.0, force=True)
    assert now.own.requests == was.own.requests + 1
    assert now.own.tokens == pytest.approx(was.own.tokens)
    assert now.everyone.tokens == pytest.approx(was.everyone.tokens)


class Permits(RuleBasedStateMachine):
    """Many callers, taking and ending in any order, while the table is too small for them."""

    def __init__(self) -> None:
        super().__init__()
        self.local = LocalLimits(0.0, room=3)
        self.now = 0.0
        self.open: list[Claim] = []

    @rule(caller=st.sampled_from("abcdef"), most=st.integers(1, 3), gap=st.floats(0, 2))
    def take(self, caller: str, most: int, gap: float) -> None:
        self.now += gap
        ask = claim(Limits(Limit(1, 2), streams=most), Limits(streams=5), caller=caller)
        if self.local.acquire(ask, self.now).over is None:
            self.open.append(ask)

    @rule(which=st.integers(0, 10), back=st.booleans())
    def end(self, which: int, back: bool) -> None:
        if self.open:
            ask = self.open.pop(which % len(self.open))
            self.local.refund(ask, self.now, requests=-1 if back else 0, stream=True)

    @invariant()
    def permits_are_those_that_are_open(self) -> None:
        assert self.local.streams == len(self.open) <= 5
        assert len(self.local) <= 3

    def teardown(self) -> None:
        for ask in self.open:
            self.local.refund(ask, self.now, stream=True)
        assert self.local.streams == 0


TestPermits = Permits.TestCase

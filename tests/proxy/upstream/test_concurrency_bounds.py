"""The adaptive limit at its bounds: samples, cuts and growth, one tick at a time."""

from __future__ import annotations

import math

import pytest

from proxy.upstream.concurrency import (
    CUT,
    GROWTH,
    KV_FULL,
    MIN_SAMPLES,
    MOST,
    NEAR,
    START,
    AdaptiveLimit,
)
from proxy.upstream.load import LoadReport


def seen(adaptive_limit: AdaptiveLimit, *ttfts: float, sent: float = 0.0) -> None:
    for ttft in ttfts:
        adaptive_limit.answered(sent, sent + ttft)


def report(running: float, waiting: float = 0.0, kv: float = 0.1) -> LoadReport:
    return LoadReport(running, waiting, kv)


def settled(limit: int, **more: float) -> AdaptiveLimit:
    """One whose engine has been seen to be full."""
    adaptive_limit = AdaptiveLimit(limit, **more)  # type: ignore[arg-type]
    adaptive_limit._ran = 0.0
    return adaptive_limit


def test_it_begins_where_it_is_told_to_and_says_so() -> None:
    assert (AdaptiveLimit().limit, repr(AdaptiveLimit(7)), repr(settled(7))) == (
        START,
        "<AdaptiveLimit 7 probing>",
        "<AdaptiveLimit 7>",
    )


def test_of_fewer_answers_than_some_nothing_is_said() -> None:
    adaptive_limit = AdaptiveLimit(10, objective=1.0)
    seen(adaptive_limit, *[5.0] * (MIN_SAMPLES - 1))
    assert adaptive_limit.tick(0.0, reached=True, report=None) == 10
    seen(adaptive_limit, 5.0)
    assert adaptive_limit.tick(0.0, reached=True, report=None) == 5, "they are kept until there are enough"
    assert adaptive_limit.tick(0.0, reached=True, report=None) == 5, "and used once"


@pytest.mark.parametrize(
    ("ttft", "limit"), [(NEAR, 20), (NEAR + 0.01, 10), (1.0, 10), (1.25, 8), (2.0, 5), (9.0, 5)]
)
def test_an_objective_stops_growth_near_it_and_cuts_above_it_by_half_at_most(ttft: float, limit: int) -> None:
    adaptive_limit = AdaptiveLimit(10, objective=1.0)
    seen(adaptive_limit, *[ttft] * 3)
    assert adaptive_limit.tick(0.0, reached=True, report=report(10.0)) == limit
    assert ("probing" in repr(adaptive_limit)) is (ttft == NEAR)


def test_after_a_cut_what_was_sent_before_it_says_nothing() -> None:
    adaptive_limit = AdaptiveLimit(10, objective=1.0)
    seen(adaptive_limit, *[2.0] * 3)
    adaptive_limit.tick(100.0, reached=True, report=None)
    seen(adaptive_limit, *[2.0] * 3, sent=99.9)
    assert adaptive_limit.tick(101.0, reached=True, report=None) == 5
    seen(adaptive_limit, *[2.0] * 3, sent=100.0)
    assert adaptive_limit.tick(102.0, reached=True, report=None) == 2


@pytest.mark.parametrize(("ttft", "limit"), [(0.01, 20), (NEAR, 20), (NEAR + 0.01, 10), (2.0, 5)])
def test_without_reports_an_objective_alone_decides(ttft: float, limit: int) -> None:
    adaptive_limit = AdaptiveLimit(10, objective=1.0)
    seen(adaptive_limit, *[ttft] * 3)
    assert adaptive_limit.tick(1.0, reached=True, report=None) == limit


@pytest.mark.parametrize(("before", "after"), [(7, 14), (200, START), (START, START), (400, 400)])
def test_without_either_it_comes_back_to_where_it_begins(before: int, after: int) -> None:
    assert AdaptiveLimit(before).tick(0.0, reached=False, report=None) == before
    assert AdaptiveLimit(before).tick(0.0, reached=True, report=None) == after


def test_answers_of_one_tick_are_bounded_and_kept_for_an_objective_only() -> None:
    adaptive_limit, plain = AdaptiveLimit(10, objective=9.0), AdaptiveLimit(10)
    seen(plain, 1.0)
    assert plain._ttfts == []
    seen(adaptive_limit, *[1.0] * 2000)
    assert len(adaptive_limit._ttfts) == 1024


@pytest.mark.parametrize(
    ("said", "limit"),
    [
        (report(50.0, kv=KV_FULL), int(50 * CUT)),
        (report(50.0, kv=KV_FULL - 0.01), 200),
        (report(0.0, kv=1.0), 1),
        (report(500.0, kv=1.0), int(100 * CUT)),
        (report(40.0, 2.0), 200),
        (report(40.0, 4.0), 100),
        (report(40.0, 5.0), 50),
        (report(90.0, 50.0), 95),
        (report(200.0, 50.0), 100),
        (report(0.0, 1.0), 200),
        (report(0.0, 2.0), 100),
        (report(0.0, 3.0), 50),
    ],
)
def test_an_engine_s_own_word_decides(said: LoadReport, limit: int) -> None:
    adaptive_limit = AdaptiveLimit(100)
    assert adaptive_limit.tick(0.0, reached=True, report=said) == limit
    assert ("probing" in repr(adaptive_limit)) is (limit >= 100 and said.waiting <= 4.0)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (5, 6), (10, 11), (20, 22), (100, int(100 * GROWTH))])
def test_once_it_has_been_full_it_grows_by_a_tenth_or_by_one(before: int, after: int) -> None:
    assert settled(before).tick(0.0, reached=True, report=report(float(before))) == after
    assert settled(before).tick(0.0, reached=False, report=report(float(before))) == before


def test_it_stays_within_its_bounds() -> None:
    assert AdaptiveLimit(3, most=4).tick(0.0, reached=True, report=report(3.0)) == 4
    assert AdaptiveLimit(MOST).tick(0.0, reached=True, report=report(3.0)) == MOST
    adaptive_limit = AdaptiveLimit(1, objective=0.1)
    seen(adaptive_limit, *[9.0] * 3)
    assert adaptive_limit.tick(0.0, reached=True, report=None) == 1


@pytest.mark.parametrize(
    ("ran", "running", "after"),
    [(0, 0, 22), (30, 0, 30), (99, 0, 40), (0, 30, 30), (21, 20, 22), (math.inf, 0, 40)],
)
def test_it_doubles_up_to_what_the_engine_has_run(ran: float, running: float, after: int) -> None:
    adaptive_limit = settled(20)
    adaptive_limit._ran = ran
    assert adaptive_limit.tick(0.0, reached=True, report=report(running)) == after


def test_a_report_counts_once_however_late_the_next_one_is() -> None:
    adaptive_limit = AdaptiveLimit(100)
    queued, empty = report(10.0, 90.0), report(10.0)
    assert [adaptive_limit.tick(0.0, reached=True, report=queued) for _ in range(3)] == [50, 50, 50]
    assert adaptive_limit.tick(0.0, reached=True, report=report(10.0, 90.0)) == 25
    assert [adaptive_limit.tick(0.0, reached=True, report=empty) for _ in range(3)] == [27, 27, 27]


@pytest.mark.parametrize(
    ("before", "said", "after"),
    [
        (math.inf, report(50.0, 9.0), 50.0),
        (100.0, report(50.0, 9.0), 100 * CUT),
        (51.0, report(50.0, 9.0), 50.0),
        (100.0, report(50.0, 5.0), 100.0),
        (40.0, report(50.0, 5.0), 50.0),
        (100.0, report(50.0, kv=KV_FULL), 0.0),
    ],
)
def test_what_it_has_run_is_kept_and_each_queue_makes_it_less_sure(
    before: float, said: LoadReport, after: float
) -> None:
    adaptive_limit = settled(60)
    adaptive_limit._ran = before
    adaptive_limit.tick(0.0, reached=True, report=said)
    assert adaptive_limit._ran == after


@pytest.mark.parametrize("said", [report(50.0, 9.0), report(50.0, 0.0)])
def test_with_an_objective_what_it_has_run_is_no_measure(said: LoadReport) -> None:
    adaptive_limit = settled(60, objective=1.0)
    adaptive_limit.tick(0.0, reached=True, report=said)
    assert adaptive_limit._ran == 0.0


def test_who_leaves_after_the_objective_says_that_it_is_slow() -> None:
    hurried = AdaptiveLimit(10, objective=0.3)
    hurried.abandoned(0.0, 0.3)
    hurried.abandoned(0.0, 0.4)
    assert hurried._ttfts == [0.4]
    assert math.isinf(AdaptiveLimit()._objective)

"""Meters one by one, and the table of callers: what leaks, what a charge does, who is forgotten and when."""

from __future__ import annotations

import pytest

from proxy.access.ratelimit.buckets import (
    SLACK,
    UNBOUNDED,
    Bucket,
    Claim,
    Kind,
    Levels,
    Limit,
    Limits,
    LocalLimits,
    over,
    wait,
)
from tests.proxy.access.ratelimit.test_buckets import NONE, claim, rps

TOKENS = Limits(tokens=Limit(10, 600))


@pytest.mark.parametrize(
    ("bounds", "levels", "tokens", "asked", "kind"),
    [
        (rps(1, 1), Levels(requests=1), 0, 0, None),  # for tokens alone nothing else is asked
        (Limits(streams=1), Levels(streams=1), 0, 0, None),
        (TOKENS, Levels(tokens=600), 1, 0, "tokens"),
        (TOKENS, Levels(tokens=599), 1 + SLACK / 2, 1, None),
        (TOKENS, Levels(tokens=599), 1 + 2 * SLACK, 1, "tokens"),
        (TOKENS, Levels(tokens=700), -1, 1, None),
        (rps(1, 2), Levels(requests=1 + 2 * SLACK), 0, 1, "requests"),
        (Limits(streams=2), Levels(streams=3), 0, 1, "streams"),
    ],
)
def test_what_is_over(bounds: Limits, levels: Levels, tokens: float, asked: int, kind: Kind | None) -> None:
    assert over(bounds, levels, tokens, asked) == kind


@pytest.mark.parametrize(
    ("bounds", "levels", "tokens", "seconds"),
    [
        (NONE, Levels(9, 9, 9), 9, 0.0),
        (rps(2, 4), Levels(), 0, 0.0),
        (TOKENS, Levels(tokens=600), 600, 60.0),
        (TOKENS, Levels(tokens=700), -1, 0.0),
        (Limits(streams=2), Levels(streams=1), 0, 0.0),
        (Limits(streams=2), Levels(streams=3), 0, 1.0),
    ],
)
def test_how_long_it_has_to_wait(bounds: Limits, levels: Levels, tokens: float, seconds: float) -> None:
    assert wait(bounds, levels, tokens) == seconds


def test_a_new_meter_is_idle_and_bounded_by_nothing() -> None:
    bucket = Bucket(5.0)
    assert bucket.idle(5.0)
    assert bucket.bounds is UNBOUNDED
    assert bucket.read() == Levels(0.0, 0.0, 0)


@pytest.mark.parametrize(("requests", "tokens", "streams"), [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_a_meter_with_anything_in_it_is_not_idle_until_it_has_leaked(
    requests: int, tokens: int, streams: int
) -> None:
    bucket = Bucket(0.0)
    bucket.levels(Limits(Limit(1, 5), Limit(1, 5)), 0.0)
    bucket.add(requests, tokens)
    bucket.streams = streams
    assert not bucket.idle(0.5)
    assert bucket.idle(2.0) is not bool(streams)


def test_a_meter_that_nothing_bounds_counts_nothing() -> None:
    local = LocalLimits(0.0)
    assert local.acquire(claim(TOKENS, tokens=5), 0.0).own == Levels(0.0, 5.0, 1)
    assert local.acquire(claim(rps(1, 5), tokens=5), 0.0).own == Levels(1.0, 0.0, 2)
    assert local.acquire(claim(NONE, tokens=5), 0.0).own == Levels(0.0, 0.0, 3)


def test_what_is_charged_late_is_charged_to_a_meter_that_has_leaked_until_then() -> None:
    local = LocalLimits(0.0)
    ask = claim(TOKENS, TOKENS, tokens=100)
    local.acquire(ask, 0.0)
    local.refund(ask, 20.0, tokens=50, stream=True)
    found = local.acquire(claim(TOKENS, TOKENS), 20.0)
    assert (found.own.tokens, found.everyone.tokens) == (50.0, 50.0)


def test_more_given_back_than_was_taken_leaves_nothing() -> None:
    local = LocalLimits(0.0)
    bounds = Limits(Limit(1, 5), Limit(1, 5))
    ask = claim(bounds, tokens=1)
    local.acquire(ask, 0.0)
    local.refund(ask, 0.0, requests=-3, tokens=-3)
    assert local.acquire(claim(bounds), 0.0).own == Levels(1.0, 0.0, 2)


def test_tokens_alone_take_no_request_and_no_place() -> None:
    local = LocalLimits(0.0)
    bounds = Limits(Limit(1, 5), Limit(1, 50), 5)
    alone = Claim("p", "a", bounds, NONE, 7, requests=0)
    assert local.acquire(alone, 0.0).own == Levels(0.0, 7.0, 0)
    assert not alone.permitted
    held = Claim("p", "a", bounds, NONE, 7, requests=0, permitted=True)
    local.acquire(held, 0.0)
    assert held.permitted


def filled(room: int, callers: str, bounds: Limits = rps(1, 5)) -> LocalLimits:  # noqa: B008 - it is frozen
    """A table with these callers, of whom no request is under way."""
    local = LocalLimits(0.0, room=room)
    for caller in callers:
        ask = claim(bounds, caller=caller)
        local.acquire(ask, 0.0)
        local.refund(ask, 0.0, stream=True)
    return local


def test_for_each_caller_that_comes_two_are_looked_at_and_forgotten_where_they_are_idle() -> None:
    local = filled(9, "abcde")
    assert len(local) == 5
    local.acquire(claim(rps(1, 5), caller="f"), 0.5)
    assert len(local) == 6
    local.acquire(claim(rps(1, 5), caller="g"), 10.0)
    assert len(local) == 5


def test_whoever_is_not_idle_makes_room_for_a_look_at_others() -> None:
    local = LocalLimits(0.0, room=4)
    for caller, rate in (("a", 0.001), ("b", 1), ("c", 0.001), ("d", 1)):  # then c and a are the oldest
        ask = claim(rps(rate, 5), caller=caller)
        local.acquire(ask, 0.0)
        local.refund(ask, 0.0, stream=True)
    first, second = claim(rps(1, 5), caller="e"), claim(rps(1, 5), caller="f")
    local.acquire(first, 10.0)
    local.acquire(second, 10.0)
    assert (first.spilled, second.spilled) == (True, False)
    assert len(local) == 3


def test_who_comes_again_is_looked_at_last() -> None:
    local = filled(2, "ab")
    local.acquire(claim(rps(0.001, 5), caller="a"), 0.0)  # under way: not idle, and now behind b
    local.acquire(c := claim(rps(1, 5), caller="c"), 10.0)
    assert not c.spilled
    assert local.acquire(claim(rps(0.001, 5), caller="a"), 10.0).own.streams == 2


def test_a_table_may_be_full_to_its_last_place() -> None:
    local = filled(2, "a")
    kept, spilled = claim(rps(1, 5), caller="b"), claim(rps(1, 5), caller="c")
    local.acquire(kept, 0.0)
    local.acquire(spilled, 0.0)
    assert (kept.spilled, spilled.spilled, len(local)) == (False, True, 2)

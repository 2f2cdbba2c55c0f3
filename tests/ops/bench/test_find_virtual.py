"""The servers in virtual time: that their limits are what they are said to be, and a few searches of them."""

from __future__ import annotations

import random
from math import inf

import pytest

from loadgen.analysis import Found
from loadgen.analysis.search.answer import State
from ops.bench.find_trial.virtual import KINDS, Batching, Places, Refusing, Shared, constant
from ops.bench.find_trial.virtual_trial import Machine, Outcome, render, searched, share_at

BY_NAME = {kind.name: kind for kind in KINDS}


def test_places_serve_in_order_and_failures_come_at_once() -> None:
    places = Places(random.Random(1), 1, constant(2.0)(random.Random(1)))
    assert [places.answer(at) for at in (0.0, 1.0, 9.0)] == [(0.0, 2.0), (2.0, 4.0), (9.0, 11.0)]
    bucket = Refusing(1.0, 2)
    assert [bucket.answer(at)[0] == inf for at in (0.0, 0.1, 0.2, 1.3)] == [False, False, True, False]


def test_a_shared_processor_slows_all_down_and_a_batch_lets_join_between_steps() -> None:
    shared = Shared(1.0, constant(2.0)(random.Random(1)))
    shared.arrive(0.0, 0)
    shared.arrive(1.0, 1)
    assert [done.end for done in (*shared.step(), *shared.step())] == pytest.approx([3.0, 4.0])
    batch = Batching(1.0, 0.5, 8, constant(0.0)(random.Random(1)))
    batch.arrive(0.0, 0)
    batch.arrive(0.2, 1)
    done = [each for _ in range(12) for each in batch.step()]
    assert [(each.number, each.first) for each in done] == [(0, 1.5), (1, 3.5)]
    assert [each.end for each in done] == pytest.approx([21.5, 23.0])


@pytest.mark.parametrize("name", ["M/D/1", "cliff at 12", "Erlang loss, 20 places", "8 every 100 ms"])
def test_at_its_limit_a_server_misses_what_is_allowed(name: str) -> None:
    kind = BY_NAME[name]
    assert isinstance(kind.truth, float)
    assert share_at(kind, kind.truth, 20_000, 1) == pytest.approx(0.05, rel=0.2)


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("M/D/4", 0),
        ("cliff at 12", 1),
        ("limit far below the first rate", 2),
        ("limit far above the first rate", 3),
        ("without a limit", 4),
        ("never met", 5),
        ("users: 12 places", 6),
        ("users: batch", 7),
    ],
)
def test_a_search_in_virtual_time_is_sure_of_what_is_true(name: str, seed: int) -> None:
    kind = BY_NAME[name]
    outcome = Outcome(name, seed, kind.truth, searched(kind, seed).found())
    assert outcome.right, outcome
    assert not outcome.false, outcome


def test_a_search_that_is_too_short_is_not_sure() -> None:
    found = searched(BY_NAME["M/M/4"], 0, minutes=2.0).found()
    assert found.state == "unsure"


def test_a_machines_clock_goes_on_and_users_wait_for_their_responses() -> None:
    machine = Machine(BY_NAME["users: 12 places"], 0)
    dues, done = machine.closed(24, 10.0, 10**6)
    assert len(dues) == len(done)
    assert 10 < machine.now < 12
    assert max(machine.times(dues[each.number], each)["ttft"] for each in done) == pytest.approx(0.5 / 1.02)


def outcome_of(state: State, load: float | None, low: float | None, high: float | None) -> Outcome:
    found = Found(
        state=state,
        by="rate",
        attainment=0.95,
        precision=0.03,
        load=load,
        low=low,
        high=high,
        seconds=60.0,
    )
    return Outcome("s", 0, 20.0, found)


def test_the_table_counts_what_is_right_unsure_and_false() -> None:
    outcomes = [
        outcome_of("found", 20.2, 19.9, 20.5),
        outcome_of("unsure", 25.0, 24.0, 26.0),
        outcome_of("found", 20.4, 20.1, 20.6),
        outcome_of("no limit", None, None, None),
    ]
    row = render(outcomes).splitlines()[2]
    assert row == "| s | 20 | 2 of 4 | 1 of 4 | 2 of 4 | 2.0%, 25.0% | 60 (60–60) |"

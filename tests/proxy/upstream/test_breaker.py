"""The circuit breaker: what opens it, for how long, who may try again, and what never counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.breaker import CALLERS, Breaker, BreakerRules, Failures, State

RULES = BreakerRules(failures=3, rate=0.5, least=10, window=10.0, span=1.0, longest=8.0, probes=1)


def breaker(rules: BreakerRules = RULES, jitter: float = 0.0) -> Breaker:
    return Breaker(rules, lambda: jitter)


def opened(made: Breaker, now: float = 0.0) -> Breaker:
    for _ in range(3):
        made.bad(now)
    assert made.state is State.OPEN
    return made


def test_failures_in_a_row_open_it_and_a_success_between_them_begins_anew() -> None:
    made = breaker()
    assert [made.bad(0), made.bad(1), made.good(2), made.bad(3), made.bad(4), made.bad(5)] == [False] * 5 + [True]
    assert (made.state, made.admits(5.9), made.until) == (State.OPEN, False, 6.0)


def test_a_failure_rate_opens_it_where_no_three_came_in_a_row() -> None:
    made = breaker()
    changes = [made.bad(n / 10) if n % 2 else made.good(n / 10) for n in range(10)]
    assert changes == [False] * 9 + [True]


def test_a_rate_of_too_few_says_nothing_and_an_old_failure_is_forgotten() -> None:
    made = breaker()
    assert not any(made.bad(n) if n % 2 else made.good(n) for n in range(9))
    made = breaker()
    for n in range(8):  # a failing half, then quiet for a whole window
        made.bad(n / 10) if n % 2 else made.good(n / 10)
    assert [made.good(30.0), made.bad(30.1), made.good(30.2), made.bad(30.3)] == [False] * 4


@pytest.mark.parametrize("rules", [BreakerRules(failures=0, rate=0.0), BreakerRules(failures=0, least=10**6)])
def test_a_limit_of_nothing_never_opens_it(rules: BreakerRules) -> None:
    made = breaker(rules)
    assert not any(made.bad(n / 100) for n in range(1000))


def test_half_open_lets_one_probe_through_whose_success_closes_it() -> None:
    made = opened(breaker())
    assert made.admits(1.0)
    assert made.state is State.HALF_OPEN
    made.probe(1.0)
    assert (made.admits(1.0), made.probing) == (False, True)
    assert made.good(1.5, probe=True)
    assert (made.state, made.admits(1.5)) == (State.CLOSED, True)


def test_a_probe_that_fails_opens_it_for_twice_as_long_up_to_a_bound() -> None:
    made = opened(breaker())
    now, spans = 0.0, []
    for _ in range(6):
        spans.append(made.until - now)
        now = made.until
        assert made.admits(now)
        made.probe(now)
        assert made.bad(now, probe=True)
    assert spans == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_one_that_flaps_stays_open_longer_each_time_and_one_that_held_begins_anew() -> None:
    made = opened(breaker())
    made.admits(1.0)
    made.probe(1.0)
    made.good(1.0, probe=True)
    opened(made, 2.0)
    assert made.until == 4.0
    made.admits(4.0)
    made.probe(4.0)
    made.good(4.0, probe=True)
    opened(made, 100.0)
    assert made.until == 101.0


def test_what_was_sent_before_it_opened_counts_no_more() -> None:
    made = opened(breaker())
    assert not any(made.bad(0.5) for _ in range(50))
    assert made.until == 1.0
    made.admits(1.0)
    assert (made.bad(1.0), made.good(1.0), made.state) == (False, False, State.HALF_OPEN)


def test_a_probe_whose_client_left_gives_its_place_back() -> None:
    made = opened(breaker())
    made.admits(1.0)
    made.probe(1.0)
    made.left()
    assert made.admits(1.0)


def test_a_probe_that_says_nothing_does_not_hold_the_next_one_up_for_ever() -> None:
    made = opened(breaker())
    made.admits(1.0)
    made.probe(1.0)
    assert not made.admits(8.9)
    assert made.admits(9.0)


def test_seen_alive_it_may_be_probed_before_its_time() -> None:
    made = opened(breaker())
    assert not made.admits(0.1)
    made.half()
    assert made.admits(0.1)
    closed = breaker()
    closed.half()
    assert closed.state is State.CLOSED


@given(st.floats(0, 1))
def test_the_time_it_is_open_is_spread_by_a_quarter(jitter: float) -> None:
    assert 1.0 <= opened(breaker(jitter=jitter)).until <= 1.25


EVENTS = st.lists(st.tuples(st.sampled_from(["good", "bad", "go", "left"]), st.floats(0, 5)), max_size=80)


@given(EVENTS)
def test_whatever_happens_probes_are_counted_right_and_it_opens_again_in_time(
    events: list[tuple[str, float]],
) -> None:
    made, now, probes = breaker(), 0.0, 0
    for event, pause in events:
        now += pause
        if event == "go" and made.admits(now) and made.state is State.HALF_OPEN:
            made.probe(now)
            probes += 1
        elif event == "left" and probes:
            made.left()
            probes -= 1
        elif event in ("good", "bad"):
            probe = probes > 0
            probes -= probe
            (made.good if event == "good" else made.bad)(now, probe=probe)
        assert made._probing == probes
        if made.state is State.OPEN:
            assert made.until - now <= RULES.longest * 1.25
    assert made.state is not State.OPEN or Breaker.admits(made, made.until + RULES.longest)


# -- whose failures they are --------------------------------------------------------------------------


def fail(made: Breaker, *callers: str, now: float = 0.0) -> list[bool]:
    return [made.bad(now, who=who) for who in callers]


def test_one_caller_s_failures_make_it_suspect_and_several_callers_open_it() -> None:
    made = breaker()
    assert fail(made, "a", "a", "a", "a") == [False] * 4
    assert (made.state, made.suspect) == (State.CLOSED, True)
    made = breaker()
    assert fail(made, "a", "b", "a") == [False, False, True]
    assert not made.suspect


def test_one_other_caller_s_failure_among_many_of_one_does_not_open_it() -> None:
    made = breaker(BreakerRules(failures=5, rate=0.5, least=10))
    assert fail(made, *("a" * 20), "b", *("a" * 20)) == [False] * 41
    assert made.suspect


def test_the_rate_is_that_of_the_others() -> None:
    made = breaker(BreakerRules(failures=0, rate=0.5, least=10))
    for _ in range(10):
        made.good(0.0)
    assert not any(fail(made, *("a" * 50), "b", "b"))  # two of the others' twelve
    assert (made.state, made.suspect) == (State.CLOSED, True)
    assert any(fail(made, *("bcde" * 3)))


def test_a_check_that_finds_it_well_forgets_the_failures_and_one_that_does_not_opens_it() -> None:
    made = breaker()
    fail(made, "a", "a", "a")
    assert (made.checked(0.0, good=True), made.suspect, made.state) == (False, False, State.CLOSED)
    fail(made, "a", "a")
    assert not made.suspect
    fail(made, "a")
    assert made.checked(1.0, good=False)
    assert (made.state, made.suspect, made.until) == (State.OPEN, False, 2.0)
    assert not made.checked(1.0, good=False), "it was decided"


def test_a_check_that_meets_silence_leaves_it_and_the_second_without_a_success_opens_it() -> None:
    made = breaker()
    fail(made, "a", "a", "a")
    assert not made.checked(0.0, None, silent=True)
    made.good(0.0)
    fail(made, "a", "a", "a")
    assert not made.checked(0.0, None, silent=True)
    fail(made, "a")
    assert made.suspect
    assert made.checked(0.0, None, silent=True)
    assert made.state is State.OPEN


def test_a_check_of_an_engine_that_is_only_busy_never_opens_it() -> None:
    made = breaker()
    for _ in range(99):
        fail(made, "a", "a", "a")
        assert not made.checked(0.0, None)
    assert made.state is State.CLOSED


def test_half_open_one_caller_s_failure_waits_for_a_check() -> None:
    for good, state in ((True, State.CLOSED), (False, State.OPEN)):
        made = opened(breaker())
        assert made.admits(1.0)
        made.probe(1.0)
        assert not made.bad(1.0, who="a", probe=True)
        assert (made.state, made.suspect, made.probing, made.admits(1.0)) == (State.HALF_OPEN, True, True, False)
        assert made.checked(1.0, good=good)
        assert (made.state, made.suspect) == (state, False)


def test_half_open_a_check_that_could_not_say_lets_the_next_one_try() -> None:
    made = opened(breaker())
    assert made.admits(1.0)
    made.probe(1.0)
    made.bad(1.0, who="a", probe=True)
    assert not made.checked(1.0, None)
    assert (made.state, made.admits(1.0)) == (State.HALF_OPEN, True)


def test_of_any_number_of_callers_few_are_remembered() -> None:
    made = Failures()
    for n in range(10_000):
        made.add(f"caller {n}")
    assert (made.count, len(made._by)) == (10_000, CALLERS)
    assert made.of_others == 9_999


def test_one_that_was_suspect_when_it_opened_is_tried_again_in_its_time() -> None:
    made = breaker()
    fail(made, "a", "a", "a")
    assert made.suspect
    assert any(fail(made, "b", "c"))
    assert (made.state, made.suspect) == (State.OPEN, False)
    assert made.admits(made.until)


def test_failures_of_both_halves_of_the_window_count_and_those_before_it_do_not() -> None:
    rules = BreakerRules(failures=0, rate=0.5, least=10, window=10.0)
    for before, opens in ((0.0, True), (-20.0, False)):
        made = breaker(rules)
        made.good(before)
        for who in "abcdef":
            made.bad(before, who=who)
        states = [made.bad(6.0, who=who) for who in "abc"]
        assert (any(states), made.state is State.OPEN) == (opens, opens)


def test_a_check_that_finds_it_well_forgets_the_failures_of_the_whole_window() -> None:
    made = breaker(BreakerRules(failures=0, rate=0.5, least=10, window=10.0))
    made.good(0.0)
    for who in "aaaaaaaaa":
        made.bad(0.0, who=who)
    assert made.suspect
    made.good(6.0)  # the second half of the window
    assert not made.checked(6.0, good=True)
    assert not any(made.bad(6.0, who=who) for who in "bcd")
    assert not made.suspect


# -- bounds, and what a change of state forgets -------------------------------------------------------

RATE = BreakerRules(failures=0, rate=0.5, least=10, window=10.0)


@pytest.mark.parametrize(
    ("outcomes", "opens"),
    [
        (((0.0, 0, 4), (5.0, 0, 5), (10.0, 0, 5)), True),  # a new half begins at 5.0, and the next at 10.0
        (((0.0, 0, 5), (10.0, 0, 5)), False),  # a whole window later all is forgotten
        (((0.0, 0, 5), (9.9, 0, 5)), True),
        (((0.0, 0, 4), (4.0, 0, 1), (8.0, 0, 5)), True),  # no new half before 5.0
        (((0.0, 0, 5), (6.0, 0, 1), (12.0, 0, 5)), False),
        (((0.0, 0, 4), (5.0, 1, 0), (10.0, 0, 9)), True),  # successes begin a half too
        (((0.0, 0, 4), (4.0, 1, 0), (9.5, 0, 5)), True),
        (((0.0, 9, 0), (0.0, 0, 8)), False),  # 8 of 17
        (((0.0, 9, 0), (0.0, 0, 9)), True),  # 9 of 18
        (((0.0, 0, 9),), False),
    ],
)
def test_what_counts_of_a_window_in_two_halves(outcomes: tuple[tuple[float, int, int], ...], opens: bool) -> None:
    made = breaker(RATE)
    for now, good, bad in outcomes:
        for _ in range(good):
            made.good(now)
        for _ in range(bad):
            made.bad(now)
    assert (made.state is State.OPEN, made.suspect) == (opens, False)


def test_a_limit_of_one_failure_opens_at_the_first() -> None:
    assert breaker(BreakerRules(failures=1, rate=0.0)).bad(0.0)


@pytest.mark.parametrize(
    ("closed", "again", "span"), [(1.0, 21.0, 2.0), (1.0, 21.1, 1.0), (100.0, 105.0, 2.0), (5.0, 5.0, 2.0)]
)
def test_it_flaps_where_it_opens_within_two_windows_of_its_closing(
    closed: float, again: float, span: float
) -> None:
    made = opened(breaker())
    assert made.admits(closed)
    made.probe(closed)
    made.good(closed, probe=True)
    opened(made, again)
    assert made.until == again + span


def test_a_new_one_is_closed_and_a_probe_without_an_outcome_is_taken_off_once() -> None:
    made = breaker()
    assert (made.state, made.until, made.suspect, made.probing) == (State.CLOSED, 0.0, False, False)
    opened(made)
    assert made.admits(1.0)
    assert not made.probing
    made.probe(1.0)
    made.left()
    made.probe(1.0)
    assert (made.probing, made.admits(1.0)) == (True, False)


def test_an_outcome_of_a_probe_after_the_decision_is_no_longer_under_way() -> None:
    made = opened(breaker(BreakerRules(failures=3, span=1.0, longest=8.0, probes=2)))
    assert made.admits(1.0)
    for _ in range(2):
        made.probe(1.0)
    assert made.bad(1.0, probe=True)
    assert not made.good(1.0, probe=True)  # it had opened
    assert made.admits(3.0)
    made.probe(3.0)
    assert made.admits(3.0), "one of two places"


def test_half_open_again_it_waits_for_no_probe_of_the_last_time() -> None:
    made = opened(breaker())
    made.admits(1.0)
    made.probe(1.0)  # which says nothing
    assert made.admits(9.0)
    made.probe(9.0)
    made.bad(9.0, probe=True)
    assert made.until == 11.0
    assert made.admits(11.0)


def test_half_open_a_check_that_does_not_come_is_waited_for_as_long_as_a_probe() -> None:
    made = opened(breaker())
    made.admits(1.0)
    made.probe(1.0)
    made.bad(5.0, who="a", probe=True)
    assert [made.admits(12.9), made.admits(13.0)] == [False, True]
    made.probe(13.0)
    assert made.good(13.0, probe=True)
    assert (made.state, made.suspect) == (State.CLOSED, False)


def test_once_closed_nothing_from_before_it_opened_counts() -> None:
    for rules, failures in ((RULES, 3), (RATE, 10)):
        made = breaker(rules)
        for _ in range(5):
            made.good(0.0)
        for _ in range(failures):
            made.bad(0.0)
        assert made.admits(1.0)
        made.probe(1.0)
        assert made.good(1.0, probe=True)
        assert [made.bad(1.0) for _ in range(failures)] == [False] * (failures - 1) + [True]


def test_silence_counts_in_succession_and_neither_across_its_opening_nor_its_closing() -> None:
    made = breaker()
    fail(made, "a", "a", "a")
    assert not made.checked(0.0, None, silent=True)
    assert fail(made, "b") == [True], "another's failure opens it"
    assert made.admits(1.0)
    made.probe(1.0)
    made.bad(1.0, who="a", probe=True)
    assert not made.checked(1.0, None, silent=True), "the first since it opened"
    made.probe(1.0)
    assert made.good(1.0, probe=True)
    fail(made, "a", "a", "a", now=1.0)
    assert not made.checked(1.0, None, silent=True), "the first since it closed"
    fail(made, "a", now=1.0)
    assert not made.checked(1.0, good=True)
    fail(made, "a", "a", "a", now=1.0)
    assert not made.checked(1.0, None, silent=True), "the first since a check found it well"


def test_what_a_check_forgets_is_forgotten_by_caller_too() -> None:
    made = breaker()
    fail(made, "a", "a", "a")
    made.checked(0.0, good=True)
    assert fail(made, "b", "c", "b")[-1], "a's failures would make these fewer than half of all"
    made = breaker(RATE)
    fail(made, *("a" * 10))
    made.checked(0.0, good=True)
    assert not any(fail(made, *("b" * 9)))
    assert not made.suspect, "nine of the ten that say something"

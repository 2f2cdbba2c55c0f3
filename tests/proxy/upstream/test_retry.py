"""When a request is asked again: how long the wait is, what an engine may ask for, that there are no storms."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.vocabulary import RETRY_CAUSES
from proxy.upstream.retry import STATUSES, Budget, RetryRules, repeatable, retry_after

RULES = RetryRules(retries=3, backoff=0.1, longest=2.0)
NOON = 1_800_000_000.0


@pytest.mark.parametrize(
    ("retry", "jitter", "after", "wait"),
    [
        (1, 1.0, None, 0.1),
        (1, 0.0, None, 0.0),
        (1, 0.5, None, 0.05),
        (2, 1.0, None, 0.2),
        (3, 1.0, None, 0.4),
        (99, 1.0, None, 2.0),
        (1, 0.0, 1.5, 1.5),
        (1, 1.0, 1.5, 1.6),
        (1, 1.0, 2.0, 2.0),
        (1, 0.0, 2.0, 2.0),
        (1, 0.0, 2.1, None),
        (1, 0.5, 0.0, 0.05),
    ],
)
def test_the_wait_doubles_is_jittered_whole_and_no_shorter_than_the_engine_asks(
    retry: int, jitter: float, after: float | None, wait: float | None
) -> None:
    assert RULES.wait(retry, jitter, after) == (None if wait is None else pytest.approx(wait))


@given(st.integers(1, 10**6), st.floats(0, 1), st.none() | st.floats(0, 1e9))
def test_no_wait_is_longer_than_the_longest(retry: int, jitter: float, after: float | None) -> None:
    wait = RULES.wait(retry, jitter, after)
    if after is not None and after > RULES.longest:
        assert wait is None
    else:
        assert wait is not None
        assert min(after or 0.0, RULES.longest) <= wait <= RULES.longest


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": " 3 "}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "9", "retry-after-ms": "x"}, 9.0),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:10 GMT"}, 10.0),
        ({"retry-after": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
    ],
)
def test_what_an_engine_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers.items(), lambda: NOON) == seconds


@given(st.text())
def test_whatever_an_engine_asks_it_is_a_wait_or_none(text: str) -> None:
    seconds = retry_after([("retry-after", text)], lambda: NOON)
    assert seconds is None or seconds >= 0


@given(st.lists(st.sampled_from(["request", "retry"]), max_size=400), st.floats(0, 1), st.integers(0, 30))
def test_retries_are_never_more_than_the_ratio_of_requests_and_the_burst(
    events: list[str], ratio: float, burst: int
) -> None:
    budget = Budget(ratio, burst)
    requests = retries = 0
    for event in events:
        if event == "request":
            requests += 1
            budget.deposit()
        elif budget.withdraw():
            retries += 1
        assert retries <= burst + ratio * requests + 1e-6
        assert 0 <= budget.tokens <= burst


def test_a_thousand_failures_at_once_are_asked_again_a_few_times_and_five_requests_earn_one() -> None:
    budget = Budget(0.2, 20)
    assert sum(budget.withdraw() for _ in range(1000)) == 20
    for _ in range(4):
        budget.deposit()
    assert not budget.withdraw()
    budget.deposit()
    assert budget.withdraw()
    assert not budget.withdraw()


@pytest.mark.parametrize(
    ("method", "path", "twice"),
    [
        ("GET", "/v1/responses/r1", True),
        ("HEAD", "/version", True),
        ("POST", "/tokenize", True),
        ("POST", "/v1/score?x=1", True),
        ("POST", "/v1/responses", False),
        ("POST", "/v1/batches", False),
        ("PUT", "/v1/files/f", False),
        ("DELETE", "/v1/files/f", False),
    ],
)
def test_what_may_be_sent_twice(method: str, path: str, twice: bool) -> None:
    assert repeatable(method, path) is twice


def test_a_slow_first_token_is_no_usual_reason() -> None:
    default: Any = RetryRules().on
    assert default == frozenset(RETRY_CAUSES) - {"first-token"}


def test_the_statuses_that_retry_on_names_are_those_that_are_retried() -> None:
    assert {cause for cause in RETRY_CAUSES if cause.isdecimal()} == set(map(str, STATUSES))


def test_a_budget_by_default_is_twenty_and_a_fifth_of_what_is_asked() -> None:
    budget = Budget()
    for _ in range(3):
        budget.deposit()
    assert sum(budget.withdraw() for _ in range(99)) == 20
    for _ in range(5):
        budget.deposit()
    assert (budget.withdraw(), budget.withdraw()) == (True, False)
    assert repr(budget) == "<Budget 0.0 of 20>"


@pytest.mark.parametrize(
    "date", ["Mon, 01 Jan 99999 00:00:00 GMT", "Mon, 01 Jan 2027 00:00:00 +99999999999999", "1 2 3 4 5"]
)
def test_a_date_that_is_none_asks_for_nothing(date: str) -> None:
    assert retry_after([("retry-after", date)], lambda: NOON) is None

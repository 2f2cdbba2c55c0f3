"""Objectives: how they are written, and that a failure never meets one."""

from __future__ import annotations

import pytest

from loadgen.analysis.definitions import MS, measure
from loadgen.analysis.goodput import BadGoodput, goodput, met, parse_goodput, unmeasured
from loadgen.record import Kind, Record
from tests.loadgen.analysis.test_definitions import ev, record


@pytest.mark.parametrize(
    ("words", "slos"),
    [
        ([], {}),
        (["ttft:500"], {"ttft": 500}),
        (["ttft:500", "tpot:50.5", "e2el:1e3"], {"ttft": 500, "tpot": 50.5, "e2el": 1000}),
        (["ttft:500 tpot:50"], {"ttft": 500, "tpot": 50}),
        (["ttft_due:500,e2el_due:9"], {"ttft_due": 500, "e2el_due": 9}),
    ],
)
def test_objectives_are_read(words: list[str], slos: dict[str, float]) -> None:
    assert parse_goodput(words) == slos


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("ttft", "NAME:MILLISECONDS"),
        ("ttft=500", "NAME:MILLISECONDS"),
        ("itl:5", "ttft, tpot, e2el"),
        ("ttft:fast", "not a number"),
        ("ttft:500ms", "without a unit"),
        ("ttft:0", "above 0"),
        ("ttft:nan", "above 0"),
        ("ttft:inf", "above 0"),
        ("ttft:1 ttft:2", "twice"),
    ],
)
def test_a_wrong_objective_is_refused_with_what_would_be_right(word: str, says: str) -> None:
    with pytest.raises(BadGoodput, match=says):
        parse_goodput([word])


def test_failures_and_shed_requests_are_in_the_denominator_and_cancelled_ones_are_not() -> None:
    good = measure(record(ev(20), ev(30), completion_tokens=2))
    slow = measure(record(ev(500), ev(510), completion_tokens=2))
    failed, shed, cancelled = (measure(record(ev(11), failure=kind)) for kind in ("status", "shed", "cancelled"))
    found = goodput([good, slow, failed, shed, cancelled], {"ttft": 100, "tpot": 50}, 2.0)
    assert found is not None
    assert (found.attempted, found.good, found.per_second, found.attainment) == (4, 1, 0.5, 0.25)
    assert found.by_slo == {"ttft": 0.25, "tpot": 0.5}


def test_without_objectives_there_is_no_goodput() -> None:
    assert goodput([], {}, 1.0) is None


def test_what_was_not_measured_is_not_met() -> None:
    one, unknown = record(ev(20), completion_tokens=1), record(ev(20), ev(30))
    assert met(measure(one), "tpot", 1)  # a single token has no gap that could be slow
    assert not met(measure(unknown), "tpot", 1e9)  # no usage: nobody knows
    assert not met(measure(record(ev(90, Kind.WHOLE), stream=False)), "ttft", 1e9)


def test_a_censored_first_token_has_to_be_in_time_at_its_latest() -> None:
    late = measure(record(ev(50, low=20), ev(50)))
    assert met(late, "ttft", 40)
    assert not met(late, "ttft", 39)


def test_a_long_sending_counts_in_an_objective_and_a_short_one_does_not() -> None:
    """A server that does not read its socket met TTFT ≤ 100 ms where its clients had waited for 2 s."""
    long, short = (measure(record(ev(2020), ev(2030), sent=2000, write_ns=at * MS)) for at in (10, 1996))
    assert [met(long, name, 100) for name in ("ttft", "e2el")] == [False, False]
    assert met(long, "ttft", 2010)
    assert [met(short, "ttft", 20), met(short, "e2el", 30)] == [True, True]


NO_STREAM = record(ev(90, Kind.WHOLE), stream=False, completion_tokens=9)


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        ([record(ev(20), ev(30)), record(ev(20), ev(30))], {"tpot": "the server reports no usage"}),
        (
            [record(ev(20), ev(30), completion_tokens=0)],
            {"tpot": "no response has two tokens by the server's usage"},
        ),
        ([NO_STREAM], dict.fromkeys(("ttft", "tpot"), "the responses are no streams")),
        (
            [record(ev(20, Kind.ROLE), ev(30, Kind.FINISH))],
            dict.fromkeys(("ttft", "tpot", "e2el"), "the server answers without any token"),
        ),
        ([record(ev(20), ev(30)), record(ev(20), ev(30), completion_tokens=2)], {}),
        ([record(ev(20), completion_tokens=1)], {}),
        ([record(ev(20), ev(30), failure="timeout")], {}),  # nothing completed: the requests failed
    ],
)
def test_an_objective_without_a_value_in_any_response_is_not_judged(
    seen: list[Record], why: dict[str, str]
) -> None:
    """It counted as missed by every request: goodput 0 %, as if the server were too slow."""
    slos = {"ttft": 500.0, "tpot": 50.0, "e2el": 500.0}
    requests = [measure(one) for one in seen]
    assert unmeasured(requests, slos) == why
    found = goodput(requests, slos, 2.0)
    assert found is not None
    assert found.unmeasured == why
    assert set(found.by_slo) == set(slos) - set(why)
    assert (found.attainment is None, found.per_second is None, found.good is None) == (bool(why),) * 3

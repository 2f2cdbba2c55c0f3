"""What a client is told of its limits: OpenAI's headers, and refusals that say what would be right."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.ratelimit.buckets import UNBOUNDED, Claim, Decision, Kind, Levels, Limit, Limits, Whose
from proxy.access.ratelimit.headers import counted, duration, headers, pause, rate_limit_error
from proxy.errors import Code

EMPTY = Levels()
BOTH = Limits(Limit(2, 10), Limit(100, 6000), 3)


def decided(over: tuple[Whose, Kind] | None = None, own: Levels = EMPTY, everyone: Levels = EMPTY) -> Decision:
    return Decision(over, own, everyone)


def claim(own: Limits = BOTH, everyone: Limits = UNBOUNDED, tokens: int = 50) -> Claim:
    return Claim("p", "a", own, everyone, tokens)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.012, "12ms"),
        (0.9994, "1s"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (432.5, "7m12.5s"),
        (3600, "1h0m0s"),
        (7325, "2h2m5s"),
    ],
)
def test_a_duration_is_written_as_openai_writes_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 10**6))
def test_a_duration_reads_back_as_the_next_millisecond(seconds: float) -> None:
    unit = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.findall(r"([0-9.]+)(ms|h|m|s)", duration(seconds))
    assert "".join(number + name for number, name in parts) == duration(seconds)
    back = sum(float(number) * unit[name] for number, name in parts)
    assert -1e-6 <= back - seconds <= 0.001001


def test_the_headers_tell_of_each_meter_its_size_what_is_left_and_when_it_is_empty() -> None:
    assert headers(claim(), decided(own=Levels(2.5, 36_0.0, 1))) == [
        ("x-ratelimit-limit-requests", "10"),
        ("x-ratelimit-remaining-requests", "7"),
        ("x-ratelimit-reset-requests", "1.25s"),
        ("x-ratelimit-limit-tokens", "6000"),
        ("x-ratelimit-remaining-tokens", "5640"),
        ("x-ratelimit-reset-tokens", "3.6s"),
    ]


def test_a_debt_leaves_nothing_and_takes_longer() -> None:
    told = dict(headers(claim(), decided(own=Levels(0, 36_000, 0))))
    assert told["x-ratelimit-remaining-tokens"] == "0"
    assert told["x-ratelimit-reset-tokens"] == "6m0s"


def test_without_a_ceiling_of_one_s_own_the_headers_tell_of_everyone_s() -> None:
    ask = claim(Limits(Limit(1, 5)), Limits(Limit(9, 90), Limit(10, 600)))
    told = dict(headers(ask, decided(own=Levels(1, 0), everyone=Levels(50, 60))))
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("5", "4")
    assert (told["x-ratelimit-limit-tokens"], told["x-ratelimit-remaining-tokens"]) == ("600", "540")


@pytest.mark.parametrize(
    ("over", "own", "tokens", "retry", "says"),
    [
        ("requests", Levels(10, 0, 0), 0, 1, "limit 2 requests a second, at most 10 at once. Try again in 500ms."),
        (
            "tokens",
            Levels(0, 6000, 0),
            250,
            3,
            "6000 tokens a minute, used 6000, requested about 250. Try again in 2.5s",
        ),
        (
            "streams",
            Levels(0, 0, 3),
            0,
            1,
            "limit 3 requests under way at a time. Wait until one has finished, or try again in 1s.",
        ),
    ],
)
def test_a_refusal_of_one_s_own_share_is_429_and_says_when_to_come_again(
    over: Kind, own: Levels, tokens: int, retry: int, says: str
) -> None:
    ask, decision = claim(tokens=tokens), decided(("caller", over), own)
    error = rate_limit_error(ask, decision)
    assert (error.code, error.status, error.retry_after) == (Code.RATE_LIMITED, 429, retry)
    assert says in error.message
    assert error.body()["error"]["code"] == "rate_limit_exceeded"
    assert int(dict(headers(ask, decision))["retry-after-ms"]) == round(pause(ask, decision) * 1000)


def test_a_refusal_for_everyone_together_is_503() -> None:
    ask = claim(everyone=Limits(streams=7))
    error = rate_limit_error(ask, decided(("global", "streams"), everyone=Levels(0, 0, 7)))
    assert (error.code, error.status, error.retry_after) == (Code.CEILING_REACHED, 503, 1)
    assert "all clients together: limit 7 requests" in error.message


def test_a_prompt_larger_than_the_limit_is_told_not_to_come_again() -> None:
    ask, decision = claim(tokens=6001), decided(("caller", "tokens"))
    error = rate_limit_error(ask, decision)
    assert (error.status, error.retry_after) == (429, None)
    assert "never pass: send a shorter prompt" in error.message
    told = dict(headers(ask, decision))
    assert told["x-should-retry"] == "false"
    assert "retry-after-ms" not in told


@pytest.mark.parametrize("kind", ["requests", "streams"])
def test_what_can_never_pass_is_told_so_whichever_ceiling_is_met_first(kind: Kind) -> None:
    """Of one's own requests or streams, where everyone's tokens are fewer than the prompt has."""
    full = Levels(10, 0, 3)
    ask, decision = claim(everyone=Limits(tokens=Limit(1, 60)), tokens=61), decided(("caller", kind), full)
    error = rate_limit_error(ask, decision)
    assert (error.code, error.retry_after) == (Code.RATE_LIMITED, None)
    assert error.message.endswith("The request can never pass: send a shorter prompt.")
    assert dict(headers(ask, decision))["x-should-retry"] == "false"


@pytest.mark.parametrize(("number", "words"), [(1, "1 request"), (2, "2 requests"), (0.5, "0.5 requests")])
def test_one_is_said_as_one(number: float, words: str) -> None:
    assert counted(number, "request") == words

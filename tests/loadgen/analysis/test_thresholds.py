"""--fail-if: the grammar by table, and a gate that cannot see does not let pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.stats import Bounds
from loadgen.analysis.thresholds import BadRule, check_metric, judge_rule, parse_rule


@pytest.mark.parametrize(
    ("text", "metric", "sign", "limit", "against"),
    [
        ("p99_ttft_ms>+10%", "p99_ttft_ms", ">", 10, "percent"),
        (" p99_ttft_ms >= +10 % ", "p99_ttft_ms", ">=", 10, "percent"),
        ("output_throughput<-5%", "output_throughput", "<", -5, "percent"),
        ("p50_ttft_ms>+3", "p50_ttft_ms", ">", 3, "difference"),
        ("p50_ttft_ms>+3ms", "p50_ttft_ms", ">", 3, "difference"),
        ("error_rate>0.01", "error_rate", ">", 0.01, "value"),
        ("p99.9_itl_ms>.5ms", "p99.9_itl_ms", ">", 0.5, "value"),
        ("request_throughput<=-1.5", "request_throughput", "<=", -1.5, "difference"),
    ],
)
def test_a_rule_is_read(text: str, metric: str, sign: str, limit: float, against: str) -> None:
    rule = parse_rule(text)
    assert (rule.metric, rule.sign, rule.limit, rule.against) == (metric, sign, limit, against)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "METRIC>CHANGE"),
        ("p99_ttft_ms", "METRIC>CHANGE"),
        (">10", "METRIC>CHANGE"),
        ("p99_ttft_ms=>10", "never equal"),
        ("p99_ttft_ms==10", "never equal"),
        ("p99_ttft_ms>10%", r"add the direction: \+10%"),
        ("p99_ttft_ms>much", "not a change"),
        ("p99_ttft_ms>+10%%", "not a change"),
        ("p99_ttft_ms>1e9999x", "not a change"),
        ("error_rate>3ms", "not in milliseconds"),
    ],
)
def test_a_wrong_rule_is_refused_with_what_would_be_right(text: str, says: str) -> None:
    with pytest.raises(BadRule, match=says):
        parse_rule(text)


@given(st.text(max_size=40))
def test_any_text_is_a_rule_or_is_refused(text: str) -> None:
    try:
        parse_rule(text)
    except BadRule as error:
        assert "--fail-if" in str(error)


def test_a_metric_that_nobody_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadRule, match="p99_ttft_ms"):
        check_metric(parse_rule("p98_ttft_ms>+1%"), {"p99_ttft_ms": 1.0}, {"p99_ttft_ms": 2.0})


@pytest.mark.parametrize(
    ("text", "a", "b", "failed"),
    [
        ("m_ms>+10%", 100, 109, False),
        ("m_ms>+10%", 100, 111, True),
        ("m_ms>+10%", 100, 50, False),
        ("m_ms<-10%", 100, 89, True),
        ("m_ms>+3", 100, 103, False),
        ("m_ms>=+3", 100, 103, True),
        ("m_ms>50", 100, 51, True),
        ("m_ms>50", None, 49, False),
        ("m_ms>+10%", 0, 0, False),
        ("m_ms>+10%", 0, 1, True),
        ("m_ms>+10%", None, 1, True),
        ("m_ms>+10%", 1, None, True),
        ("m_ms>50", 1, None, True),
    ],
)
def test_a_change_is_judged(text: str, a: float | None, b: float | None, failed: bool) -> None:
    assert judge_rule(parse_rule(text), {"m_ms": a}, {"m_ms": b}).failed is failed


def test_with_certain_only_an_interval_that_is_wholly_beyond_fails() -> None:
    rule, a, b = parse_rule("m_ms>+10%"), {"m_ms": 100.0}, {"m_ms": 115.0}
    wide, narrow = {"m_ms": Bounds(5, 25)}, {"m_ms": Bounds(12, 18)}
    assert judge_rule(rule, a, b, wide).failed
    assert "not certain" in judge_rule(rule, a, b, wide).words
    assert not judge_rule(rule, a, b, wide, certain=True).failed
    assert judge_rule(rule, a, b, narrow, certain=True).failed

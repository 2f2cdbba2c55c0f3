"""`--fail-if`: its grammar, and whether a comparison breaks a rule. Metrics are the flat names of `result.json`.

p99_ttft_ms>+10%     B's is more than 10 % above A's
output_throughput<-5%
p50_ttft_ms>+3       B's is more than 3 (in the metric's unit) above A's
error_rate>0.01      B's value alone
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from loadgen.analysis.format import digits, signed
from loadgen.analysis.stats import Bounds

Reference = Literal["value", "difference", "percent"]
Values = Mapping[str, float | None]

_RULE: Final = re.compile(r"\s*(?P<metric>[\w.]+)\s*(?P<sign>>=|<=|>|<|==|=)\s*(?P<limit>\S.*?)\s*")
_LIMIT: Final = re.compile(r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))\s*(?P<unit>%|ms)?")
_SIGNS: Final = {
    ">": lambda value, limit: value > limit,
    "<": lambda value, limit: value < limit,
    ">=": lambda value, limit: value >= limit,
    "<=": lambda value, limit: value <= limit,
}


class BadRule(ValueError):
    """A rule that cannot be parsed or judged; the text says what would be right."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """`against` says what is compared with `limit`: B's value, B minus A, or B minus A in percent of A."""

    text: str
    metric: str
    sign: Literal[">", "<", ">=", "<="]
    limit: float
    against: Reference


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    rule: str
    failed: bool
    words: str


def parse_rule(text: str) -> Rule:
    """Raises `BadRule`."""
    rule = _RULE.fullmatch(text)
    if rule is None:
        raise BadRule(f"--fail-if {text!r}: write METRIC>CHANGE or METRIC<CHANGE, such as 'p99_ttft_ms>+10%'")
    metric, sign, limit = rule["metric"], rule["sign"], rule["limit"]
    if sign in ("=", "=="):
        raise BadRule(f"--fail-if {text!r}: measured values are never equal; use > or <")
    number = _LIMIT.fullmatch(limit)
    if number is None:
        raise BadRule(f"--fail-if {text!r}: {limit!r} is not a change; write +10%, -5%, +3 or a plain value")
    value, unit = number["number"], number["unit"]
    if unit == "ms" and not metric.endswith("_ms"):
        raise BadRule(f"--fail-if {text!r}: {metric} is not in milliseconds")
    if unit == "%" and value[0] not in "+-":
        raise BadRule(f"--fail-if {text!r}: add the direction: +{value}% or -{value}%")
    against: Reference = "percent" if unit == "%" else "difference" if value[0] in "+-" else "value"
    return Rule(text=text, metric=metric, sign=sign, limit=float(value), against=against)  # type: ignore[arg-type]


def check_metric(rule: Rule, a: Values, b: Values) -> None:
    """Raises `BadRule` for a metric that neither run has."""
    if rule.metric not in a and rule.metric not in b:
        near = sorted(name for name in {*a, *b} if rule.metric.split("_")[-1] in name or rule.metric in name)
        others = ", ".join((near or sorted(b))[:8])
        raise BadRule(f"--fail-if {rule.text!r}: unknown metric {rule.metric!r}; there are {others}, ...")


def judge_rule(
    rule: Rule, a: Values, b: Values, intervals: Mapping[str, Bounds] | None = None, *, certain: bool = False
) -> Finding:
    """Whether the rule is broken. A missing figure breaks it: an unknown value never passes. A figure
    without an interval is judged by its value alone.

    `intervals`: 95 % of B minus A, by metric. `certain`: broken only if the whole interval is beyond the limit.
    """
    before, after = a.get(rule.metric), b.get(rule.metric)
    if after is None or (rule.against != "value" and before is None):
        side = "B" if after is None else "A"
        return _finding(rule, True, f"cannot be judged: {side} has no {rule.metric}")
    if rule.against == "value":
        broken = _SIGNS[rule.sign](after, rule.limit)
        return _finding(rule, broken, f"{rule.metric} is {digits(after)}")
    assert before is not None
    if rule.against == "percent" and before == 0:
        return _finding(
            rule, after != 0, f"{rule.metric} was 0 and is {digits(after)}: a percentage of 0 is undefined"
        )
    scale = 100 / before if rule.against == "percent" else 1.0
    unit = " %" if rule.against == "percent" else ""
    change = (after - before) * scale
    words = f"{rule.metric} {digits(before)} → {digits(after)}, {signed(change, unit)}"
    broken = _SIGNS[rule.sign](change, rule.limit)
    interval = (intervals or {}).get(rule.metric)
    if interval is None:
        few = " (too few samples for an interval)" if rule.metric.endswith("_ms") else ""
        return _finding(rule, broken, words + few)
    ends = sorted((interval.low * scale, interval.high * scale))
    words += f" (95 %: {signed(ends[0], unit)} to {signed(ends[1], unit)})"
    sure = all(_SIGNS[rule.sign](end, rule.limit) for end in ends)
    if broken and not sure:
        words += ", not certain"
    return _finding(rule, broken and (sure or not certain), words)


def _finding(rule: Rule, failed: bool, words: str) -> Finding:
    return Finding(rule=rule.text, failed=failed, words=words)

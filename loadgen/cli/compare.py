"""`python -m loadgen compare A B ...`: runs in, also of other load generators, a verdict in words, an exit code
for CI."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from loadgen.analysis import (
    UNKNOWN,
    BadGoodput,
    BadRule,
    Finding,
    Rule,
    check_metric,
    digits,
    judge_rule,
    parse_rule,
    signed,
)
from loadgen.cli.report import refuse
from loadgen.cli.runs.read import Side, read_side
from loadgen.errors import StoreError
from loadgen.report import (
    Comparison,
    Judged,
    Line,
    compare_runs,
    compare_values,
    comparison_page,
    escape_markdown,
    markdown_table,
    metrics_of,
    side_by_side,
)

FAILED: Final = 1
IN_WORDS: Final = frozenset(
    f"{p}_{name}_ms" for p in ("p50", "median", "p95", "p99") for name in ("ttft", "itl", "e2el")
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "a",
        type=Path,
        metavar="A",
        help="folder of the baseline run (before), or a result of vLLM, GuideLLM or AIPerf",
    )
    parser.add_argument("b", type=Path, metavar="B", help="folder of the run to judge (after), or such a result")
    parser.add_argument("more", type=Path, nargs="*", metavar="C", help="further runs, each compared with A")
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="RULE",
        help="exit 1 if B breaks the rule: 'p99_ttft_ms>+10%%' (relative to A), 'p50_ttft_ms>+3' (ms above A), "
        "'error_rate>0.01' (B alone); names as in result.json; repeatable",
    )
    parser.add_argument(
        "--certain", action="store_true", help="a rule is broken only if the whole 95 %% interval breaks it"
    )
    parser.add_argument("--format", choices=("md", "json", "html"), default="md")


def main(args: argparse.Namespace, words: Sequence[str] = ()) -> int:
    """0; 1 if a rule is broken or cannot be judged; 2 for folders or rules that cannot be used."""
    try:
        rules = [parse_rule(text) for text in args.fail_if]
        a = read_side(args.a)
        judged = [
            _judged(letter_of(number), a, read_side(path), rules, certain=args.certain)
            for number, path in enumerate((args.b, *args.more), 1)
        ]
    except (StoreError, BadRule, BadGoodput) as error:
        return refuse(str(error))
    print(_rendered(judged, args.format))
    return FAILED if any(finding.failed for one in judged for finding in one.findings) else 0


def _judged(letter: str, a: Side, b: Side, rules: Sequence[Rule], *, certain: bool) -> Judged:
    """Raises BadRule."""
    names = (a.name, b.name)
    if a.summary is None or b.summary is None:
        intervals = (a.intervals, b.intervals)
        comparison = compare_values((a.run, a.values), (b.run, b.values), names, intervals)
    else:
        comparison = compare_runs(
            (a.run, a.summary), (b.run, b.summary), requests=(a.requests, b.requests), names=names
        )
    before, after = metrics_of(comparison, a.values, "a"), metrics_of(comparison, b.values, "b")
    for rule in rules:
        check_metric(rule, before, after)
    findings = [judge_rule(rule, before, after, comparison.intervals, certain=certain) for rule in rules]
    return Judged(letter, comparison, findings)


def letter_of(number: int) -> str:
    """B, C, ... and beyond Z the number: 26 is R26."""
    return chr(ord("A") + number) if number < 26 else f"R{number}"


def _rendered(judged: Sequence[Judged], form: str) -> str:
    if form == "html":
        return comparison_page(judged)
    if form == "json" and len(judged) > 1:
        return _encoded([as_document(one.comparison, one.findings) for one in judged])
    if len(judged) > 1:
        return side_by_side(judged)
    (one,) = judged
    render = as_json if form == "json" else as_markdown
    return render(one.comparison, one.findings)


def main_compare(argv: Sequence[str]) -> int:
    """`main` from its command line."""
    parser = argparse.ArgumentParser(prog="python -m loadgen compare", description=main.__doc__)
    add_arguments(parser)
    return main(parser.parse_args(list(argv)), argv)


def as_json(comparison: Comparison, findings: Sequence[Finding]) -> str:
    return _encoded(as_document(comparison, findings))


def as_document(comparison: Comparison, findings: Sequence[Finding]) -> dict[str, Any]:
    return {**msgspec.to_builtins(comparison), "findings": msgspec.to_builtins(findings)}


def _encoded(document: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def as_markdown(comparison: Comparison, findings: Sequence[Finding]) -> str:
    lines = ["# B against A", "", f"A: {escape_markdown(comparison.a)}, B: {escape_markdown(comparison.b)}", ""]
    lines += [f"> Warning: {escape_markdown(warning)}." for warning in comparison.warnings]
    lines += [""] if comparison.warnings else []
    for finding in findings:
        lines.append(
            f"- **{'FAILED' if finding.failed else 'passed'}** `{finding.rule}`: {escape_markdown(finding.words)}"
        )
    lines += [""] if findings else []
    lines += [f"- {escape_markdown(line.words)}" for line in comparison.lines if _worth_words(line)]
    undecided = [line.name for line in comparison.lines if line.shift is None and line.metric.endswith("_ms")]
    lines += [f"- Not enough samples to compare: {escape_markdown(', '.join(undecided))}"] if undecided else []
    lines += ["", *(f"- {escape_markdown(effect.words)}" for effect in comparison.effects), ""]
    rows = [
        [line.name, _number(line.a), _number(line.b),
         signed(line.shift.value) if line.shift else UNKNOWN,
         f"{signed(line.shift.interval.low)} to {signed(line.shift.interval.high)}" if line.shift else UNKNOWN,
         line.shift.side if line.shift else ""]
        for line in comparison.lines
    ]  # fmt: skip
    lines += markdown_table(("ms, or per second", "A", "B", "B − A", "95 %", ""), rows, words=(0, 5))
    lines += [
        "",
        "Intervals describe these two runs and do not cover changes of the machine between them; `loadgen ab`",
    ]
    lines += ["measures both at once. One of 20 intervals may miss the true value.", ""]
    if comparison.config:
        rows = [[name, left, right] for name, (left, right) in comparison.config.items()]
        lines += ["## Settings that differ", "", *markdown_table(("setting", "A", "B"), rows, words=(0, 1, 2)), ""]
    return "\n".join(lines)


def _worth_words(line: Line) -> bool:
    """Whether a line is worth a sentence: percentiles that users feel, and rates. The table has all lines."""
    return not line.metric.endswith("_ms") or (line.shift is not None and line.metric in IN_WORDS)


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else digits(value)

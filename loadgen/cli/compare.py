"""`python -m loadgen compare A B`: two runs' folders in, a verdict in words, an exit code for CI."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from loadgen.analysis import (
    UNKNOWN,
    BadGoodput,
    BadRule,
    Finding,
    Measured,
    Summary,
    check_metric,
    digits,
    judge_rule,
    parse_rule,
    signed,
)
from loadgen.cli.report import load, refuse, slos_of
from loadgen.errors import StoreError
from loadgen.record import Run
from loadgen.report import (
    Comparison,
    Line,
    compare_runs,
    escape_markdown,
    flat_metrics,
    markdown_table,
    metrics_of,
    result_json,
)
from loadgen.store import read_run

FAILED: Final = 1
IN_WORDS: Final = frozenset(f"{p}_{name}_ms" for p in ("p50", "p95", "p99") for name in ("ttft", "itl", "e2el"))


class Side(NamedTuple):
    run: Run
    summary: Summary
    requests: list[Measured]
    values: dict[str, float | None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="folder of the baseline run (before)")
    parser.add_argument("b", type=Path, metavar="B", help="folder of the run to judge (after)")
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
    parser.add_argument("--format", choices=("md", "json"), default="md")


def main(args: argparse.Namespace, words: Sequence[str] = ()) -> int:
    """0; 1 if a rule is broken or cannot be judged; 2 for folders or rules that cannot be used."""
    try:
        rules = [parse_rule(text) for text in args.fail_if]
        a, b = _read(args.a), _read(args.b)
        comparison = compare_runs(
            (a.run, a.summary),
            (b.run, b.summary),
            requests=(a.requests, b.requests),
            names=(str(args.a), str(args.b)),
        )
        before, after = metrics_of(comparison, a.values, "a"), metrics_of(comparison, b.values, "b")
        for rule in rules:
            check_metric(rule, before, after)
    except (StoreError, BadRule, BadGoodput) as error:
        return refuse(str(error))
    findings = [judge_rule(rule, before, after, comparison.intervals, certain=args.certain) for rule in rules]
    render = as_json if args.format == "json" else as_markdown
    print(render(comparison, findings))
    return FAILED if any(finding.failed for finding in findings) else 0


def main_compare(argv: Sequence[str]) -> int:
    """`main` from its command line."""
    parser = argparse.ArgumentParser(prog="python -m loadgen compare", description=main.__doc__)
    add_arguments(parser)
    return main(parser.parse_args(list(argv)), argv)


def _read(folder: Path) -> Side:
    """Read a run from its raw events, so that the same definitions apply whatever version ran it."""
    run = read_run(folder)
    requests, summary = load(folder, run, slos_of(run.config))
    return Side(run, summary, requests, flat_metrics(result_json(run, summary)))


def as_json(comparison: Comparison, findings: Sequence[Finding]) -> str:
    document: dict[str, Any] = {**msgspec.to_builtins(comparison), "findings": msgspec.to_builtins(findings)}
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

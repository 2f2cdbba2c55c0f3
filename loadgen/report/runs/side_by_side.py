"""Several runs beside the first: one table of figures, as Markdown or as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from loadgen.analysis import UNKNOWN, Finding, digits, signed
from loadgen.report.compare import Comparison, Line
from loadgen.report.html import page
from loadgen.report.markdown import escape_markdown, markdown_table
from loadgen.report.tables import Table

NOTE = (
    "Differences are from A, with a 95 % interval where both runs have single requests. Intervals describe these "
    "runs, and do not cover changes of the machine between them; one of 20 may miss the true value."
)


class Judged(NamedTuple):
    """One comparison with A, and what the rules say of it."""

    letter: str  # B, C, ...
    comparison: Comparison
    findings: Sequence[Finding]


def side_by_side(judged: Sequence[Judged]) -> str:
    """Markdown."""
    figures, settings = _tables(judged)
    lines = ["# Runs against A", "", *(f"- {escape_markdown(text)}" for text in _runs(judged)), ""]
    lines += [f"> Warning: {escape_markdown(text)}." for text in _warnings(judged)]
    lines += ["", *(f"- {escape_markdown(text)}" for text in _findings(judged)), ""]
    lines += [*markdown_table(figures.columns, figures.rows, words=figures.words), "", NOTE, ""]
    if settings.rows:
        lines += ["## Settings that differ", ""]
        lines += markdown_table(settings.columns, settings.rows, words=settings.words)
    return "\n".join(lines)


def comparison_page(judged: Sequence[Judged]) -> str:
    """HTML, one file."""
    figures, settings = _tables(judged)
    shown = [figures, *([settings] if settings.rows else [])]
    lines = [*_findings(judged), *(f"Warning: {text}." for text in _warnings(judged))]
    return page("Runs against A", "; ".join(_runs(judged)), lines, shown)


def _runs(judged: Sequence[Judged]) -> list[str]:
    return [f"A: {judged[0].comparison.a}", *(f"{one.letter}: {one.comparison.b}" for one in judged)]


def _warnings(judged: Sequence[Judged]) -> list[str]:
    return list(dict.fromkeys(text for one in judged for text in one.comparison.warnings))


def _findings(judged: Sequence[Judged]) -> list[str]:
    return [
        f"{'FAILED' if finding.failed else 'passed'} {one.letter} {finding.rule}: {finding.words}"
        for one in judged
        for finding in one.findings
    ]


def _tables(judged: Sequence[Judged]) -> tuple[Table, Table]:
    lines = [{line.metric: line for line in one.comparison.lines} for one in judged]
    metrics = list(dict.fromkeys(metric for one in lines for metric in one))
    rows = []
    for metric in metrics:
        present = [one.get(metric) for one in lines]
        if all(line is None or (line.a is None and line.b is None) for line in present):
            continue
        first = next(line for line in present if line is not None)
        rows.append([first.name, _number(first.a), *(_cell(line) for line in present)])
    columns = ("ms, or per second", "A", *(one.letter for one in judged))
    figures = Table("Figures", columns, rows, notes=(NOTE,), words=(0,))
    names = list(dict.fromkeys(name for one in judged for name in one.comparison.config))
    settings = [[name, *_setting(judged, name)] for name in names]
    words = tuple(range(len(judged) + 2))
    return figures, Table("Settings that differ", ("setting", *columns[1:]), settings, words=words)


def _setting(judged: Sequence[Judged], name: str) -> list[str]:
    a = next(one.comparison.config[name][0] for one in judged if name in one.comparison.config)
    return [a, *(one.comparison.config[name][1] if name in one.comparison.config else "as A" for one in judged)]


def _cell(line: Line | None) -> str:
    if line is None or line.b is None:
        return UNKNOWN
    if line.shift is None:
        change = f" ({signed(100 * (line.b - line.a) / line.a, ' %')})" if line.a else ""
        return f"{digits(line.b)}{change}"
    interval = line.shift.interval
    return f"{digits(line.b)} ({signed(interval.low)} to {signed(interval.high)})"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else digits(value)

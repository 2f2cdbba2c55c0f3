"""A report as plain text for a terminal: the verdicts, one table, rates, failures and a small histogram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loadgen.analysis import Bin, digits
from loadgen.report import Table, View

WIDTH: Final = 100  # columns where the output is no terminal
BAR: Final = 30
GIVEN_UP: Final = ("n", "p90", "errors", "max", "mean", "p99", "tok/s", "pace", "b slower")
"""Columns that a narrow terminal leaves out, in this order."""


def text_of(view: View, width: int = WIDTH) -> str:
    """The results, in lines of at most `width` columns where that is possible."""
    lines = [view.measurement, view.result, view.ran, ""]
    for table in view.results:
        if table.rows:
            lines += [*table_lines(table, width), *table.notes, ""]
    lines += [f"  {name:<18} {value} ({detail})" for name, value, detail in view.rates]
    lines += [f"  failed             {failure}" for failure in view.failures]
    what, bins = view.histogram
    if bins:
        lines += ["", what, *histogram_lines(bins, width)]
    return "\n".join(lines)


def table_lines(table: Table, width: int) -> list[str]:
    """Aligned columns under the table's title. Columns that do not fit are left out, the least important first."""
    kept = list(range(len(table.columns)))
    while True:
        lines = _aligned(table, kept)
        gone = next((name for name in GIVEN_UP if name in (table.columns[place] for place in kept)), None)
        if gone is None or max(map(len, lines)) <= width:
            return [table.title, *lines]
        kept = [place for place in kept if table.columns[place] != gone]


def _aligned(table: Table, kept: Sequence[int]) -> list[str]:
    grid = [[row[place] for place in kept] for row in (table.columns, *table.rows)]
    words = [place in table.words for place in kept]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return [
        "  "
        + "  ".join(
            text.ljust(width) if left else text.rjust(width)
            for text, width, left in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in grid
    ]


def histogram_lines(bins: Sequence[Bin], width: int) -> list[str]:
    names = [f"{digits(each.low)}–{digits(each.high)}" for each in bins]
    most = max(each.count for each in bins)
    left, right = max(map(len, names)), len(f"{most:,}")
    room = max(min(BAR, width - left - right - 6), 1)
    return [
        f"  {name:>{left}}  {each.count:>{right},}  {'■' * round(room * each.count / most)}".rstrip()
        for name, each in zip(names, bins, strict=True)
    ]

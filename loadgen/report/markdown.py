"""report.md: tables that are aligned for a terminal and render in a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from loadgen.report.tables import Table
from loadgen.report.view import View

_SPECIAL: Final = re.compile(r"([\\`*\[\]<>|#~&]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z]))")
_SPACE: Final = re.compile(r"\s+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
MAX_CELL: Final = 160  # characters; a server's error text may be long


def escape_markdown(text: str) -> str:
    """The text as one plain line: no markup, link, control character or bidirectional override."""
    return _SPECIAL.sub(r"\\\1", _SPACE.sub(" ", _CONTROL.sub("", text)))


def code(text: str) -> str:
    """The text as inline code, with a fence longer than any inside."""
    text = _SPACE.sub(" ", _CONTROL.sub("", text))
    fence = "`" * (max(map(len, re.findall(r"`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = (0,)
) -> list[str]:
    """A padded table. `words`: the columns of text, aligned left; numbers are aligned right."""
    body = [[escape_markdown(text[:MAX_CELL]) for text in row] for row in rows]
    head = [escape_markdown(text) for text in columns]
    widths = [max(3, *(len(row[place]) for row in [head, *body])) for place in range(len(head))]
    numeric = [place not in words for place in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = [
        ("-" * (width - 1) + ":") if right else "-" * width for width, right in zip(widths, numeric, strict=True)
    ]
    return [line(head), f"| {' | '.join(rule)} |", *map(line, body)]


def render(view: View, plots: Sequence[str] = ()) -> str:
    """report.md. `plots`: paths of pictures relative to the report."""
    lines = [
        f"# {escape_markdown(view.title)}",
        "",
        f"**{escape_markdown(view.measurement)}**",
        "",
        f"**{escape_markdown(view.result)}**",
        "",
        escape_markdown(view.ran),
        "",
    ]
    summary = [f"{what} {value} ({more})" for what, value, more in view.headline]
    lines += [escape_markdown("; ".join(summary)) + ".", ""]
    lines += [f"> Warning: {escape_markdown(warning)}." for warning in view.warnings]
    lines += [""] if view.warnings else []
    for shown in (*view.tables, view.self_error):
        lines += section(shown)
    lines += ["## Definitions", ""]
    lines += [f"- **{escape_markdown(term)}**: {escape_markdown(text)}" for term, text in view.definitions]
    lines += ["", "## Configuration", "", code(view.command), ""]
    lines += markdown_table(("setting", "value"), [pair for pair in view.config if pair[0] != "command"], (0, 1))
    if plots:
        lines += ["", "Plots: " + ", ".join(f"[{escape_markdown(name)}]({name})" for name in plots)]
    lines += ["", f"{escape_markdown(view.date)}. Times are in milliseconds.", ""]
    return "\n".join(lines)


def section(shown: Table) -> list[str]:
    lines = [f"## {escape_markdown(shown.title)}", "", *markdown_table(shown.columns, shown.rows, shown.words), ""]
    for note in shown.notes:
        lines += [escape_markdown(note), ""]
    return lines

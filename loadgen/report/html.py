"""report.html: one file with no outside asset and no script, light or dark as the reader's browser says.
Everything that is not this module's markup is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from loadgen.report.html_style import CSS
from loadgen.report.plot_style import inline_svg
from loadgen.report.plots import HOW_TO, Plot
from loadgen.report.view import Table, View

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""With it a browser loads and runs nothing, even if an escape were missing."""


def render(view: View, plots: Sequence[Plot] = ()) -> str:
    title = escape(view.title)
    first, *others = map(_section, view.tables)
    rest = "\n".join(others)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{CSS}</style>
</head>
<body>
<header>
<p class="kicker">load generator report · {escape(view.date)}</p>
<h1>{title}</h1>
<p class="verdict {"valid" if view.valid else "invalid"}">{escape(view.verdict)}</p>
<p class="ran">{escape(view.ran)}</p>
</header>
<main>
<div class="tiles">{"".join(_tile(*tile) for tile in view.headline)}</div>
{"".join(f'<p class="warning">{escape(text)}</p>' for text in view.warnings)}
{first}
{_pictures(plots)}
{rest}
{_section(view.self_error)}
<details open><summary>Definitions</summary>
<dl>{"".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in view.definitions)}</dl>
</details>
<details><summary>Configuration</summary>
<pre>{escape(view.command)}</pre>
{_table(Table("", ("setting", "value"), [pair for pair in view.config if pair[0] != "command"], words=(0, 1)))}
</details>
</main>
</body>
</html>
"""


def _tile(what: str, value: str, more: str) -> str:
    number, _, unit = value.partition(" ")
    unit = f" <small>{escape(unit)}</small>" if unit else ""
    return (
        f'<div class="tile"><span>{escape(what)}</span><strong>{escape(number)}{unit}</strong>'
        f"<em>{escape(more)}</em></div>"
    )


def _pictures(plots: Sequence[Plot]) -> str:
    if not plots:
        return f'<p class="hint">{escape(HOW_TO)}</p>'
    return "\n".join(
        f'<figure id="plot-{plot.name}"><h2>{escape(plot.title)}</h2>'
        f'<div class="scroll">{inline_svg(plot.svg, plot.name, escape(plot.title))}</div>'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
        for plot in plots
    )


def _section(table: Table) -> str:
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return f"<section><h2>{escape(table.title)}</h2>{_table(table)}{notes}</section>"


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{'' if place in table.words else ' class=num'}>{_cell(text)}</{tag}>"
            for place, text in enumerate(cells)
        )

    head = f"<thead><tr>{row(table.columns, 'th')}</tr></thead>" if any(table.columns) else ""
    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in table.rows)
    kind = ' class="facts"' if len(table.words) == len(table.columns) else ""
    return f'<div class="scroll"><table{kind}>{head}<tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    """An interval after a figure in small type, so that the figures of a column align."""
    value, bracket, rest = text.partition(" (")
    if bracket and rest.endswith(")") and value[:1] in "0123456789+−±" and " " not in value:
        return f"{escape(value)} <small>({escape(rest)}</small>"
    return escape(text)

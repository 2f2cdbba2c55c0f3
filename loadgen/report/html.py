"""report.html: one file with no outside asset and no script, light or dark as the reader's browser says.
Everything that is not this module's markup is escaped. The colours' names are those of `plot_style.py`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from loadgen.report.plot_style import inline_svg
from loadgen.report.plots import HOW_TO, Plot
from loadgen.report.tables import Table
from loadgen.report.view import View

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""With it a browser loads and runs nothing, even if an escape were missing."""
CSS: Final = """
:root {
  --page: #f5f6f9; --card: #ffffff; --ink: #1f2430; --muted: #6a7180; --grid: #dfe3ea;
  --shade: #1f243024;
  --blue: #2864d8; --orange: #c9720a; --green: #0c8a63; --red: #cf2f3c; --violet: #7a4fd0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12141a; --card: #1b1e27; --ink: #e6e9f0; --muted: #98a1b3; --grid: #30353f;
    --shade: #000000b0;
    --blue: #7ba7ff; --orange: #f0a94e; --green: #4fcf9f; --red: #ff7b85; --violet: #b79bff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.2rem 1.2rem 4rem; max-width: 66rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
header { margin-bottom: 1.4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .1rem 0 .7rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 .7rem; }
.kicker { color: var(--muted); margin: 0; font-size: .85rem; }
.verdict {
  display: inline-block; margin: 0 0 .6rem; padding: .3rem .8rem; border-radius: .5rem; font-weight: 600;
}
.good { color: var(--green); background: color-mix(in srgb, var(--green) 13%, transparent); }
.part { color: var(--orange); background: color-mix(in srgb, var(--orange) 14%, transparent); }
.bad { color: var(--red); background: color-mix(in srgb, var(--red) 14%, transparent); }
.ran { margin: 0; color: var(--muted); overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.6rem, 1fr)); gap: .8rem; }
.tile, section, figure, details {
  background: var(--card); border: 1px solid var(--grid); border-radius: .7rem; padding: 1rem 1.15rem;
}
.tile span, .tile em { display: block; color: var(--muted); font-style: normal; font-size: .82rem; }
.tile strong { font-size: 1.5rem; line-height: 1.35; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tile small { font-size: .85rem; font-weight: 500; color: var(--muted); }
section, figure, details, .warning, .hint { margin: .8rem 0 0; }
.warning {
  padding: .55rem .9rem; border-left: 4px solid var(--orange); border-radius: .3rem; background: var(--card);
}
.hint, .note { color: var(--muted); }
.note { margin: .6rem 0 0; font-size: .9rem; }
figure svg { display: block; width: 100%; height: auto; }
.at-phone { display: none; }
figcaption { color: var(--muted); font-size: .88rem; margin-top: .4rem; }
.scroll {
  overflow-x: auto;
  background:
    linear-gradient(to right, var(--card) 40%, transparent) 0 0 / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--card) 40%, transparent) 100% 0 / 3rem 100% no-repeat local,
    linear-gradient(to right, var(--shade), transparent) 0 0 / .9rem 100% no-repeat scroll,
    linear-gradient(to left, var(--shade), transparent) 100% 0 / .9rem 100% no-repeat scroll;
}
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th { text-align: left; white-space: nowrap; font-weight: 600; color: var(--muted); font-size: .82rem; }
th, td { padding: .34rem .8rem .34rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
tbody tr:last-child td { border-bottom: 0; }
td { overflow-wrap: anywhere; }
td:first-child { font-weight: 500; white-space: nowrap; }
.num { text-align: right; white-space: nowrap; padding: .34rem 0 .34rem .8rem; }
.num + :not(.num) { padding-left: 1.3rem; }
td small { color: var(--muted); font-size: .8rem; }
summary { cursor: pointer; font-weight: 600; }
dl {
  display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.1rem; margin: .8rem 0 0; font-size: .92rem;
}
dt { font-weight: 600; }
dd { margin: 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
@media (max-width: 40rem) {
  .at-width, .wide { display: none; }
  .at-phone { display: block; max-width: 30rem; margin: 0 auto; }
  table:not(.facts) { font-size: .86rem; }
  table:not(.facts) :is(td, th) { padding-left: .45rem; padding-right: 0; }
  table:not(.facts) :is(td, th):first-child { padding-left: 0; white-space: normal; min-width: 5.2rem; }
  td small { display: block; font-size: .66rem; }
  body { padding: 1.3rem .7rem 3rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .55rem; }
  .tile, section, figure, details { padding: .85rem .9rem; }
  table:not(.facts) :is(td, th):first-child { position: sticky; left: 0; background: var(--card); }
  .facts thead { display: none; }
  .facts tr {
    display: grid; grid-template-columns: 8.2rem 1fr; padding: .3rem 0; border-bottom: 1px solid var(--grid);
  }
  .facts tbody tr:last-child { border-bottom: 0; }
  .facts td { border-bottom: 0; padding: 0 .5rem 0 0; }
  .facts td:first-child { white-space: normal; }
  .facts td:nth-child(3) { grid-column: 1 / -1; color: var(--muted); font-size: .85rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .55rem; }
}
@media print { body { background: #fff; } section, figure { break-inside: avoid; } }
"""


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
<p class="verdict {view.grade}">{escape(view.measurement)}</p>
<p class="verdict {"good" if view.good else "bad"}">{escape(view.result)}</p>
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


def page(title: str, lead: str, lines: Sequence[str], tables: Sequence[Table]) -> str:
    """A page of warnings, findings and tables, in the reports' style."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="ran">{escape(lead)}</p>
</header>
<main>
{"".join(f'<p class="warning">{escape(text)}</p>' for text in lines)}
{"".join(map(_section, tables))}
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
        f'<div class="at-width">{inline_svg(plot.svg, plot.name, escape(plot.title))}</div>'
        f'<div class="at-phone">{inline_svg(plot.narrow, f"{plot.name}-phone", escape(plot.title))}</div>'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
        for plot in plots
    )


def _section(table: Table) -> str:
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return f"<section><h2>{escape(table.title)}</h2>{_table(table)}{notes}</section>"


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{_kind(table, place)}>{_cell(text)}</{tag}>" for place, text in enumerate(cells))

    head = f"<thead><tr>{row(table.columns, 'th')}</tr></thead>" if any(table.columns) else ""
    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in table.rows)
    kind = ' class="facts"' if len(table.words) == len(table.columns) else ""
    return f'<div class="scroll"><table{kind}>{head}<tbody>{body}</tbody></table></div>'


def _kind(table: Table, place: int) -> str:
    kinds = [*([] if place in table.words else ["num"]), *(["wide"] if place in table.wide else [])]
    return f' class="{" ".join(kinds)}"' if kinds else ""


def _cell(text: str) -> str:
    """An interval after a figure in small type, so that the figures of a column align."""
    value, bracket, rest = text.partition(" (")
    if bracket and rest.endswith(")") and value[:1] in "0123456789+−±~" and " " not in value:
        return f"{escape(value)} <small>({escape(rest)}</small>"
    return escape(text)

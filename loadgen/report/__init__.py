"""A run's figures for people and for programs: result.json, report.md, report.html, plots, comparisons.

The nouns:

- result: `result.json`, with vLLM's flat names for what vLLM has and everything else under the key `loadgen`.
- view: what a report says, in words and `Table`s, once for every format. `markdown.py` and `html.py` render it.
- headline: the few figures at the top, different for a run, a sweep and an `ab`.
- `Plot`: one picture as SVG and PNG. matplotlib is imported only when a plot is drawn; without it reports have
  their tables.
- `Foreign`: a result of another load generator, read as requests and figures of ours.
- `Comparison`: two runs, as `Line`s (one figure of both, its shift and interval) and warnings where they differ
  in more than what is compared.

`report_of` makes a `Report` of measured requests, so that its results can be shown before `write_report` draws
the plots. Everything in a view is plain text; the renderers escape it.
"""

from loadgen.report.compare import (
    Comparison,
    Line,
    compare_runs,
    compare_values,
    flat_metrics,
    metrics_of,
)
from loadgen.report.markdown import escape_markdown, markdown_table
from loadgen.report.plots import HOW_TO, plots_available
from loadgen.report.result import result_json
from loadgen.report.runs.foreign import read_foreign
from loadgen.report.runs.repeats import REPEATS, read_repeats, repeats_json, repeats_table, spreads_of
from loadgen.report.runs.side_by_side import Judged, comparison_page, side_by_side
from loadgen.report.sections.by_load import Point, points_of
from loadgen.report.sections.found import found_sentence, objectives
from loadgen.report.tables import Table, unmeasured_text
from loadgen.report.view import View
from loadgen.report.write import Files, Report, report_of, write_report

__all__ = [
    "HOW_TO",
    "REPEATS",
    "Comparison",
    "Files",
    "Judged",
    "Line",
    "Point",
    "Report",
    "Table",
    "View",
    "compare_runs",
    "compare_values",
    "comparison_page",
    "escape_markdown",
    "flat_metrics",
    "found_sentence",
    "markdown_table",
    "metrics_of",
    "objectives",
    "plots_available",
    "points_of",
    "read_foreign",
    "read_repeats",
    "repeats_json",
    "repeats_table",
    "report_of",
    "result_json",
    "side_by_side",
    "spreads_of",
    "unmeasured_text",
    "write_report",
]

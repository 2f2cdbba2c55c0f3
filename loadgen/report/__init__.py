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

`write_reports` writes all files of a run from its records, `write_measured` from requests that are measured
already. Everything in a view is plain text; the renderers escape it.
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
from loadgen.report.result import result_json
from loadgen.report.runs.foreign import read_foreign
from loadgen.report.runs.repeats import repeats_json, repeats_table, spreads_of
from loadgen.report.runs.side_by_side import Judged, comparison_page, side_by_side
from loadgen.report.write import write_measured, write_reports

__all__ = [
    "Comparison",
    "Judged",
    "Line",
    "compare_runs",
    "compare_values",
    "comparison_page",
    "escape_markdown",
    "flat_metrics",
    "markdown_table",
    "metrics_of",
    "read_foreign",
    "repeats_json",
    "repeats_table",
    "result_json",
    "side_by_side",
    "spreads_of",
    "write_measured",
    "write_reports",
]

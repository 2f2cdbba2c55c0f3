"""A run's report files: result.json, report.md, report.html and the plots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from loadgen.analysis import (
    Measured,
    Pairs,
    Summary,
    in_order,
    measure_records,
    pair_up,
    summarise_measured,
)
from loadgen.record import Record, Run
from loadgen.report import html as report_html
from loadgen.report import markdown as report_md
from loadgen.report import plots as drawing
from loadgen.report.plot_style import file_svg
from loadgen.report.result import result_json
from loadgen.report.view import View, view

PLOTS = "plots"


class Written(NamedTuple):
    view: View
    paths: list[Path]


def write_reports(folder: Path, run: Run, records: Iterable[Record], summary: Summary) -> Written:
    """Write all reports from the records. Raises OSError."""
    return write_measured(folder, run, in_order(measure_records(records, summary.definitions)), summary)


def write_measured(folder: Path, run: Run, requests: Sequence[Measured], summary: Summary) -> Written:
    """Write all reports of measured requests in order; an `ab` run also has a result.json for each side."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = pair_up(requests, seed=run.seed)
    written = [_json(folder / "result.json", run, summary, pairs, requests)]
    for name in summary.by_target:
        part = [request for request in requests if request.target == name]
        side = summarise_measured(run, part, summary.whole.goodput.slos if summary.whole.goodput else None)
        written.append(_json(folder / f"result-{name}.json", run, side, None, part))
    shown = view(run, summary, pairs, examples(requests))
    pictures = drawing.plots(requests, summary) if drawing.plots_available() else []
    for plot in pictures:
        (folder / PLOTS).mkdir(exist_ok=True)
        written += [
            _bytes(folder / PLOTS / f"{plot.name}.svg", file_svg(plot.svg)),
            _bytes(folder / PLOTS / f"{plot.name}.png", plot.png),
        ]
    links = [f"{PLOTS}/{plot.name}.svg" for plot in pictures]
    written.append(_bytes(folder / "report.md", report_md.render(shown, links).encode()))
    written.append(_bytes(folder / "report.html", report_html.render(shown, pictures).encode()))
    return Written(shown, written)


def examples(requests: Iterable[Measured]) -> dict[str, str]:
    """The first detail of each kind of error."""
    first: dict[str, str] = {}
    for request in requests:
        if request.failure is not None and request.detail:
            first.setdefault(request.failure, request.detail)
    return first


def _json(path: Path, run: Run, summary: Summary, pairs: Pairs | None, requests: Sequence[Measured]) -> Path:
    details = requests if run.config.get("save_detailed") else ()
    result = result_json(run, summary, msgspec.to_builtins(pairs) if pairs else None, details, requests=requests)
    return _bytes(path, msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path

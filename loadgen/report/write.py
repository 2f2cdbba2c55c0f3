"""A run's report files: result.json, report.md, report.html and the plots."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from loadgen.analysis import (
    Bin,
    Measured,
    Pairs,
    Summary,
    focus,
    histogram,
    pair_up,
    summarise_measured,
)
from loadgen.record import Run
from loadgen.report import html as report_html
from loadgen.report import markdown as report_md
from loadgen.report import plots as drawing
from loadgen.report.plot_style import file_svg
from loadgen.report.result import result_json
from loadgen.report.sections.by_load import Point
from loadgen.report.view import View, view

PLOTS = "plots"


class Report(NamedTuple):
    """What is known of a run before any file is written."""

    run: Run
    summary: Summary
    requests: Sequence[Measured]  # in order
    pairs: Pairs | None
    view: View
    result: dict[str, Any]  # result.json


class Files:
    """Writes files into a folder and keeps those that fail, so that a full disk costs files and no figures."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.paths: list[Path] = []
        self.lost: list[str] = []

    def write(self, name: str, content: bytes) -> None:
        """A file that fails is removed: half of it would be taken for all of it, and the next one may fit."""
        path = self._folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            self.lost.append(f"{name}: {error.strerror or error}")
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        else:
            self.paths.append(path)


def report_of(run: Run, requests: Sequence[Measured], summary: Summary) -> Report:
    """The report of measured requests in order."""
    pairs = pair_up(requests, seed=run.seed)
    shown = view(run, summary, pairs, examples(requests), counted(requests, summary), requests)
    return Report(run, summary, requests, pairs, shown, _result(run, summary, pairs, requests))


def write_report(report: Report, files: Files, beside: Mapping[str, Sequence[Point]] | None = None) -> None:
    """Write the result, the reports and the plots; an `ab` run also has a result for each side. `beside`: the
    points of other runs by their name, laid over this one's in the picture of throughput against speed."""
    run, summary, requests = report.run, report.summary, report.requests
    files.write("result.json", _json(report.result))
    for name in summary.by_target:
        part = [request for request in requests if request.target == name]
        side = summarise_measured(run, part, summary.whole.goodput.slos if summary.whole.goodput else None)
        files.write(f"result-{name}.json", _json(_result(run, side, None, part)))
    pictures = drawing.plots(run, requests, summary, beside) if drawing.plots_available() else []
    links = [f"{PLOTS}/{plot.name}.svg" for plot in pictures]
    files.write("report.md", report_md.render(report.view, links).encode())
    files.write("report.html", report_html.render(report.view, pictures).encode())
    for plot in pictures:
        files.write(f"{PLOTS}/{plot.name}.svg", file_svg(plot.svg))
        files.write(f"{PLOTS}/{plot.name}.png", plot.png)


def counted(requests: Iterable[Measured], summary: Summary) -> tuple[str, list[Bin]]:
    """The histogram of TTFT, or of E2E where there is no stream: of the requests whose latency the report shows.
    None for an `ab`, whose difference is what counts."""
    if summary.by_target:
        return "", []
    _, stage, _ = focus(summary)
    shown = [
        request
        for request in requests
        if request.completed and request.fresh and (not stage or request.stage == stage)
    ]
    firsts = [request.ttft.value for request in shown if request.ttft is not None]
    if firsts:
        return "TTFT, ms", histogram(firsts)
    return "E2E, ms", histogram([request.e2e for request in shown if request.e2e is not None])


def examples(requests: Iterable[Measured]) -> dict[str, str]:
    """The first detail of each kind of error."""
    first: dict[str, str] = {}
    for request in requests:
        if request.failure is not None and request.detail:
            first.setdefault(request.failure, request.detail)
    return first


def _result(run: Run, summary: Summary, pairs: Pairs | None, requests: Sequence[Measured]) -> dict[str, Any]:
    details = requests if run.config.get("save_detailed") else ()
    return result_json(run, summary, msgspec.to_builtins(pairs) if pairs else None, details, requests=requests)


def _json(result: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"

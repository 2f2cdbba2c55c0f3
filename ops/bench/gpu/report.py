"""The report: Markdown, JSON and a plot of what was measured, also when that is not everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from ops.bench.gpu.measure import Row
from ops.bench.gpu.plan import DUPLICATES, STREAMS
from ops.bench.vllm.tables import Panel, compared, draw, spread


class Report(msgspec.Struct, kw_only=True):
    """Everything that the report says."""

    command: str
    machine: str
    gpu: str  # empty: none
    vllm: str  # its version
    model: str
    subjects: dict[str, str]  # name -> version and how it is run
    missing: list[str]  # what could not be measured, and why
    load: str
    budget: float  # seconds
    took: float
    ready: float  # seconds until the engine answered
    rows: list[Row]
    dropped: list[str]  # cells for which there was no time
    ended: str = ""  # why it ended early


Cells = dict[str, Callable[[list[Row]], str]]


def values(rows: Sequence[Row], field: str) -> list[float]:
    return [value for row in rows if (value := getattr(row, field)) is not None]


def cell(rows: Sequence[Row], field: str, digits: int) -> str:
    found = values(rows, field)
    return spread(found, digits) if found else "–"


def added(rows: Sequence[Row], direct: Sequence[Row], field: str, digits: int) -> str:
    """The difference to direct, round by round."""
    base = {row.round: value for row in direct if (value := getattr(row, field)) is not None}
    found = [getattr(row, field) - base[row.round] for row in rows if getattr(row, field) is not None
             and row.round in base]  # fmt: skip
    return compared(found, digits)


def _status(rows: Sequence[Row]) -> str:
    """Whether the rows can be believed."""
    errors = [f"FAILED: {row.error}" for row in rows if row.error]
    failed = sum(row.failed for row in rows)
    found = [f"{failed} requests failed"] if failed else []
    if invalid := sorted({reason for row in rows for reason in row.invalid}):
        found.append(f"the client is inexact: {'; '.join(invalid)}")
    return "; ".join([*dict.fromkeys(errors), *found]).replace("|", "/") or "sound"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines)]


def _groups(report: Report, kind: str) -> list[tuple[float, str, list[Row]]]:
    of = [row for row in report.rows if row.kind == kind]
    found = [
        (value, name, [row for row in of if (row.value, row.subject) == (value, name)])
        for value in sorted({row.value for row in of})
        for name in report.subjects
    ]
    return [group for group in found if group[2]]


def streams_table(report: Report) -> list[str]:
    """A line for each number of streams and subject."""
    head = ["streams", "way", "TTFT p50, ms", "added", "TTFT p99", "TPOT p50, ms", "added", "ITL p99", "tokens/s",
            "CPU µs a token: engine", "way", "client", "rows"]  # fmt: skip
    groups = _groups(report, STREAMS)
    lines = []
    for value, name, rows in groups:
        direct = [row for row in report.rows if (row.kind, row.value, row.subject) == (STREAMS, value, "direct")]
        plus = [added(rows, direct, field, 2) if name != "direct" else "" for field in ("ttft_p50", "tpot_p50")]
        lines.append(
            [
                f"{value:g}", name, cell(rows, "ttft_p50", 1), plus[0], cell(rows, "ttft_p99", 1),
                cell(rows, "tpot_p50", 2), plus[1], cell(rows, "itl_p99", 1), cell(rows, "tokens_per_s", 0),
                cell(rows, "engine_us", 0), cell(rows, "subject_us", 1), cell(rows, "client_us", 1), _status(rows),
            ]
        )  # fmt: skip
    return _table(head, lines)


def sharing_table(report: Report) -> list[str]:
    """A line for each share of duplicates and subject, by the engine's counters."""
    head = ["duplicates", "way", "requests delivered", "served by the engine", "prompt tokens", "of these cached",
            "tokens generated", "tokens delivered", "saved", "TTFT p50, ms", "rows"]  # fmt: skip
    lines = []
    for value, name, rows in _groups(report, DUPLICATES):
        done = [row for row in rows if row.work]

        def counted(of: Callable[[Row], float], done: Sequence[Row] = done) -> str:
            return spread([of(row) for row in done], 0) if done else "–"

        saved = [100 * (1 - row.work["generated"] / row.delivered) for row in done if row.delivered]
        lines.append(
            [
                f"{value:.0%}", name,
                counted(lambda row: row.completed), counted(lambda row: row.work["requests"]),
                counted(lambda row: row.work["prompt"]), counted(lambda row: row.work["cached"]),
                counted(lambda row: row.work["generated"]), counted(lambda row: row.delivered),
                f"{spread(saved, 1)} %" if saved else "–", cell(rows, "ttft_p50", 1), _status(rows),
            ]
        )  # fmt: skip
    return _table(head, lines)


def _indented(text: str) -> str:
    return text.strip().replace("\n", "\n  ")


def markdown(report: Report) -> str:
    """The whole report."""
    return f"# vLLM {report.vllm} on {report.gpu or 'a CPU'}\n\n{section(report)}"


def section(report: Report) -> str:
    """The report without its title."""
    lines = [
        f"`{report.command}`", "",
        f"vLLM {report.vllm}. {report.machine}. GPU: {report.gpu or 'none'}. Model: {report.model}. "
        f"{report.load} Medians of the rounds (smallest to largest). *Added* is the difference to direct in the "
        "same round; it is no finding where the rounds do not agree in its sign, or there is one round. CPU is of "
        "all threads of the part, between the first and the last sample with nine of ten streams generating.", "",
        f"The engine was ready after {report.ready:.0f} s; the run took {report.took:.0f} of "
        f"{report.budget:.0f} s.",
        "",
    ]  # fmt: skip
    lines += [f"- {name}: {what}" for name, what in report.subjects.items()]
    lines += [f"- not measured: {_indented(what)}" for what in report.missing]
    if report.ended:
        lines += [f"- **ended early**: {_indented(report.ended)}"]
    if report.dropped:
        lines += [f"- no time for: {'; '.join(report.dropped)}"]
    lines.append("")
    if any(row.kind == STREAMS for row in report.rows):
        lines += ["**Streams**", "", *streams_table(report), ""]
    if any(row.kind == DUPLICATES for row in report.rows):
        lines += ["**Sharing**", "", *sharing_table(report), ""]
    if not report.rows:
        lines += ["Nothing was measured.", ""]
    return "\n".join(lines)


PANELS: Final = {
    "ttft_p50": "TTFT p50, ms",
    "tpot_p50": "time per token p50, ms",
    "tokens_per_s": "tokens/s",
}


def picture(report: Report) -> bytes | None:
    """TTFT, time per token and tokens/s by number of streams, as SVG; None without matplotlib or rows."""
    panels = []
    for field, title in PANELS.items():
        curves: dict[str, dict[float, list[float]]] = {}
        for value, name, rows in _groups(report, STREAMS):
            if found := values(rows, field):
                curves.setdefault(name, {})[value] = found
        steps = {value: f"{value:g}" for value in sorted({value for curve in curves.values() for value in curve})}
        if curves:
            panels.append(Panel(title, "streams", steps, curves))
    return draw(panels) if panels else None


def write(report: Report, folder: Path, *, plot: bool) -> None:
    """Write report.md, report.json and, if `plot` and with matplotlib, report.svg into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(report)
    drawn = picture(report) if plot else None
    if drawn is not None:
        (folder / "report.svg").write_bytes(drawn)
        text += "\n![TTFT, time per token and tokens/s by number of streams](report.svg)\n"
    (folder / "report.md").write_text(text)
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")

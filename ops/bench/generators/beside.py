"""The same load by each tool on one server, one after another: the figures side by side, by each tool's names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ops.bench.generators.parts import serving, watched
from ops.bench.generators.server import Schedule, Served
from ops.bench.generators.tools import Homes, Tool
from ops.bench.generators.truth import Found, compare
from ops.bench.generators.workloads import Workload

BESIDE: Final = ("ours", "vllm", "guidellm", "aiperf")
SCHEDULE: Final = Schedule(tokens=32, ttft_ms=100.0, itl_ms=20.0)
TOOL_SECONDS: Final = 240.0
CPUS: Final = frozenset({0, 1})
FILES: Final = {
    "ours": "*/result.json",
    "vllm": "result.json",
    "guidellm": "result.json",
    "aiperf": "profile_export_aiperf.json",
}


class Figure(NamedTuple):
    """One figure: where each tool's file has it (a path of keys), and its factor to the unit of the row."""

    words: str
    names: Mapping[str, str]
    digits: int = 1
    factors: Mapping[str, float] = {}
    note: str = ""


def _flat(name: str, guidellm: str, aiperf: str) -> Mapping[str, str]:
    """vLLM's name, which is ours too, and the others'."""
    return {"ours": name, "vllm": name, "guidellm": guidellm, "aiperf": aiperf}


def _latency(words: str, flat: str, guidellm: str, aiperf: str, note: str, factor: float = 1.0) -> list[Figure]:
    """Mean, median and p99 of one measure, in ms."""
    rows = []
    for label, ours, theirs, stat in (
        ("mean", "mean", "mean", "avg"),
        ("p50", "median", "median", "p50"),
        ("p99", "p99", "percentiles.p99", "p99"),
    ):
        names = {"ours": f"{ours}_{flat}_ms", "vllm": f"{ours}_{flat}_ms"}
        if guidellm:
            names["guidellm"] = f"metrics.{guidellm}.successful.{theirs}"
        if aiperf:
            names["aiperf"] = f"{aiperf}.{stat}"
        rows.append(
            Figure(f"{words} {label}, ms", names, 2, {"guidellm": factor}, note if label == "mean" else "")
        )
    return rows


FIGURES: Final = (
    Figure(
        "completed",
        _flat("completed", "metrics.request_totals.successful", "request_count.avg"),
        0,
        note="all of them leave the warm-up out",
    ),
    Figure(
        "duration, s",
        _flat("duration", "duration", "benchmark_duration.avg"),
        note="from the first request to the last response; GuideLLM's is the time of its benchmark",
    ),
    Figure(
        "requests/s",
        _flat(
            "request_throughput", "metrics.requests_per_second.successful.mean", "request_throughput.avg"
        ),
        2,
        note="completed by duration; GuideLLM's is the mean over time of its rate of completions",
    ),
    Figure(
        "output tokens/s",
        _flat(
            "output_throughput", "metrics.output_tokens_per_second.successful.mean", "output_token_throughput.avg"
        ),
        note="as requests/s, by the server's usage; vLLM would count with its tokenizer if there were none",
    ),
    *_latency(
        "TTFT", "ttft", "time_to_first_token_ms", "time_to_first_token",
        "ours: between two kernel stamps, of the request's last byte sent and of the first token's arrival. vLLM, "
        "GuideLLM, AIPerf: by the program's clock, from before the request is written until the first token is "
        "read in Python, so that their own delay is in it",
    ),
    *_latency(
        "TPOT", "tpot", "inter_token_latency_ms", "inter_token_latency",
        "a request's mean gap: (last token - first) / (tokens - 1). GuideLLM and AIPerf call it inter-token "
        "latency; GuideLLM's `time_per_output_token_ms` is another figure, with the first token in it",
    ),
    *_latency(
        "ITL", "itl", "", "inter_chunk_latency",
        "each gap between two events with tokens. GuideLLM keeps none; AIPerf calls it inter-chunk latency",
    ),
    *_latency(
        "E2E", "e2el", "request_latency", "request_latency",
        "ours and vLLM's: to the last event of the stream. GuideLLM: until its client has finished, in seconds. "
        "AIPerf: to the last response event",
        1000.0,
    ),
)  # fmt: skip


class Column(msgspec.Struct, kw_only=True):
    """What one tool says, and the true TTFT of the same requests at the server, in ms."""

    tool: str
    values: list[float | None]
    true_ttft_ms: tuple[float, float, float] | None = None  # mean, p50, p99
    wrong: str = ""


def measured(tools: Sequence[Tool], rate: float, requests: int, homes: Homes, work: Path) -> list[Column]:
    """One column for each tool, in this order, all on one server."""
    workload = Workload(
        name="beside", group="beside", words="", schedule=SCHEDULE, requests=requests, rate=rate
    )  # fmt: skip
    columns: list[Column] = []
    log = work / "served.json"
    with serving(SCHEDULE, log, 0) as url:
        for tool in tools:
            folder = work / tool.name
            folder.mkdir()
            print(f"{tool.name}: {requests} requests at {rate:g}/s", file=sys.stderr, flush=True)
            try:
                watched(
                    tool.command(homes, folder, url, workload, 1), set(CPUS), {}, work / f"{tool.name}.log",
                    TOOL_SECONDS,
                )  # fmt: skip
                columns.append(Column(tool=tool.name, values=values_of(tool.name, document_of(tool.name, folder))))
            except (RuntimeError, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
                columns.append(Column(tool=tool.name, values=[None] * len(FIGURES), wrong=f"{tool.name}: {error}"))
    served = msgspec.json.decode(log.read_bytes(), type=list[Served])
    for tool, column in zip(tools, columns, strict=True):
        if not column.wrong:
            found = compare(served, tool.read(work / tool.name).reported, tool.key)
            column.true_ttft_ms = _stats(found)
    return columns


def document_of(tool: str, folder: Path) -> dict[str, Any]:
    """The tool's own result. Raises OSError without one."""
    files = sorted(folder.glob(FILES[tool]))
    if not files:
        raise FileNotFoundError(f"no {FILES[tool]}")
    document: dict[str, Any] = json.loads(files[0].read_bytes())
    return document["benchmarks"][0] if tool == "guidellm" else document


def values_of(tool: str, document: Mapping[str, Any]) -> list[float | None]:
    """Each figure in the unit of its row; None where the tool has none."""
    values: list[float | None] = []
    for figure in FIGURES:
        value: Any = document
        for key in figure.names.get(tool, "").split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        good = isinstance(value, int | float)
        values.append(value * figure.factors.get(tool, 1.0) if good else None)
    return values


def _stats(found: Found) -> tuple[float, float, float] | None:
    ordered = sorted(found.truths_ns)
    if not ordered:
        return None
    p50, p99 = (ordered[min(int(len(ordered) * share), len(ordered) - 1)] / 1e6 for share in (0.5, 0.99))
    return sum(ordered) / len(ordered) / 1e6, p50, p99


def side_by_side(columns: Sequence[Column], versions: Sequence[str], where: str) -> str:
    """Markdown: the figures, each tool's names for them, and why they differ."""
    tools = [column.tool for column in columns]
    lines = [f"On {where}: {'; '.join(versions)}.", "", *_rows(["", *tools])]
    for place, figure in enumerate(FIGURES):
        lines += _row([figure.words, *(_shown(column.values[place], figure.digits) for column in columns)])
    for place, label in enumerate(("mean", "p50", "p99")):
        truths = [column.true_ttft_ms[place] if column.true_ttft_ms else None for column in columns]
        lines += _row([f"true TTFT {label}, ms", *(_shown(value, 2) for value in truths)])
    lines += ["", *_rows(["figure", *tools])]
    for figure in FIGURES:
        lines += _row(
            [figure.words, *(f"`{name}`" if (name := figure.names.get(tool)) else "–" for tool in tools)]
        )
    lines += ["", *(f"- {figure.words.partition(',')[0]}: {figure.note}." for figure in FIGURES if figure.note)]
    lines += [f"- FAILED: {column.wrong}" for column in columns if column.wrong]
    return "\n".join(lines)


def _rows(heads: Sequence[str]) -> list[str]:
    return [*_row(heads), "|" + "---|" * len(heads)]


def _row(cells: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]


def _shown(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"

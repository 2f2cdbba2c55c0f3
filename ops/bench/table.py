"""One measured part as data, and the Markdown table of all parts."""

from __future__ import annotations

import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from loadgen.report.plot_style import BLUE, INK, MUTED, canvas, file_svg, saved, styled
from loadgen.report.plots import plots_available
from ops.bench.vllm.tables import compared
from ops.bench.workloads import workloads

BASES: Final = ("vllm-router-rr", "direct")
PACED: Final = ("ttft",)  # workloads at a rate: in a closed loop TTFT is that of the queue
_WORDS: Final = {workload.name: (workload.words, workload.per_event) for workload in workloads(shared=True)}


class Part(msgspec.Struct, kw_only=True):
    """One workload against one subject in one round. CPU in microseconds per event or per request."""

    subject: str
    workload: str
    round: int
    done: int
    events: int
    seconds: float
    cpu_us: float
    user: float  # share of the CPU time outside the kernel
    busy: float  # CPUs in use
    ttft_ms: tuple[float, float, float]  # p50, p99, max
    gap_ms: tuple[float, float, float]
    rss_mb: float  # after the part
    start_s: float
    verdicts: dict[str, int]
    wrong: list[str]

    @staticmethod
    def spread(values: list[float]) -> tuple[float, float, float]:
        if not values:
            return (0.0, 0.0, 0.0)
        values = sorted(values)
        return (values[len(values) // 2], values[int(len(values) * 0.99)], values[-1])


class Result(msgspec.Struct, kw_only=True):
    """What one run of the benchmark measured."""

    command: str
    machine: str  # CPUs, system, Python and date
    seconds: float  # that the command took
    subjects: list[str]
    versions: dict[str, str]
    parts: list[Part]
    failures: list[str] = []  # subjects that could not be measured in a round


def ran(module: str) -> str:
    """The command line of this program, without folders outside the current one: they say nothing elsewhere."""
    return re.sub(
        r"(?<![\w.~:/])(?:\.\./|/)(?:[^\s/]+/)*", "", shlex.join(["python", "-m", module, *sys.argv[1:]])
    )


def machine() -> str:
    """The machine, Python and date, for the head of a report."""
    try:
        info = Path("/proc/cpuinfo").read_text("ascii", "replace")
        model = next(line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    return (
        f"{os.cpu_count()} × {model}, Linux {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}, {time.strftime('%d %b %Y')}"
    )


def _middle(values: Sequence[float], digits: int = 1) -> str:
    """The median, with the smallest and largest in brackets."""
    if not values:
        return "–"
    middle, low, high = statistics.median(values), min(values), max(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _paired(mine: Sequence[Part], base: Sequence[Part], of: Callable[[Part, Part], float | None]) -> list[float]:
    """A figure of each round that both have."""
    rounds = {part.round: part for part in base}
    values = (of(part, rounds[part.round]) for part in mine if part.round in rounds)
    return [value for value in values if value is not None]


def _ratio(mine: Part, base: Part) -> float | None:
    return mine.cpu_us / base.cpu_us if base.cpu_us else None


def _more_ttft(mine: Part, base: Part) -> float:
    return mine.ttft_ms[0] - base.ttft_ms[0]


def _compared(
    by: Mapping[tuple[str, str], Sequence[Part]], present: Sequence[str], subjects: Sequence[str], against: str
) -> list[str]:
    """CPU as a multiple of that of `against`, and TTFT as the difference to its, round by round."""
    others = [name for name in subjects if name not in (against, "direct")]
    lines = []
    for workload in present:
        words, _ = _WORDS[workload]
        figures: list[tuple[str, Callable[[Part, Part], float | None], float]] = []
        if against != "direct":
            figures.append((f"CPU, times: {words}", _ratio, 1.0))
        if workload in PACED:
            figures.append((f"TTFT p50, ms more: {words}", _more_ttft, 0.0))
        for row, of, neutral in figures:
            pairs = [_paired(by[name, workload], by[against, workload], of) for name in others]
            lines.append("| " + " | ".join([row, *(compared(values, 2, neutral) for values in pairs)]) + " |")
    head = [f"| compared with {against} | " + " | ".join(others) + " |", "|" + "---|" * (1 + len(others))]
    return ["", *head, *lines] if lines else []


def picture(result: Result) -> bytes | None:
    """CPU of each subject for each workload, as SVG: bars with the least and the most; None without matplotlib."""
    if not plots_available() or not result.parts:
        return None
    names = [name for name in result.subjects if name != "direct"]
    present = [name for name in _WORDS if any(part.workload == name for part in result.parts)]
    with styled():
        columns = min(3, len(present))
        rows = -(-len(present) // columns)
        figure, axes = canvas(rows, columns, height=rows * (1.2 + 0.3 * len(names)))
        for spare in axes[len(present) :]:
            spare.remove()
        for at, (one, workload) in enumerate(zip(axes, present, strict=False)):
            for place, name in enumerate(reversed(names)):
                cpu = [part.cpu_us for part in result.parts if (part.subject, part.workload) == (name, workload)]
                if cpu:
                    middle = statistics.median(cpu)
                    ends = [[middle - min(cpu)], [max(cpu) - middle]]
                    colour = BLUE if name.startswith("gateway") else MUTED
                    one.barh(place, middle, xerr=ends, color=colour, height=0.6, error_kw={"ecolor": INK, "lw": 1})
            words, per_event = _WORDS[workload]
            one.set_title(words)
            one.set_xlabel(f"CPU µs per {'event' if per_event else 'request'}")
            one.set_yticks(range(len(names)), [""] * len(names) if at % columns else list(reversed(names)))
        return file_svg(saved(figure, "svg"))


def render(result: Result) -> str:
    """The results as Markdown: medians of the rounds with their spread."""
    parts, subjects, versions = result.parts, result.subjects, result.versions
    rounds = max((part.round for part in parts), default=0) + 1
    lines = [
        f"`{result.command}` ({result.seconds:.0f} s). {result.machine}. {rounds} rounds; median (min–max).",
        "",
    ]
    present = [name for name in _WORDS if any(part.workload == name for part in parts)]
    by = {
        (name, workload): [p for p in parts if p.subject == name and p.workload == workload]
        for name in subjects
        for workload in present
    }
    base = "nginx" if "nginx" in subjects else None
    head = ["CPU µs", *subjects]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for workload in present:
        words, per_event = _WORDS[workload]
        cells = [f"per {'event' if per_event else 'request'}: {words}"]
        for name in subjects:
            text = _middle([part.cpu_us for part in by[name, workload]]) if name != "direct" else "–"
            if base and name not in (base, "direct") and by[base, workload] and by[name, workload]:
                ratio = statistics.median(p.cpu_us for p in by[name, workload]) / statistics.median(
                    p.cpu_us for p in by[base, workload]
                )
                text += f" · {ratio:.2f}×"
            cells.append(text)
        lines.append("| " + " | ".join(cells) + " |")
    for against in BASES:
        if against in subjects:
            lines += _compared(by, present, subjects, against)
    lines += ["", "| milliseconds, p50 / p99 | " + " | ".join(subjects) + " |", "|" + "---|" * (1 + len(subjects))]
    for workload in present:
        for what in ("ttft_ms", "gap_ms"):
            row = []
            for name in subjects:
                values = [getattr(part, what) for part in by[name, workload]]
                middle = [statistics.median(v[which] for v in values) for which in (0, 1)] if values else []
                row.append(f"{middle[0]:.2f} / {middle[1]:.2f}" if any(middle) else "–")
            if any(cell != "–" for cell in row):
                lines.append(
                    f"| {'TTFT' if what == 'ttft_ms' else 'gap'}: {_WORDS[workload][0]} | "
                    + " | ".join(row)
                    + " |"
                )
    lines += ["", "| | " + " | ".join(subjects) + " |", "|" + "---|" * (1 + len(subjects))]
    rows: dict[str, Callable[[list[Part]], str]] = {
        "peak RSS, MB": lambda found: _middle([max(part.rss_mb for part in found)]),
        "start-up, s": lambda found: _middle(sorted({part.start_s for part in found}), 2),
        "requests": lambda found: str(sum(part.done for part in found)),
        "wrong": lambda found: str(sum(len(part.wrong) for part in found)),
    }
    for words, of in rows.items():
        mine = [[part for part in parts if part.subject == name] for name in subjects]
        lines.append(f"| {words} | " + " | ".join(of(found) if found else "–" for found in mine) + " |")
    lines += ["", *(f"- {name}: {version}" for name, version in versions.items())]
    lines += [f"- FAILED {failure}" for failure in result.failures]
    for part in parts:
        lines += [f"- WRONG {part.subject} {part.workload}: {text}" for text in part.wrong[:3]]
    return "\n".join(lines)

"""The Markdown of the results: medians of the rounds with their spread, and anything that went wrong."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ops.bench.generators.parts import Part
from ops.bench.generators.workloads import WORKLOADS, Workload

OURS: Final = "ours"
HONEST_MS: Final = 1.0  # as loadgen's own --limit-error-ms
HONEST_SHARE: Final = 0.95  # of the requested rate, by the server's clock
PAIRS: Final = (("request", "requests400", "requests1600"), ("event", "events32", "events128"))

Of = Callable[[str, str], list[Part]]


def middle(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the smallest and largest in brackets."""
    if not values:
        return "–"
    text = f"{statistics.median(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def render(parts: Sequence[Part], versions: Mapping[str, str], where: str, commands: Sequence[str]) -> str:
    tools = [name for name in versions if any(part.tool == name for part in parts)]

    def of(tool: str, workload: str) -> list[Part]:
        return [p for p in parts if (p.tool, p.workload) == (tool, workload) and p.compared]

    rounds = len({part.round for part in parts})
    lines = [f"{where}. {rounds} rounds, interleaved; median (min–max) of the rounds.", ""]
    lines += [*(f"    {command}" for command in commands), ""]
    present = [workload for name, workload in WORKLOADS.items() if any(part.workload == name for part in parts)]
    for group, make in (("hogged", _hogged), ("rates", _rates)):
        mine = [workload for workload in present if workload.group == group]
        if mine:
            lines += [*make(mine, tools, of), ""]
    if any(workload.group == "cost" for workload in present):
        lines += [*_cost(tools, of), ""]
    lines += [f"- {name}: {words}" for name, words in versions.items()]
    counted = sum(part.compared for part in parts)
    lines.append(f"- {counted:,} requests compared, {sum(part.failed for part in parts)} failed")
    lines += [f"- WRONG {p.tool} {p.workload}, round {p.round + 1}: {text}" for p in parts for text in p.wrong[:2]]
    return "\n".join(lines)


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def head(first: str, tools: Sequence[str], *more: str) -> list[str]:
    return [row(first, *tools, *more), "|" + "---|" * (1 + len(tools) + len(more))]


def errors(parts: Sequence[Part]) -> str:
    """p50 and p99, each with its spread."""
    if not parts:
        return "–"
    return f"{middle([p.error_ms[0] for p in parts])} / {middle([p.error_ms[1] for p in parts])}"


def times_larger(parts: Sequence[Part], ours: Sequence[Part]) -> float | None:
    """The ratio of the median error to ours."""
    if not parts or not ours:
        return None
    return statistics.median(p.error_ms[0] for p in parts) / max(
        statistics.median(p.error_ms[0] for p in ours), 1e-6
    )


def _hogged(workloads: Sequence[Workload], tools: Sequence[str], of: Of) -> list[str]:
    others = [tool for tool in tools if not tool.startswith(OURS)]
    lines = ["**Error of TTFT in ms, p50 / p99**, while the sending event loop is slowed down.", ""]
    lines += head("added to the loop", tools, *(f"{tool} ÷ ours" for tool in others))
    for workload in workloads:
        factors = [times_larger(of(tool, workload.name), of(OURS, workload.name)) for tool in others]
        lines.append(
            row(
                workload.words,
                *(errors(of(tool, workload.name)) for tool in tools),
                *("–" if factor is None else f"{factor:,.0f}×" for factor in factors),
            )
        )
    lines += ["", "What ours reports about itself in the same parts:", ""]
    lines += head(
        "added to the loop",
        ["events that are intervals", "TTFTs that are", "of these contain the truth", "verdict"],
    )
    for workload in workloads:
        parts = of(OURS, workload.name)
        intervals = sum(part.intervals for part in parts)
        invalid = sum(bool(part.verdict) for part in parts)
        lines.append(
            row(
                workload.words,
                middle([100 * (part.censored or 0.0) for part in parts], 1) + " %",
                f"{intervals} of {sum(part.compared for part in parts)}",
                f"{sum(part.covered for part in parts)} of {intervals}" if intervals else "–",
                f"invalid in {invalid} of {len(parts)} runs" if invalid else "valid",
            )
        )
    return lines


def _rates(workloads: Sequence[Workload], tools: Sequence[str], of: Of) -> list[str]:
    lines = [
        "**Rates on one core**: arrived requests/s by the server's clock; error of TTFT in ms, p50 / p99.",
        "",
        *head("requested", tools),
    ]
    for workload in workloads:
        cells = []
        for tool in tools:
            parts = of(tool, workload.name)
            arrived = middle([part.arrived_per_s for part in parts], 0)
            cells.append(f"{arrived}; {errors(parts)}" if parts else "–")
        lines.append(row(workload.words, *cells))
    for quantile, place in (("p50", 0), ("p99", 1)):
        cells = [highest_honest(workloads, tool, of, place) for tool in tools]
        lines.append(row(f"highest with {quantile} error ≤ {HONEST_MS:g} ms", *cells))
    return lines


def highest_honest(workloads: Sequence[Workload], tool: str, of: Of, place: int) -> str:
    """The highest rate up to which arrivals are as requested and this quantile of the error is in the limit."""
    best = "none" if any(of(tool, workload.name) for workload in workloads) else "–"
    for workload in sorted(workloads, key=lambda workload: workload.rate or 0.0):
        parts = of(tool, workload.name)
        if not parts:
            break
        arrived = statistics.median(part.arrived_per_s for part in parts)
        error = statistics.median(part.error_ms[place] for part in parts)
        # The relative standard deviation of a Poisson count n is 1/sqrt(n).
        least = (workload.rate or 0.0) * (HONEST_SHARE - 2 / workload.requests**0.5)
        if arrived < least or error > HONEST_MS:
            break
        best = f"{workload.rate:g} requests/s"
    return best


def _cost(tools: Sequence[str], of: Of) -> list[str]:
    lines = [
        "**CPU time in µs**, whole process tree on one core, 16 at once. *While it runs*: from the arrival of "
        "the first request to the last token. *In total*: the cost of one more until the tool has exited, "
        "with its reports (the difference of two sizes, so that start-up cancels out).",
        "",
        *head("CPU µs", tools),
    ]
    for unit, small, large in PAIRS:
        running, whole = [], []
        for tool in tools:
            running.append(middle([1e6 * p.cpu_s / units(p, unit) for p in of(tool, large)], 0))
            whole.append(middle(all_in_us(of(tool, small), of(tool, large), unit), 0))
        lines += [row(f"per {unit}, while it runs", *running), row(f"per {unit}, in total", *whole)]
    for unit, _, large in PAIRS:
        cells = []
        for tool in tools:
            parts = of(tool, large)
            cost = [p.cpu_s / units(p, unit) for p in parts if p.cpu_s > 0]
            cells.append(f"{1 / statistics.median(cost):,.0f}" if cost else "–")
        lines.append(row(f"{unit}s/s that one core can do", *cells))
    return lines


def units(part: Part, unit: str) -> int:
    return part.compared * (WORKLOADS[part.workload].schedule.tokens if unit == "event" else 1)


def all_in_us(small: Sequence[Part], large: Sequence[Part], unit: str) -> list[float]:
    """Microseconds for one more, in each round that has both sizes."""
    found = []
    for one in large:
        for other in small:
            if other.round == one.round:
                grown = units(one, unit) - units(other, unit)
                found.append(1e6 * (one.cpu_all_s - other.cpu_all_s) / grown)
    return found

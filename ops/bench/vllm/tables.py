"""Tables (Markdown) and plots (SVG, in loadgen's style) of the vLLM benchmarks. Cells and curves are medians of
the rounds; brackets and bands are the smallest and largest round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from loadgen.report.plot_style import BLUE, GREEN, MUTED, ORANGE, RED, VIOLET, canvas, file_svg, saved, styled
from loadgen.report.plots import plots_available


def spread(values: Sequence[float], digits: int) -> str:
    """The median of the rounds, with the smallest and largest in brackets."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) < 2 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def compared(values: Sequence[float], digits: int, neutral: float = 0.0) -> str:
    """Like `spread`, for differences, or for ratios with `neutral` 1: where the rounds do not agree on which side
    of it they are, or there is one round, it is no finding. A dash without a value."""
    if not values:
        return "–"
    agree = len(values) > 1 and (min(values) > neutral or max(values) < neutral)
    return spread(values, digits) + ("" if agree else ", no finding")


def percentile(values: Sequence[float], p: float) -> float | None:
    """Nearest rank; None for an empty sample."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)] if ordered else None


# -- pictures --------------------------------------------------------------------------------------------

COLOURS: Final = (RED, ORANGE, BLUE, GREEN, VIOLET)


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    across: str  # label of the x axis
    steps: Mapping[float, str]  # x values with their labels, in order
    ways: Mapping[str, Mapping[float, Sequence[float]]]  # curve -> x value -> the rounds' values
    bound: tuple[float, str] | None = None  # a horizontal line and its label


def draw(panels: Sequence[Panel]) -> bytes | None:
    """The panels side by side as one SVG, each way with the same colour everywhere; None without matplotlib."""
    if not plots_available():
        return None
    colours = dict(zip(dict.fromkeys(way for panel in panels for way in panel.ways), COLOURS, strict=False))
    with styled():
        figure, axes = canvas(1, len(panels), height=3.8)
        handles = {}
        for one, panel in zip(axes, panels, strict=True):
            at = {step: place for place, step in enumerate(panel.steps)}
            for way, values in panel.ways.items():
                steps = [step for step in panel.steps if step in values]
                places, colour = [at[step] for step in steps], colours[way]
                middle = [statistics.median(values[step]) for step in steps]
                (handles[way],) = one.plot(places, middle, "o-", color=colour)
                least, most = ([end(values[step]) for step in steps] for end in (min, max))
                one.fill_between(places, least, most, color=colour, alpha=0.15, linewidth=0)
            if panel.bound is not None:
                one.axhline(panel.bound[0], color=MUTED, linestyle=":", linewidth=1)
                place = (len(at) - 1, panel.bound[0])
                one.annotate(panel.bound[1], place, color=MUTED, ha="right", va="bottom", fontsize=9)
            one.set_title(panel.title)
            one.set_xlabel(panel.across)
            one.set_xticks(range(len(at)), list(panel.steps.values()))
            one.set_ylim(bottom=0)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
        return file_svg(saved(figure, "svg"))


# -- batching --------------------------------------------------------------------------------------------

TITLES: Final = {
    "twins": ("Twins: K identical sampled requests at once, prompts of 150 words, 16 tokens each", "K"),
    "completions": ("Completions: K different prompts at once, direct, 40 words and 16 tokens each", "K"),
    "embeddings": ("Embeddings: clients that each send one text of 12 words after the other", "clients"),
    "calls": ("Embeddings: arrays in flight at a time (`--embed-batch-calls`)", "clients"),
}
FIGURES: Final = {
    "per_second": ("answers/s", 1),
    "p50_ms": ("p50, ms", 1),
    "p99_ms": ("p99, ms", 1),
    "cpu_ms": ("vLLM's CPU per answer, ms", 2),
    "api_cpu_ms": ("its API server's share, ms", 2),
}


def batching_table(part: Mapping[str, Any]) -> list[str]:
    """The table of one part: a row for each load and way."""
    title, load = TITLES[part["part"]]
    groups: dict[tuple[float, int, str], list[Mapping[str, Any]]] = {}
    for row in part["rows"]:
        groups.setdefault((row.get("duplicates", 0.0), row["k"], row["how"]), []).append(row)
    lines = [f"## {title}", "", f"{part['machine']}. {part['rounds']} rounds. {part['note']}".rstrip(), ""]
    lines += [
        f"| {load} | how | " + " | ".join(name for name, _ in FIGURES.values()) + " |",
        "|---|---|" + "---|" * len(FIGURES),
    ]
    for (duplicates, k, how), rows in sorted(groups.items(), key=lambda one: (*one[0][:2], one[0][2].zfill(4))):
        which = f"{k}, half of the texts are repeats" if duplicates else f"{k}"
        cells = [spread([row[name] for row in rows], digits) for name, (_, digits) in FIGURES.items()]
        lines.append(f"| {which} | {how} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def batching_page(parts: Sequence[Mapping[str, Any]]) -> str:
    """The page with the tables of all parts."""
    head = [
        "# Batching on real vLLM",
        "",
        "Written by `python -m ops.bench.vllm.batching PART`: medians of the rounds (smallest to largest). vLLM,",
        "the gateway and the client share the machine's cores. p50 and p99 are of the time to the first token",
        "(twins, completions) or to the response (embeddings). CPU is that of vLLM's processes.",
        "",
    ]
    return "\n".join([*head, *(line for part in parts for line in batching_table(part))])


def batching_picture(parts: Sequence[Mapping[str, Any]]) -> bytes | None:
    """The API server's CPU time with and without merging; None without matplotlib or these parts."""
    found = {part["part"]: part["rows"] for part in parts}
    if not {"twins", "embeddings"} <= found.keys():
        return None

    def panel(part: str, title: str, across: str) -> Panel:
        rows = [row for row in found[part] if not row.get("duplicates")]
        ways: dict[str, dict[float, list[float]]] = {}
        for row in rows:
            ways.setdefault(row["how"], {}).setdefault(row["k"], []).append(row["api_cpu_ms"])
        return Panel(title, across, {k: f"{k}" for k in sorted({row["k"] for row in rows})}, ways)

    return draw(
        [
            panel("twins", "Twins: API server's CPU an answer, ms", "sampled twins at once"),
            panel("embeddings", "Embeddings: API server's CPU a text, ms", "clients, each with one text"),
        ]
    )


# -- admission -------------------------------------------------------------------------------------------

Phase = Mapping[str, Any]


def goodput(phase: Phase) -> float:
    """Good answers per second."""
    good: float = (phase["heavy"]["good"] + phase["light"]["good"]) / phase["seconds"]
    return good


def phase_line(phase: Phase) -> str:
    """One line about a finished phase."""
    light, heavy = phase["light"], phase["heavy"]
    return (
        f"{phase['load']:g}×, {phase['way']}: {goodput(phase):.2f} good/s; light {light['good']} of "
        f"{light['requests']}, heavy {heavy['good']} of {heavy['requests']}; max_inflight {phase['limit']:g}"
    )


def _by_load_and_way(phases: Sequence[Phase]) -> dict[tuple[float, str], list[Phase]]:
    """The rounds of each load and way."""
    found: dict[tuple[float, str], list[Phase]] = {}
    ways = dict.fromkeys(phase["way"] for phase in sorted(phases, key=lambda phase: phase["round"]))
    for load in sorted({phase["load"] for phase in phases}):
        for way in ways:
            found[load, way] = [phase for phase in phases if (phase["load"], phase["way"]) == (load, way)]
    return {key: rounds for key, rounds in found.items() if rounds}


def _admission_row(load: float, way: str, rounds: Sequence[Phase]) -> str:
    offered = [(one["heavy"]["requests"] + one["light"]["requests"]) / one["seconds"] for one in rounds]
    hits, queries = (sum(one["engine"][name] for one in rounds) for name in ("hits", "queries"))
    limits = [one["limit"] for one in rounds]

    def tenant(name: str) -> list[str]:
        of = [one[name] for one in rounds]
        first = [ms for one in of for ms in one["ttfts_ms"]]
        shown = [percentile(first, p) for p in (50, 99)]
        asked, good = sum(one["requests"] for one in of), sum(one["good"] for one in of)
        return [f"{good} of {asked}", " / ".join("–" if ms is None else f"{ms:.0f}" for ms in shown)]

    cells = [
        f"{load:g}×",
        f"`{way}`" if way.startswith("-") else way,
        spread([goodput(one) for one in rounds], 2),
        spread(offered, 2),
        *tenant("light"),
        *tenant("heavy"),
        f"{hits / queries:.0%}" if queries else "–",
        spread(limits, 0) if any(limits) else "–",
    ]
    return "| " + " | ".join(cells) + " |"


def admission_table(phases: Sequence[Phase]) -> str:
    """A row for each load and way: medians of the rounds; percentiles of the complete answers of all rounds."""
    head = [
        "| load | way | good answers/s | offered/s | light: good | TTFT p50 / p99, ms | heavy: good "
        "| TTFT p50 / p99, ms | prefix-cache hits | max_inflight at the end |",
        "|" + "---|" * 10,
    ]
    return "\n".join(
        [*head, *(_admission_row(load, way, rounds) for (load, way), rounds in _by_load_and_way(phases).items())]
    )


def admission_picture(phases: Sequence[Phase], capacity: float) -> bytes | None:
    """Goodput against load, and the light tenant's share of good answers, as SVG; None without matplotlib."""
    groups = _by_load_and_way(phases)
    steps = {load: f"{load:g}×" for load, _ in groups}
    ways = dict.fromkeys(way for _, way in groups)

    def light(phase: Phase) -> float:
        share: float = phase["light"]["good"] / max(1, phase["light"]["requests"])
        return 100 * share

    def panel(title: str, value: Callable[[Phase], float], bound: tuple[float, str] | None = None) -> Panel:
        found = {
            way: {load: [*map(value, rounds)] for (load, other), rounds in groups.items() if other == way}
            for way in ways
        }
        return Panel(title, "load, times the capacity", steps, found, bound)

    return draw(
        [panel("Good answers/s", goodput, (capacity, "capacity")), panel("Light tenant: good answers, %", light)]
    )

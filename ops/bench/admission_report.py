"""Owns how the comparison of ways into a busy engine is shown: a table, and a picture in loadgen's style.
Must not know how it was measured: it is given each phase as `admission` keeps it.
Called by `ops.bench.admission`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from loadgen.plot_style import (
    BLUE,
    GREEN,
    MUTED,
    ORANGE,
    RED,
    VIOLET,
    canvas,
    file_svg,
    saved,
    styled,
)
from loadgen.plots import available
from ops.bench.batching_table import spread

Phase = Mapping[str, Any]

COLOURS: Final = (RED, ORANGE, BLUE, GREEN, VIOLET)


def goodput(phase: Phase) -> float:
    """Good answers a second."""
    good: float = (phase["heavy"]["good"] + phase["light"]["good"]) / phase["seconds"]
    return good


def percentile(values: Sequence[float], p: float) -> float | None:
    """Of the sample as it is (nearest rank); None of an empty one."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)] if ordered else None


def line(phase: Phase) -> str:
    """One phase, as it ends."""
    light, heavy = phase["light"], phase["heavy"]
    return (
        f"{phase['load']:g}×, {phase['way']}: {goodput(phase):.2f} good/s; light {light['good']} of "
        f"{light['requests']}, heavy {heavy['good']} of {heavy['requests']}; max_inflight {phase['limit']:g}"
    )


def grouped(phases: Sequence[Phase]) -> dict[tuple[float, str], list[Phase]]:
    """The rounds of each load and way."""
    found: dict[tuple[float, str], list[Phase]] = {}
    ways = dict.fromkeys(phase["way"] for phase in sorted(phases, key=lambda phase: phase["round"]))
    for load in sorted({phase["load"] for phase in phases}):
        for way in ways:
            found[load, way] = [phase for phase in phases if (phase["load"], phase["way"]) == (load, way)]
    return {key: rounds for key, rounds in found.items() if rounds}


def row(load: float, way: str, rounds: Sequence[Phase]) -> str:
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


def table(phases: Sequence[Phase]) -> str:
    """A row for each load and way: medians of the rounds with least and most; percentiles of all rounds' requests
    that were answered whole."""
    head = [
        "| load | way | good answers/s | offered/s | light: good | TTFT p50 / p99, ms | heavy: good "
        "| TTFT p50 / p99, ms | prefix-cache hits | max_inflight at the end |",
        "|" + "---|" * 10,
    ]
    return "\n".join([*head, *(row(load, way, rounds) for (load, way), rounds in grouped(phases).items())])


def picture(phases: Sequence[Phase], capacity: float) -> bytes | None:
    """Goodput against load, and the light tenant's share of good answers, as SVG; None without matplotlib."""
    if not available():
        return None
    groups = grouped(phases)
    loads = sorted({load for load, _ in groups})
    with styled():
        figure, (left, right) = canvas(1, 2, height=3.8)
        for way, colour in zip(dict.fromkeys(way for _, way in groups), COLOURS, strict=False):
            rounds = [groups[load, way] for load in loads]
            good = [sorted(map(goodput, of)) for of in rounds]
            left.plot(loads, [one[len(one) // 2] for one in good], "o-", color=colour, label=way)
            left.fill_between(loads, [one[0] for one in good], [one[-1] for one in good], color=colour, alpha=0.15)
            light = [
                100 * sum(one["light"]["good"] for one in of) / max(1, sum(one["light"]["requests"] for one in of))
                for of in rounds
            ]
            right.plot(loads, light, "o-", color=colour, label=way)
        left.axhline(capacity, color=MUTED, linestyle=":", linewidth=1)
        left.annotate("capacity", (loads[-1], capacity), color=MUTED, ha="right", va="bottom", fontsize=9)
        for axes, title in ((left, "Good answers/s"), (right, "Good answers of the light tenant, %")):
            axes.set_title(title)
            axes.set_xlabel("load, times the capacity")
            axes.set_xticks(loads, [f"{load:g}×" for load in loads])
            axes.set_ylim(bottom=0)
            axes.grid(visible=True, axis="y")
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
        return file_svg(saved(figure, "svg"))

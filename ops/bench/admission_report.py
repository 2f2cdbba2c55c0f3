"""Owns how the comparison of ways into a busy engine is shown: a table, and a picture in loadgen's style.
Must not know how it was measured: it is given each phase as `admission` keeps it.
Called by `ops.bench.admission`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ops.bench import pictures
from ops.bench.batching_table import spread
from ops.bench.pictures import Panel

Phase = Mapping[str, Any]


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
    groups = grouped(phases)
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

    return pictures.picture(
        [panel("Good answers/s", goodput, (capacity, "capacity")), panel("Light tenant: good answers, %", light)]
    )

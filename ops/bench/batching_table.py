"""Owns the page of the batching measurement: medians and spreads of its rows as Markdown.
Must not know how they were measured.
Called by `ops.bench.batching`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ops.bench import pictures
from ops.bench.pictures import Panel

TITLES: Final = {
    "twins": ("Sampled twins: K identical requests at once, 150 words of prompt, 16 tokens each", "K"),
    "completions": ("Completions: K different prompts at once, direct, 40 words and 16 tokens each", "K"),
    "embeddings": ("Embeddings: clients that each ask for one text of 12 words after another", "clients"),
    "calls": ("Embeddings: arrays of one kind under way at a time (`--embed-batch-calls`)", "clients"),
}
FIGURES: Final = {
    "per_second": ("answers/s", 1),
    "p50_ms": ("p50, ms", 1),
    "p99_ms": ("p99, ms", 1),
    "cpu_ms": ("vLLM's CPU an answer, ms", 2),
    "api_cpu_ms": ("of it its API server, ms", 2),
}


def spread(values: Sequence[float], digits: int) -> str:
    """The median, and the least and most of the rounds."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) < 2 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(part: Mapping[str, Any]) -> list[str]:
    """One part: a row for each load and way."""
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
        which = f"{k}, half of the texts repeat one" if duplicates else f"{k}"
        cells = [spread([row[name] for row in rows], digits) for name, (_, digits) in FIGURES.items()]
        lines.append(f"| {which} | {how} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def tables(parts: Sequence[Mapping[str, Any]]) -> str:
    """The page. The p50 and p99 of streams are of the time to the first token, of vectors of the whole answer."""
    head = [
        "# Batching on real vLLM",
        "",
        "Made by `python -m ops.bench.batching PART`: medians, least and most of the rounds. vLLM, the gateway",
        "and the client share the machine's cores. p50 and p99 are of the time to the first token (twins,",
        "completions) or to the answer (embeddings). CPU is of vLLM's processes, by the scheduler's books.",
        "",
    ]
    return "\n".join([*head, *(line for part in parts for line in table(part))])


def picture(parts: Sequence[Mapping[str, Any]]) -> bytes | None:
    """What merging saves the engine's API server, as SVG; None without matplotlib, or without those parts."""
    found = {part["part"]: part["rows"] for part in parts}
    if not {"twins", "embeddings"} <= found.keys():
        return None

    def panel(part: str, title: str, across: str) -> Panel:
        rows = [row for row in found[part] if not row.get("duplicates")]
        ways: dict[str, dict[float, list[float]]] = {}
        for row in rows:
            ways.setdefault(row["how"], {}).setdefault(row["k"], []).append(row["api_cpu_ms"])
        return Panel(title, across, {k: f"{k}" for k in sorted({row["k"] for row in rows})}, ways)

    return pictures.picture(
        [
            panel("twins", "Twins: API server's CPU an answer, ms", "sampled twins at once"),
            panel("embeddings", "Embeddings: API server's CPU a text, ms", "clients, each with one text"),
        ]
    )

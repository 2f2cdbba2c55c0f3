"""The drill's report: one row per alert, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One alert: the fault, the seconds until it fired (None: it did not), and its text."""

    alert: str
    fault: str
    seconds: float | None
    said: str
    value: str

    def plain(self) -> dict[str, Any]:
        """The row for JSON."""
        return asdict(self)


def markdown(rows: Sequence[Row], version: str, factor: float) -> str:
    """The page."""
    fired = sum(row.seconds is not None for row in rows)
    lines = [
        "# Every alert, fired by a fault made on purpose",
        "",
        "`python -m ops.drill`: real gateways, a real Redis, two engines that fail on command, and",
        f"Prometheus {version} with this tree's rules, each window and `for` divided by {factor:g}. Seconds",
        "are from the fault to the alert, on a shared machine: they show that it fires, not how fast.",
        "",
        f"**{fired} of {len(rows)} alerts fired.**",
        "",
        "| alert | fault | s | text |",
        "|---|---|---|---|",
    ]
    for row in rows:
        seconds = "**did not fire**" if row.seconds is None else f"{row.seconds:.1f}"
        lines.append(f"| {row.alert} | {row.fault} | {seconds} | {row.said} |")
    return "\n".join(lines) + "\n"

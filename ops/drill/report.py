"""The drill's report: one row per alert, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One alert: the fault, the seconds from it to the firing (None: it did not fire), what the alert said."""

    alert: str
    fault: str
    seconds: float | None
    said: str
    value: str

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def markdown(rows: Sequence[Row], version: str, factor: float) -> str:
    """The whole page."""
    fired = sum(row.seconds is not None for row in rows)
    lines = [
        "# Each alert, fired by a fault made on purpose",
        "",
        "`python -m ops.drill`: real gateways, a real Redis, two engines that misbehave as told,",
        f"Prometheus {version} with this tree's rules, each window and `for` divided by {factor:g}. Seconds",
        "are from the fault to the firing, on a shared machine: they say that it fires, not how fast.",
        "",
        f"**{fired} of {len(rows)} alerts fired.**",
        "",
        "| alert | fault | s | what it said |",
        "|---|---|---|---|",
    ]
    for row in rows:
        seconds = "**silent**" if row.seconds is None else f"{row.seconds:.1f}"
        lines.append(f"| {row.alert} | {row.fault} | {seconds} | {row.said} |")
    return "\n".join(lines) + "\n"

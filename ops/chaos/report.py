"""One row per scenario, as Markdown and as numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

HEAD: Final = (
    "| scenario | faults | requests | exact | correct error | client left on purpose | **wrong** | hung "
    "| left behind | streams without a fault: exact |\n|---|---|---|---|---|---|---|---|---|---|"
)
KINDS: Final = ("exact", "error", "left", "wrong", "hung")
WANTED: Final = 0.999
"""The target share of exact answers among streams that no fault affected."""


@dataclass(slots=True)
class Row:
    """The results of one scenario."""

    scenario: str
    seconds: float = 0.0
    events: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)  # exact, error, left, wrong, hung
    reasons: Counter[str] = field(default_factory=Counter)  # of the results that are neither exact nor left
    untouched: int = 0  # streams
    untouched_exact: int = 0
    untouched_reasons: Counter[str] = field(default_factory=Counter)  # of those that were not exact
    left_behind: list[str] = field(default_factory=list)
    wave: str = ""  # exact answers of the last wave
    rss_mb: tuple[float, float] = (0.0, 0.0)  # before and after
    descriptors: tuple[int, int] = (0, 0)
    tasks: tuple[int, int] = (0, 0)
    notes: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return self.kinds.total()

    @property
    def failed(self) -> bool:
        return bool(self.kinds["wrong"] or self.kinds["hung"] or self.left_behind)

    def line(self) -> str:
        kinds = self.kinds
        share = f"{self.untouched_exact} of {self.untouched}"
        if self.untouched:
            share += f" ({self.untouched_exact / self.untouched:.2%})"
        numbers = (self.events.total(), self.requests, kinds["exact"], kinds["error"], kinds["left"])
        cells = [
            self.scenario,
            *(f"{number:,}" for number in numbers),
            f"**{kinds['wrong']:,}**",
            f"{kinds['hung']:,}",
        ]
        return "| " + " | ".join([*cells, str(len(self.left_behind)), share]) + " |"

    def as_numbers(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def markdown(rows: Sequence[Row], head: str) -> str:
    lines = [head, "", HEAD, *(row.line() for row in rows), ""]
    for row in rows:
        lines.append(
            f"- **{row.scenario}** ({row.seconds:.0f} s): last wave {row.wave}; "
            f"RSS {row.rss_mb[0]:.0f} MB before, {row.rss_mb[1]:.0f} after; "
            f"descriptors {row.descriptors[0]}, {row.descriptors[1]}; tasks {row.tasks[0]}, {row.tasks[1]}."
        )
        lines += [f"  - faults: {_most(row.events)}"]
        if row.reasons:
            lines.append(f"  - not exact: {_most(row.reasons)}")
        if row.untouched_reasons:
            lines.append(f"  - not exact among streams without a fault: {_most(row.untouched_reasons)}")
        lines += [f"  - **left behind:** {what}" for what in row.left_behind]
        lines += [f"  - note: {note}" for note in row.notes]
    return "\n".join(lines) + "\n"


def _most(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common(16))

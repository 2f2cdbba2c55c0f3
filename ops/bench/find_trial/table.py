"""The answers of a trial as a table in Markdown. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

import msgspec

HEADS: Final = (
    "server",
    "limit",
    "found, each seed",
    "largest error",
    "interval holds it",
    "seconds",
    "sure",
    "sound",
)


class Answer(msgspec.Struct, kw_only=True):
    """What one search said. `low`, `high`: its interval; `sound`: the generator's own error was within its limits;
    `seconds` with the start of the process and its report."""

    server: str
    seed: int
    seconds: float
    code: int
    said: str
    state: str
    by: str = ""
    load: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    requests: int = 0
    sound: bool = False

    @property
    def error(self) -> float | None:
        """Relative; None without a limit or a load. Of users, one more or less is no error: there is nothing
        between."""
        if self.load is None or not self.limit:
            return None
        if self.by == "users" and abs(self.load - self.limit) <= 1:
            return 0.0
        return self.load / self.limit - 1

    def within(self, allowed: float) -> bool:
        """Whether there is a load, and its error is at most this, where a limit is known."""
        return self.load is not None and abs(self.error or 0.0) <= allowed


def render(answers: Sequence[Answer], within: float) -> str:
    """A row for each server."""
    rows = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    for name in dict.fromkeys(answer.server for answer in answers):
        rows.append("| " + " | ".join(_row(name, [each for each in answers if each.server == name])) + " |")
    known = [answer for answer in answers if answer.limit]
    if known:
        good = sum(answer.within(within) for answer in known)
        rows += ["", f"{good} of {len(known)} searches are within {within:.0%} of the limit."]
    return "\n".join(rows)


def _row(name: str, answers: Sequence[Answer]) -> list[str]:
    limit = answers[0].limit
    errors = [answer.error for answer in answers if answer.error is not None]
    worst = max(errors, key=abs, default=None)
    intervals = [answer for answer in answers if answer.low is not None and answer.high is not None]
    held = sum((answer.low or 0.0) <= (limit or 0.0) <= (answer.high or 0.0) for answer in intervals)
    seconds = sorted(answer.seconds for answer in answers)
    return [
        name,
        "–" if limit is None else f"{limit:.4g}",
        ", ".join(f"{answer.load:.4g}" if answer.load is not None else answer.state for answer in answers),
        "–" if worst is None else f"{worst:+.1%}",
        "–" if limit is None else f"{held} of {len(intervals)}",
        f"{median(seconds):.0f} ({seconds[0]:.0f}–{seconds[-1]:.0f})",
        f"{sum(answer.state == 'found' for answer in answers)} of {len(answers)}",
        f"{sum(answer.sound for answer in answers)} of {len(answers)}",
    ]

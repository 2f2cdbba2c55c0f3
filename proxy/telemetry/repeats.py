"""Rate limit of repeated log lines: so many of one kind per second, then a count of the rest. Must not know
clocks: `now` is an argument. The log calls it under its lock."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, NamedTuple

OFTEN: Final = 5  # lines of one kind in a second
SECONDS: Final = 1.0
MAX_KINDS: Final = 64  # kinds that are tracked; beyond that all of one message are one kind


class LeftOut(NamedTuple):
    """Number of lines of one message that were not written."""

    level: str
    msg: str
    lines: int


@dataclass(slots=True)
class _Kind:
    level: str
    until: float  # the end of its second
    written: int = 0
    left_out: int = 0


class Repeats:
    """Decides which lines are written, by kind and time."""

    def __init__(self) -> None:
        self.due: float | None = None  # when `over` has a count to report
        self._kinds: dict[tuple[str, Hashable], _Kind] = {}

    def __len__(self) -> int:
        return len(self._kinds)

    def ask(self, level: str, msg: str, like: Hashable, now: float) -> int | None:
        """None: omit this line. Else write it, with this number of lines omitted before it."""
        name = (msg, like)
        kind = self._kinds.get(name)
        if kind is None:
            if len(self._kinds) >= MAX_KINDS:
                self._forget(now)
                name = (msg, like) if len(self._kinds) < MAX_KINDS else (msg, "")
            kind = self._kinds.setdefault(name, _Kind(level, now + SECONDS))
        if now >= kind.until:
            kind.until, kind.written = now + SECONDS, 0
        if kind.written >= OFTEN:
            kind.left_out += 1
            if self.due is None or kind.until < self.due:
                self.due = kind.until
            return None
        kind.written += 1
        left_out, kind.left_out = kind.left_out, 0
        return left_out

    def over(self, now: float) -> list[LeftOut]:
        """The omitted lines of the seconds that have ended by `now`, each reported once."""
        told = []
        self.due = None
        for (msg, _), kind in self._kinds.items():
            if not kind.left_out:
                continue
            if kind.until <= now:
                told.append(LeftOut(kind.level, msg, kind.left_out))
                kind.left_out = 0
            elif self.due is None or kind.until < self.due:
                self.due = kind.until
        return told

    def _forget(self, now: float) -> None:
        self._kinds = {name: kind for name, kind in self._kinds.items() if kind.left_out or now < kind.until}

"""What is measured, in which order, and what is left out when the time does not suffice. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

STREAMS: Final = "streams"
DUPLICATES: Final = "duplicates"
FIRST_OVERHEAD: Final = 6.0
"""Seconds that a row is expected to take beyond its load, before one was measured: the load generator's start."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Rows that are compared with each other, so they are measured one after the other, or none of them is."""

    kind: str  # STREAMS or DUPLICATES
    value: float  # concurrent streams, or the share of requests that repeat an earlier one
    round: int
    subjects: tuple[str, ...]

    @property
    def name(self) -> str:
        what = f"{self.value:g} streams" if self.kind == STREAMS else f"{self.value:.0%} duplicates"
        return f"{what}, round {self.round + 1}"


def important_first(values: Sequence[float]) -> list[float]:
    """The middle, then the ends, then the others in their order: the first three show the shape of a curve."""
    ordered = sorted(set(values))
    first = [ordered[len(ordered) // 2], ordered[0], ordered[-1]] if ordered else []
    return list(dict.fromkeys([*first, *ordered]))


def cells(
    streams: Sequence[float],
    shares: Sequence[float],
    subjects: Sequence[str],
    sharing: Sequence[str],
    rounds: int,
) -> list[Cell]:
    """All cells, the most important first: every round is complete before the next one begins.

    Two stream counts come before each share of duplicates; of these the largest first. `sharing`: the subjects of
    the cells with duplicates.
    """
    found: list[Cell] = []
    for round_ in range(rounds):
        turned = [*subjects[round_ % len(subjects) :], *subjects[: round_ % len(subjects)]]
        of = [Cell(STREAMS, value, round_, tuple(turned)) for value in important_first(streams)]
        shared = [Cell(DUPLICATES, value, round_, tuple(sharing)) for value in sorted(set(shares), reverse=True)]
        for at in range(max(len(of), 2 * len(shared))):
            found += [*of[at : at + 1], *(shared[at // 2 : at // 2 + 1] if at % 2 else [])]
    return found


class Clock:
    """The time budget: which cell is measured next, and what was dropped. Times in seconds."""

    def __init__(self, cells: Sequence[Cell], row_seconds: float, ends: float, overhead: float = FIRST_OVERHEAD):
        """`ends`: when measuring must be over, on the clock of the `now` of all methods."""
        self._left = list(cells)
        self._row = row_seconds
        self._ends = ends
        self._overheads: list[float] = []
        self._first = overhead
        self.dropped: list[Cell] = []

    def expected(self, cell: Cell) -> float:
        """What the cell is expected to take: overheads are the largest of the last six rows."""
        return len(cell.subjects) * (self._row + max(self._overheads[-6:], default=self._first))

    def next(self, now: float) -> Cell | None:
        """The most important cell that still fits; those which do not fit are dropped. None: nothing is left."""
        while self._left:
            cell = self._left.pop(0)
            if now + self.expected(cell) <= self._ends:
                return cell
            self.dropped.append(cell)
        return None

    def took(self, seconds: float) -> None:
        """A row took so long."""
        self._overheads.append(max(0.0, seconds - self._row))

    def stop(self) -> None:
        """Nothing more is measured."""
        self.dropped += self._left
        self._left.clear()

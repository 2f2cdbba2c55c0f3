"""One stage of a search as data, and what it shows by itself: its share of requests that missed an objective, how
sure that is, and whether the server's queue had come to rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Final

from loadgen.analysis.search.fit import wilson
from loadgen.analysis.stats import design_effect

BATCHES: Final = 20
"""Batches of a stage: neighbouring requests together, so that batches are nearly independent of each other."""
TRANSIENT: Final = 0.1
"""Share of a stage's requests that are left out at its beginning, while the server fills; more if its responses
take longer than that."""
LINKED: Final = 0.5
"""Correlation of neighbouring batches from which a stage is too short: its queue has not come to rest. Chance
alone reaches it in one of a hundred stages."""
CERTAIN: Final = 0.5
"""Share of bad requests that is no matter of chance, however dependent they are."""
CAP: Final = 4.0
"""Strain above which a request says nothing further."""


class Stage:
    """A stage's requests in order of their due time.

    `load`: requests per second, or users. `due`: seconds. `strain`: each request's latency relative to its limit,
    the largest of all objectives; above 1 it missed one, and a failure is infinite. `missed`: how many requests
    missed each objective. `seconds`: from the stage's start until its last response. `overlap`: mean number of
    requests in flight. `aborted`: ended early, because more requests than the attainment allows had missed an
    objective already.
    """

    def __init__(
        self,
        load: float,
        due: Sequence[float],
        strain: Sequence[float],
        *,
        seconds: float,
        missed: Mapping[str, int] | None = None,
        overlap: float = 1.0,
        aborted: bool = False,
    ) -> None:
        self.load = load
        self.due = due
        self.strain = [min(value, CAP) for value in strain]
        self.bad = [value > 1 for value in strain]
        self.seconds = seconds
        self.missed = dict(missed or {})
        self.overlap = overlap
        self.aborted = aborted

    def __repr__(self) -> str:
        return f"<Stage at {self.load:g}: {sum(self.bad)} of {len(self)} bad, {self.seconds:.3g} s>"

    def __len__(self) -> int:
        return len(self.bad)

    @cached_property
    def skipped(self) -> int:
        """How many requests at the beginning are left out: those of the server's filling up."""
        filling = self.overlap * 2  # by Little's law the requests of two response times
        return round(min(max(TRANSIENT * len(self), filling), 0.4 * len(self)))

    @cached_property
    def cuts(self) -> list[tuple[int, int]]:
        """(start, end) of each batch."""
        n = len(self) - self.skipped
        count = min(BATCHES, n)
        places = [self.skipped + n * index // count for index in range(count + 1)] if count else []
        return list(pairwise(places))

    def means(self, values: Sequence[float]) -> list[float]:
        """The mean of each batch."""
        return [sum(values[start:end]) / (end - start) for start, end in self.cuts]

    @cached_property
    def share(self) -> float:
        """Share of bad requests, without the beginning."""
        rest = self.bad[self.skipped :]
        return sum(rest) / len(rest) if rest else 0.0

    @cached_property
    def settled(self) -> bool:
        """Whether neighbouring batches are nearly independent. Else the stage was too short for its queue, and its
        share is of the stage's length as much as of the load."""
        if self.aborted:
            return False
        means = self.means(self.strain)
        if len(means) < BATCHES:
            return True
        middle = sum(means) / len(means)
        whole = sum((x - middle) ** 2 for x in means)
        linked = sum((x - middle) * (y - middle) for x, y in pairwise(means))
        return whole <= 1e-9 or linked / whole < LINKED

    def interval(self, sure: float) -> tuple[float, float]:
        """Of the share, by so many standard errors, as if the stage had come to rest."""
        if self.aborted:
            return 1.0, 1.0
        if not self.cuts:
            return 0.0, 1.0
        counts = [end - start for start, end in self.cuts]
        hits = [sum(self.bad[start:end]) for start, end in self.cuts]
        effective = max(sum(counts) / design_effect(counts, hits), 1.0)
        return wilson(self.share * effective, effective, sure)

    def met(self, allowed: float, sure: float) -> bool:
        """Whether surely at most this share is bad."""
        return self.settled and self.interval(sure)[1] < allowed

    def lost(self, allowed: float, sure: float) -> bool:
        """Whether surely a larger share is bad. A stage that was too short shows it only if most requests are."""
        return self.interval(sure)[0] > (allowed if self.settled else max(allowed, CERTAIN))

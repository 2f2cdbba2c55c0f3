"""One stage of a search as data, and what it shows by itself: its share of requests that missed an objective, how
sure that is, and whether the server's queue had come to rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from math import sqrt
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
TREND: Final = 0.75
"""Correlation of the batches with their place from which a queue is still growing."""
CERTAIN: Final = 0.5
"""Share of bad requests that is no matter of chance, however dependent they are."""
GROWS: Final = 4.0
"""Requests in flight grow by more than so many times the square root of a stage's requests if the server falls
behind; chance makes about one of it."""
ANSWERED: Final = 3.0
"""In a stage shorter than so many responses, requests in flight may grow because the server fills."""
CAP: Final = 4.0
"""Strain above which a request says nothing further."""


class Stage:
    """A stage's requests in order of their due time.

    `load`: requests per second, or users. `due`: seconds. `strain`: each request's latency relative to its limit,
    the largest of all objectives; above 1 it missed one, and a failure is infinite. `missed`: how many requests
    missed each objective. `seconds`: from the stage's start until its last response. `overlap`: mean number of
    requests in flight. `aborted`: ended early, because more requests than the attainment allows had missed an
    objective already. `failures`: how many requests failed, by kind. `fault`: why the generator itself may be what
    was slow; empty if it was not. `ends`: when each response was complete, in seconds as `due`; infinite for one
    that failed or was cut off. Without them, as of users, the number of requests in flight says nothing.
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
        ends: Sequence[float] = (),
        failures: Mapping[str, int] | None = None,
        fault: str = "",
    ) -> None:
        self.load = load
        self.due = due
        self.strain = [min(value, CAP) for value in strain]
        self.bad = [value > 1 for value in strain]
        self.seconds = seconds
        self.missed = dict(missed or {})
        self.overlap = overlap
        self.aborted = aborted
        self.ends = ends
        self.failures = dict(failures or {})
        self.fault = fault

    def __repr__(self) -> str:
        return f"<Stage at {self.load:g}: {sum(self.bad)} of {len(self)} bad, {self.seconds:.3g} s>"

    def __len__(self) -> int:
        return len(self.bad)

    @property
    def dead(self) -> bool:
        """Whether no request got an answer."""
        return len(self) > 0 and sum(self.failures.values()) == len(self)

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
        middle, centre = sum(means) / len(means), (len(means) - 1) / 2
        whole = sum((x - middle) ** 2 for x in means)
        linked = sum((x - middle) * (y - middle) for x, y in pairwise(means))
        trend = sum((place - centre) * (x - middle) for place, x in enumerate(means))
        steady = sum((place - centre) ** 2 for place in range(len(means)))
        return whole <= 1e-9 or (linked < LINKED * whole and trend < TREND * (whole * steady) ** 0.5)

    @cached_property
    def rising(self) -> bool:
        """Whether the second half of the stage was slower than the first."""
        half = self.skipped + (len(self) - self.skipped) // 2
        first, second = self.strain[self.skipped : half], self.strain[half:]
        return bool(first and second) and sum(second) / len(second) > sum(first) / len(first)

    @cached_property
    def served(self) -> float:
        """Responses per second while requests arrived, without the beginning; 0 if unknown or if the stage was not
        much longer than a response."""
        begin, end = self._window
        if end <= begin or self._brief:
            return 0.0
        return sum(begin < at <= end for at in self.ends) / (end - begin)

    @cached_property
    def overloaded(self) -> bool:
        """Whether requests came faster than they were answered, so that any objective is missed in the end."""
        begin, end = self._window
        if end <= begin or self._brief or not self.rising:
            return False
        started = self._in_flight(begin)
        return self._in_flight(end) - started > GROWS * sqrt(len(self))

    @property
    def _brief(self) -> bool:
        """By Little's law."""
        return len(self) < ANSWERED * self.overlap

    @property
    def _window(self) -> tuple[float, float]:
        """From the end of the beginning to the last arrival."""
        return (self.due[self.skipped], self.due[-1]) if self.ends and len(self) > self.skipped else (0.0, 0.0)

    def _in_flight(self, moment: float) -> int:
        return sum(at <= moment < end for at, end in zip(self.due, self.ends, strict=True))

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
        """Whether surely a larger share is bad. A stage that was too short shows it if it grew worse to its end,
        or if most requests are bad."""
        known = self.settled or (self.rising and not self.aborted)
        return self.overloaded or self.interval(sure)[0] > (allowed if known else max(allowed, CERTAIN))

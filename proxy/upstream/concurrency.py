"""Owns how many requests an engine is sent at a time, where that is to be found out: a pure controller.
Must not know engines, sockets or clocks: it is told what was seen, once a tick.
Called by the pace watch, one pacer an engine."""

from __future__ import annotations

import math
from statistics import median
from typing import Final

from proxy.upstream.load import LoadReport

START: Final = 16
"""Requests: doubled each tick while the engine keeps up, so that 256 are four ticks away."""
MOST: Final = 4096
GROWTH: Final = 1.1  # a tick, once the engine has been seen to be full
CUT: Final = 0.9
QUEUE_SHARE: Final = 0.05
"""Of what runs: so many may wait inside the engine. vLLM needs a few at hand to fill the places that fall free in
its next step; each one more only waits where it cannot be shared, reordered or cancelled for nothing."""
KV_FULL: Final = 0.95  # of the KV cache: above it vLLM preempts, and computes again what it had
TOLERANCE: Final = 2.0  # times the floor: TTFT up to there is batching, above it a queue
FLOOR_TICKS: Final = 60  # so many ticks' medians have the floor among them
MIN_SAMPLES: Final = 3
NEAR: Final = 0.8  # of the objective


class AdaptiveLimit:
    """Finds the number of requests at which an engine's batch is full and its queue short.

    By the engine's own word where it reports (vLLM): it grows while it is reached and hardly any waits there, and
    is cut, to what runs and a few more, when they queue up there or the KV cache is full. Else by TTFT: the median
    of a tick against the least of the last minute (gradient, as in Netflix's concurrency-limits, "Gradient2"). An
    `objective` (seconds to the first token at the engine) bounds it besides: where compute is what runs out, an
    engine slows down long before its own queue shows. It only grows in a tick in which it was reached, so that an
    idle hour teaches it nothing.
    """

    def __init__(self, start: int = START, *, most: int = MOST, objective: float = math.inf) -> None:
        self._limit = float(start)
        self._objective = objective
        self._most = most
        self._probing = True  # the engine has not been seen to be full yet
        self._cut = -math.inf  # when it was cut last
        self._ttfts: list[float] = []
        self._floors: list[float] = []

    def __repr__(self) -> str:
        return f"<Pacer {self.limit}{' probing' if self._probing else ''}>"

    @property
    def limit(self) -> int:
        return int(self._limit)

    def answered(self, sent: float, first: float) -> None:
        """When an engine got a request, and when its first token came, by one clock. What was sent before the last
        cut says nothing of the limit that is in force."""
        if sent >= self._cut and len(self._ttfts) < 1024:
            self._ttfts.append(first - sent)

    def left(self, sent: float, now: float) -> None:
        """A client left before the first token came: it took longer than this. That speaks where it was long
        already; without it an engine so slow that everyone leaves would be one of which nothing is known."""
        slow = min(self._objective, TOLERANCE * min(self._floors, default=math.inf))
        if now - sent > slow:
            self.answered(sent, now)

    def tick(self, now: float, *, reached: bool, report: LoadReport | None) -> int:
        """The limit from now on. `reached`: since the last tick as many were under way as are allowed."""
        seen = None
        if len(self._ttfts) >= MIN_SAMPLES:
            seen = median(self._ttfts)
            self._ttfts = []
            self._floors = [*self._floors[1 - FLOOR_TICKS :], seen]
        before = self._limit
        if seen is not None and seen > NEAR * self._objective:
            self._probing = reached = False  # near enough: more would be too much
        if seen is not None and seen > self._objective:
            self._limit *= max(0.5, self._objective / seen)
        elif report is not None:
            self._by_report(report, reached)
        elif seen is not None:
            self._by_ttft(seen, reached)
        self._limit = min(max(self._limit, 1.0), float(self._most))
        if self._limit < before:
            self._cut = now
            self._ttfts = []
        return self.limit

    def _by_report(self, report: LoadReport, reached: bool) -> None:
        room = max(1.0, math.ceil(QUEUE_SHARE * report.running))
        if report.kv_cache >= KV_FULL:
            self._probing = False
            self._limit = min(self._limit, max(report.running, 1.0)) * CUT
        elif report.waiting > 2 * room:
            self._probing = False
            # What runs is what fits; others' requests run there too, so never up, and never down by half at once.
            self._limit = min(self._limit, max(report.running + room, self._limit * 0.5))
        elif reached and report.waiting <= room:
            self._grow()

    def _by_ttft(self, seen: float, reached: bool) -> None:
        gradient = TOLERANCE * min(self._floors) / max(seen, 1e-9)
        if gradient < 1.0:
            self._probing = False
            self._limit *= max(0.5, gradient)
        elif reached:
            self._grow()

    def _grow(self) -> None:
        self._limit = self._limit * 2 if self._probing else max(self._limit + 1, self._limit * GROWTH)

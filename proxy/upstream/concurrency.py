"""An adaptive concurrency limit for one engine: a pure controller, fed once per tick. Must not know clocks."""

from __future__ import annotations

import math
from statistics import median
from typing import Final

from proxy.upstream.load import LoadReport

START: Final = 16
"""Requests. Doubled each tick while the engine keeps up: 256 are four ticks away."""
MOST: Final = 4096
GROWTH: Final = 1.1  # per tick, once the engine has been full
CUT: Final = 0.9
QUEUE_SHARE: Final = 0.05
"""Requests queued inside the engine, as a share of the running ones. vLLM needs a few to fill the slots that
become free in its next step; any more wait where they cannot be shared, reordered or cancelled at no cost."""
KV_FULL: Final = 0.95  # of the KV cache: above it vLLM preempts requests and recomputes them
TOLERANCE: Final = 2.0  # times the floor: a TTFT up to there is batching, above it queueing
FLOOR_TICKS: Final = 60  # the floor is the least median of this many ticks
MIN_SAMPLES: Final = 3
NEAR: Final = 0.8  # of the objective


class AdaptiveLimit:
    """Finds the number of requests at which an engine's batch is full and its queue short.

    Where the engine reports its load (vLLM), by that: the limit grows while it is reached and the engine's queue
    is nearly empty, and is cut to the running requests and a few more when the queue grows or the KV cache is
    full. Else by TTFT: the median of a tick against the least of the last minute (gradient, as in Netflix's
    concurrency-limits, "Gradient2"). An `objective` (TTFT at the engine, in seconds) bounds it too: where compute
    is the bottleneck, an engine slows down long before its queue grows. The limit grows only in a tick in which it
    was reached, so an idle hour changes nothing.
    """

    def __init__(self, start: int = START, *, most: int = MOST, objective: float = math.inf) -> None:
        self._limit = float(start)
        self._objective = objective
        self._most = most
        self._probing = True  # the engine has not been full yet
        self._cut = -math.inf  # time of the last cut
        self._ttfts: list[float] = []
        self._floors: list[float] = []

    def __repr__(self) -> str:
        return f"<AdaptiveLimit {self.limit}{' probing' if self._probing else ''}>"

    @property
    def limit(self) -> int:
        return int(self._limit)

    def answered(self, sent: float, first: float) -> None:
        """A request was sent at `sent`, its first token came at `first`, by one clock. Requests from before the
        last cut say nothing about the present limit, and do not count."""
        if sent >= self._cut and len(self._ttfts) < 1024:
            self._ttfts.append(first - sent)

    def abandoned(self, sent: float, now: float) -> None:
        """A client disconnected before its first token: TTFT was longer than this. That counts where it was long
        already; else nothing would be known of an engine so slow that all clients disconnect."""
        slow = min(self._objective, TOLERANCE * min(self._floors, default=math.inf))
        if now - sent > slow:
            self.answered(sent, now)

    def tick(self, now: float, *, reached: bool, report: LoadReport | None) -> int:
        """The limit from now on. `reached`: the limit was reached since the last tick."""
        seen = None
        if len(self._ttfts) >= MIN_SAMPLES:
            seen = median(self._ttfts)
            self._ttfts = []
            self._floors = [*self._floors[1 - FLOOR_TICKS :], seen]
        before = self._limit
        if seen is not None and seen > NEAR * self._objective:
            self._probing = reached = False  # close to the objective
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
            # What runs fits. Other clients' requests run there too: never raise it, and cut it by half at most.
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

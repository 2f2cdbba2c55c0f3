"""An adaptive concurrency limit for one engine: a pure controller, fed once per tick. Must not know clocks."""

from __future__ import annotations

import math
from statistics import median
from typing import Final

from proxy.upstream.load import LoadReport

START: Final = 256
"""Requests. An engine that reports nothing keeps it; one that is full with fewer is seen to be in a few ticks."""
MOST: Final = 4096
GROWTH: Final = 1.1  # per tick, above what the engine is known to run
CUT: Final = 0.9
QUEUE_SHARE: Final = 0.05
"""Requests queued inside the engine, as a share of the running ones. vLLM needs a few to fill the slots that
become free in its next step; any more wait where they cannot be shared, reordered or cancelled at no cost."""
KV_FULL: Final = 0.95  # of the KV cache: above it vLLM preempts requests and recomputes them
MIN_SAMPLES: Final = 3
NEAR: Final = 0.8  # of the objective


class AdaptiveLimit:
    """Finds the number of requests at which an engine's batch is full and its queue short.

    By the load that the engine reports (vLLM): the limit grows while it is reached and the engine's queue is
    nearly empty, and is cut to the running requests and a few more when the queue grows or the KV cache is full.
    An `objective` (TTFT at the engine, in seconds) bounds it too: where compute is the bottleneck, an engine slows
    down long before its queue grows. With neither, it is START: TTFT alone does not tell a queue from long
    prompts. The limit grows only in a tick in which it was reached, so an idle hour changes nothing.
    """

    def __init__(self, start: int = START, *, most: int = MOST, objective: float = math.inf) -> None:
        self._limit = float(start)
        self._objective = objective
        self._most = most
        self._ran = math.inf
        """The limit doubles up to here: what the engine has run at once; inf: it has not been full yet."""
        self._cut = -math.inf  # time of the last cut
        self._report: LoadReport | None = None  # that of the last tick: an old one is not counted again
        self._ttfts: list[float] = []

    def __repr__(self) -> str:
        return f"<AdaptiveLimit {self.limit}{' probing' if self._ran == math.inf else ''}>"

    @property
    def limit(self) -> int:
        return int(self._limit)

    def answered(self, sent: float, first: float) -> None:
        """A request was sent at `sent`, its first token came at `first`, by one clock. Requests from before the
        last cut say nothing about the present limit, and do not count."""
        if self._objective < math.inf and sent >= self._cut and len(self._ttfts) < 1024:
            self._ttfts.append(first - sent)

    def abandoned(self, sent: float, now: float) -> None:
        """A client disconnected before its first token: TTFT was longer than this. That counts where it was long
        already; else nothing would be known of an engine so slow that all clients disconnect."""
        if now - sent > self._objective:
            self.answered(sent, now)

    def tick(self, now: float, *, reached: bool, report: LoadReport | None) -> int:
        """The limit from now on. `reached`: the limit was reached since the last tick."""
        seen = None
        if len(self._ttfts) >= MIN_SAMPLES:
            seen = median(self._ttfts)
            self._ttfts = []
        before = self._limit
        if seen is not None and seen > NEAR * self._objective:
            self._ran, reached = 0.0, False  # close to the objective
        if seen is not None and seen > self._objective:
            self._limit *= max(0.5, self._objective / seen)
        elif report is not None:
            if report is not self._report:
                self._by_report(report, reached)
        elif reached and seen is not None:
            self._grow()
        elif reached and self._objective == math.inf and self._limit < START:
            self._grow()
            self._limit = min(self._limit, float(START))
        self._report = report
        self._limit = min(max(self._limit, 1.0), float(self._most))
        if self._limit < before:
            self._cut = now
            self._ttfts = []
        return self.limit

    def _by_report(self, report: LoadReport, reached: bool) -> None:
        room = max(1.0, math.ceil(QUEUE_SHARE * report.running))
        runs = report.running if self._objective == math.inf else 0.0  # an objective may be missed with as many
        if report.kv_cache >= KV_FULL:
            self._ran = 0.0
            self._limit = min(self._limit, max(report.running, 1.0)) * CUT
        elif report.waiting > 2 * room:
            # Prompts that wait for their prefill are a queue too: what ran before may fit again.
            self._ran = max(runs, 0.0 if self._ran == math.inf else self._ran * CUT)
            # What runs fits. Other clients' requests run there too: never raise it, and cut it by half at most.
            self._limit = min(self._limit, max(report.running + room, self._limit * 0.5))
        else:
            self._ran = max(self._ran, runs)
            if reached and report.waiting <= room:
                self._grow()

    def _grow(self) -> None:
        self._limit = max(self._limit + 1, self._limit * GROWTH, min(self.limit * 2, self._ran))

"""Metrics of queueing: waiting time by class, rejections, promotions, missed deadlines."""

from __future__ import annotations

from typing import Final

from aioprometheus.collectors import Registry

from proxy.config import PRIORITIES
from proxy.errors import Code
from proxy.flights.phase import Phase
from proxy.flights.watchdog import KINDS, Kind
from proxy.telemetry import PREFIX, QUEUE_BUCKETS, Counts, Histograms, Label

REASONS: Final = (
    Code.QUEUE_FULL.code,
    Code.QUEUE_SHARE.code,
    Code.QUEUE_TIMEOUT.code,
    Code.DEADLINE_UNMEETABLE.code,
    Code.MEMORY_FULL.code,
    Code.SHUTTING_DOWN.code,
    "pushed_out",
)


class QueueMetrics:
    """One method a fact."""

    def __init__(self, registry: Registry) -> None:
        self._wait = Histograms(
            PREFIX + "place_wait_seconds",
            "Queue wait of flights that were queued, from creation to dispatch.",
            (Label("priority", PRIORITIES),),
            QUEUE_BUCKETS,
            registry,
        )
        self._refused = Counts(
            PREFIX + "queue_refused_total",
            "Flights rejected by the queue or removed from it, by reason.",
            (Label("why", REASONS),),
            registry,
        )
        self._missed = Counts(
            PREFIX + "deadlines_missed_total",
            "Requests that exceeded their x-request-timeout, by phase of their flight.",
            (Label("phase", ("arriving", *(phase.value for phase in Phase))),),
            registry,
        )
        self._promoted = Counts(
            PREFIX + "queue_promoted_total", "Flights promoted because a more urgent request joined.", (), registry
        )
        self._healed = Counts(
            PREFIX + "watchdog_healed_total",
            "Leaked turns, look-ups, slots and flights ended by the watchdog; each is a bug of the gateway.",
            (Label("what", KINDS),),
            registry,
        )
        for kind in KINDS:
            self._healed.count((kind,), 0)
        for why in REASONS:
            self._refused.count((why,), 0)
        self._promoted.count((), 0)

    def dispatched(self, priority: int, seconds: float) -> None:
        """A flight that waited has its place."""
        self._wait.seen((PRIORITIES[priority],), seconds)

    def refused(self, why: str) -> None:
        """See REASONS."""
        self._refused.count((why,))

    def missed(self, phase: str) -> None:
        """A request's time was over."""
        self._missed.count((phase,))

    def healed(self, kind: Kind) -> None:
        """The watchdog mended something."""
        self._healed.count((kind,))

    def promoted(self) -> None:
        self._promoted.count(())

"""Metrics of streams that clients may come back to."""

from __future__ import annotations

from typing import Final, Literal

from aioprometheus.collectors import Registry

from proxy.telemetry import PREFIX, Counts, Label

What = Literal["held", "refused", "resumed", "fetched", "lapsed", "evicted", "deleted", "unknown", "position"]
WHATS: Final[tuple[What, ...]] = (
    *("held", "refused", "resumed", "fetched"),
    *("lapsed", "evicted", "deleted", "unknown", "position"),
)


class ResumingMetrics:
    """One counter."""

    def __init__(self, registry: Registry) -> None:
        self._streams = Counts(
            PREFIX + "resumable_streams_total",
            "Streams that clients may come back to: held, refused as too many are held, resumed here, fetched "
            "from another gateway, lapsed, evicted by a newer one, deleted by a client, asked for and unknown, "
            "asked for at a position that they lack.",
            (Label("what", WHATS),),
            registry,
        )
        for what in WHATS:
            self._streams.count((what,), 0)

    def count(self, what: What) -> None:
        self._streams.count((what,))

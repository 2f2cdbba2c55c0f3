"""Metrics of the fleet: what became of flights that several nodes share."""

from __future__ import annotations

from typing import Final, Literal

from aioprometheus.collectors import Registry

from proxy.telemetry import PREFIX, Counts, Label

What = Literal["followed", "published", "taken_over", "alone", "lost"]
WHATS: Final[tuple[What, ...]] = ("followed", "published", "taken_over", "alone", "lost")


class FleetMetrics:
    """One counter."""

    def __init__(self, registry: Registry) -> None:
        self._flights = Counts(
            PREFIX + "fleet_flights_total",
            "Flights by what the fleet did: followed another node, published for other nodes, taken over from a "
            "dead node, generated alone as no node could be followed, lost with their node.",
            (Label("what", WHATS),),
            registry,
        )
        for what in WHATS:
            self._flights.count((what,), 0)

    def count(self, what: What) -> None:
        self._flights.count((what,))

"""TODO"""

from proxy.flights.merging.merged_flight import MergedFlight

__all__ = [
    "MergedFlight",
]

"""TODO"""

from proxy.flights.merging.merged_flight import Carrier

__all__ = [
    "Carrier",
]

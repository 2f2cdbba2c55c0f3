"""Sampled twins: requests that differ in nothing but who sends them, sent to an engine as one with `n` choices.

`twins` says which requests are twins. The `Merger` finds them in the queue and makes a `MergedFlight`, which
divides the answer among its members, each a Flight of its own.
"""

from proxy.flights.merging.merged_flight import MergedFlight

__all__ = [
    "MergedFlight",
]

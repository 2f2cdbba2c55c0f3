"""Continuing a stream that broke, exactly or not at all: its request is sent again, and what readers have already is
compared with the new answer and left out.

`continuable` says which Flights that is possible for. A `Replay` is the Flight that the new answer is written into;
its `Seam` compares both answers and cuts the frames where they meet.
"""

from proxy.flights.continuing.replay import REPLAY, Replay, continuable
from proxy.flights.continuing.seam import Differs, Seam

__all__ = [
    "REPLAY",
    "Differs",
    "Replay",
    "Seam",
    "continuable",
]

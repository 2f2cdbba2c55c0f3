"""Clients that come back: a stream whose client asked for it is held for a grace after the client has left, and a
client that names it gets the rest, at this gateway or another one of the fleet.

- A `Ledger` decides which streams are held, how many, and until when. Pure.
- A `Stream` is a Flight, a reader that reads nothing (so that the last client does not cancel it), and the view
  of its clients. Its name is random; a tenant finds its own streams only.
- A `Position` is what a client has: a count of events, and a mark where a gateway made them anew (a `Seam`).
- `Numbered` gives events their `id:` lines; `Turns` says how many slices are written in one iteration.
- With a fleet a `Record` in Redis says where the stream is published. A gateway that is asked for it follows it,
  and continues it if its gateway is lost.
"""

from proxy.flights.resuming.metrics import ResumingMetrics
from proxy.flights.resuming.position import Numbered, Position, Seam, read_position
from proxy.flights.resuming.record import Record, Request
from proxy.flights.resuming.streams import Slot, Stream, Streams
from proxy.flights.resuming.turns import Turns

__all__ = [
    "Numbered",
    "Position",
    "Record",
    "Request",
    "ResumingMetrics",
    "Seam",
    "Slot",
    "Stream",
    "Streams",
    "Turns",
    "read_position",
]

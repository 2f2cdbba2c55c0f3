"""Continuing a stream that broke, exactly or not at all: its request is sent again, and what readers have is
compared with the new answer and left out of it.

- `continuable` says for which Flights that is possible.
- A `Replay` is the Flight that the new answer is written into, in place of the broken one. It has no readers: the
  rest of the answer goes to the broken Flight.
- `Continuations` bounds how many streams are continued at one time, and remembers requests over which engines
  died.
- `TokenIds` are those of a sampled stream, which an `IdsIngest` reads and hides; a `RestFlight` is the Flight of
  the request that goes on from them.
- A `Comparison` compares both answers, content by content, and cuts the frame in which they meet.

`Exchange` decides when a stream is continued: it is another attempt of the same request, by the rules of retries.
"""

from proxy.flights.continuing.comparison import Comparison, Differs
from proxy.flights.continuing.continuations import LONGEST_WAIT, Continuation, Continuations
from proxy.flights.continuing.ids import IDS, IdsIngest, RestFlight, TokenIds, asks_for_ids, with_ids
from proxy.flights.continuing.replay import REPLAY, Replay, continuable, not_continued

__all__ = [
    "IDS",
    "LONGEST_WAIT",
    "REPLAY",
    "Comparison",
    "Continuation",
    "Continuations",
    "Differs",
    "IdsIngest",
    "Replay",
    "RestFlight",
    "TokenIds",
    "asks_for_ids",
    "continuable",
    "not_continued",
    "with_ids",
]

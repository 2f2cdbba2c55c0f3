"""Flights: one generation, many readers.

- `FlightSpec` says what a request wants from an engine and never changes; `QueueState` decides its turn in the
  queue and changes as readers join. `Keyer` makes the key that identical requests have in common, `Sharing` says
  whether a request may share at all.
- `Flight` is one answer: an append-only log of frames, a `Phase`, and its readers. It belongs to no request.
- `Subscriber` is a reader: a cursor into the log. The last one that leaves cancels the generation.
- `FlightGroup` holds the live Flights and the map by which an identical request finds one to join.
- `Scheduler` takes each new Flight through the queue (`queue/`), the store look-up and the lease of an engine, and
  ends it: landed, failed or cancelled.
- `Exchange` is a dispatched Flight: its lease, its attempts, its retries. `ExchangeContext` is what all share.
- `Ingest` reads an engine's answer into the Flight: frames, end, limits, timeouts.
- `continuing/` goes on with a stream that broke: by a second answer that repeats the first, or by its tokens' ids.
- `resuming/` holds streams for clients that come back.
- `events/` reads answers of Anthropic's Messages and OpenAI's Responses.
- `merging/` sends sampled twins as one request with `n`; `embeddings/` batches inputs of several requests.
- `fleet/` shares flights with other gateway processes, through Redis.
- `Cost` estimates tokens before an engine sees a request; `Memory` is the budget that logs are charged to.
- `Shapes` learns how engines stream, which decides whether a stream can answer a client that wants one body.
- `Watchdog` ends what containment should have ended. Each thing that it finds is a bug.
"""

from proxy.flights.cost import NO_COST, Cost, actual_cost, estimate, estimate_raw, was_dispatched
from proxy.flights.exchange import ExchangeContext, MakeIngest
from proxy.flights.flight import FREE, SLICE_BYTES, Flight, Pipe, Subscriber
from proxy.flights.group import FlightGroup
from proxy.flights.ingest import Callbacks, Ingest, StreamLimits, Timeouts
from proxy.flights.key import Keyer, hash_of_cpu, model_tag
from proxy.flights.memory import Held, Memory, available, memory_for, refused
from proxy.flights.phase import Phase
from proxy.flights.scheduler import Scheduler
from proxy.flights.shapes import Shapes
from proxy.flights.sharing import SHARES, Share, Sharing, sharing_of
from proxy.flights.spec import (
    RATE_LIMITS,
    REQUEST_ID,
    FlightSpec,
    Mode,
    QueueState,
    User,
    headers_in_common,
    new_id,
)
from proxy.flights.watchdog import PATIENCE, Kind, Watchdog

__all__ = [
    "FREE",
    "NO_COST",
    "PATIENCE",
    "RATE_LIMITS",
    "REQUEST_ID",
    "SHARES",
    "SLICE_BYTES",
    "Callbacks",
    "Cost",
    "ExchangeContext",
    "Flight",
    "FlightGroup",
    "FlightSpec",
    "Held",
    "Ingest",
    "Keyer",
    "Kind",
    "MakeIngest",
    "Memory",
    "Mode",
    "Phase",
    "Pipe",
    "QueueState",
    "Scheduler",
    "Shapes",
    "Share",
    "Sharing",
    "StreamLimits",
    "Subscriber",
    "Timeouts",
    "User",
    "Watchdog",
    "actual_cost",
    "available",
    "estimate",
    "estimate_raw",
    "hash_of_cpu",
    "headers_in_common",
    "memory_for",
    "model_tag",
    "new_id",
    "refused",
    "sharing_of",
    "was_dispatched",
]

"""TODO"""

from proxy.flights.cost import NO_COST, Cost, actual_cost, estimate, estimate_raw, was_dispatched
from proxy.flights.exchange import ExchangeContext, MakeIngest
from proxy.flights.flight import FREE, SLICE_BYTES, Flight, Subscriber
from proxy.flights.group import FlightGroup
from proxy.flights.ingest import Ingest, OnHead, StreamLimits, Timeouts
from proxy.flights.key import Keyer, hash_of_cpu, model_tag
from proxy.flights.memory import Held, Memory, available, refused
from proxy.flights.memory_watch import memory_for
from proxy.flights.phase import Phase
from proxy.flights.scheduler import Scheduler
from proxy.flights.shapes import Shapes
from proxy.flights.sharing import Share, Sharing, sharing_of
from proxy.flights.spec import RATE_LIMITS, REQUEST_ID, FlightSpec, Mode, QueueState, headers_in_common, new_id
from proxy.flights.watchdog import PATIENCE, Kind, Watchdog

__all__ = [
    "FREE",
    "NO_COST",
    "PATIENCE",
    "RATE_LIMITS",
    "REQUEST_ID",
    "SLICE_BYTES",
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
    "OnHead",
    "Phase",
    "QueueState",
    "Scheduler",
    "Shapes",
    "Share",
    "Sharing",
    "StreamLimits",
    "Subscriber",
    "Timeouts",
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

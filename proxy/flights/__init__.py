"""TODO"""

from proxy.flights.cost import NO_COST, Cost, estimate, passing, reached, spent
from proxy.flights.exchange import MakeFeeder
from proxy.flights.flight import FREE, SLICE_BYTES, Flight, Subscriber
from proxy.flights.group import FlightGroup
from proxy.flights.ingest import Feeder, Limits, OnHead, Watch
from proxy.flights.key import Keyer, hash_of_cpu, model_tag
from proxy.flights.memory import Held, Memory, available, refused
from proxy.flights.memory_watch import memory_for
from proxy.flights.phase import Phase
from proxy.flights.plan import RATE_LIMITS, REQUEST_ID, Mode, Plan, headers_in_common, new_id
from proxy.flights.scheduler import Scheduler
from proxy.flights.shapes import Shapes
from proxy.flights.sharing import Share, Sharing, sharing_of
from proxy.flights.watchdog import PATIENCE, Kind, Watchdog

__all__ = [
    "FREE",
    "NO_COST",
    "PATIENCE",
    "RATE_LIMITS",
    "REQUEST_ID",
    "SLICE_BYTES",
    "Cost",
    "Feeder",
    "Flight",
    "FlightGroup",
    "Held",
    "Keyer",
    "Kind",
    "Limits",
    "MakeFeeder",
    "Memory",
    "Mode",
    "OnHead",
    "Phase",
    "Plan",
    "Scheduler",
    "Shapes",
    "Share",
    "Sharing",
    "Subscriber",
    "Watch",
    "Watchdog",
    "available",
    "estimate",
    "hash_of_cpu",
    "headers_in_common",
    "memory_for",
    "model_tag",
    "new_id",
    "passing",
    "reached",
    "refused",
    "sharing_of",
    "spent",
]

"""The request queue: Flights that wait for a look-up, for twins, or for capacity at an engine.

A `Ticket` holds what decides a request's turn. `RequestQueue` holds all that waits, within one limit. Its
`FairQueue` orders by class, and within a class by deficit round robin between tenants and their users.
`LookupBatcher` and, by caller, `FairLookups` form batches of look-ups, and `Shares` decides which queued request
makes room in a full queue. A `PoolQueue` is a summary of the requests that are queued for an engine, for other
processes.
"""

from proxy.flights.queue.request_queue import RequestQueue
from proxy.flights.queue.summary import MOST_TOKENS, PoolQueue, Waiting
from proxy.flights.queue.ticket import TicketFactory, callers_of, twin_of

__all__ = [
    "MOST_TOKENS",
    "PoolQueue",
    "RequestQueue",
    "TicketFactory",
    "Waiting",
    "callers_of",
    "twin_of",
]

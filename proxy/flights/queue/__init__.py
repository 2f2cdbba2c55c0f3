"""TODO"""

from proxy.flights.queue.request_queue import Batcher
from proxy.flights.queue.ticket import Tickets, callers_of, twin_of

__all__ = [
    "Batcher",
    "Tickets",
    "callers_of",
    "twin_of",
]

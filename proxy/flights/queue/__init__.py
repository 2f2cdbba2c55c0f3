"""TODO"""

from proxy.flights.queue.request_queue import RequestQueue
from proxy.flights.queue.ticket import TicketFactory, callers_of, twin_of

__all__ = [
    "RequestQueue",
    "TicketFactory",
    "callers_of",
    "twin_of",
]

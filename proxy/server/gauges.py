"""Gauges of the gateway's state. They are read when /metrics is scraped and cost nothing otherwise."""

from __future__ import annotations

import asyncio
import time

from proxy.config import PRIORITIES
from proxy.flights import Flight, FlightGroup
from proxy.flights.queue import RequestQueue
from proxy.redis import Cache
from proxy.server.listener.listener import Listener
from proxy.telemetry import Log, Metrics


def state_gauges(
    metrics: Metrics,
    group: FlightGroup,
    request_queue: RequestQueue[Flight],
    listener: Listener,
    log: Log,
    cache: Cache | None,
) -> None:
    """Have them read at each scrape."""
    metrics.gauge("flights", "Generations and other answers in the making.", lambda: len(group))
    metrics.gauge("subscribers", "Clients reading a flight.", lambda: group.subscribers)
    metrics.gauge("queue_depth", "Flights that wait for a look-up or for an engine.", lambda: len(request_queue))
    for at, name in enumerate(PRIORITIES):
        metrics.gauge(
            "queue_waiting",
            "Flights that wait for a place at an engine.",
            lambda at=at: request_queue.line.lengths()[at],  # type: ignore[misc]
            {"priority": name},
        )
    metrics.gauge("queue_owners", "Callers whose flights wait for a place.", lambda: request_queue.line.owners)
    metrics.gauge("client_connections", "Open client connections.", lambda: len(listener.connections))
    metrics.counter(
        "log_lines_dropped_total", "Log lines lost to a reader that does not keep up.", lambda: log.dropped
    )
    if cache is not None:
        metrics.gauge("cache_available", "1 where Redis is asked.", lambda: int(cache.available))
    metrics.gauge("tasks", "Tasks of the event loop that have not ended.", lambda: len(asyncio.all_tasks()))
    # What an alert sets the others against.
    metrics.gauge("queue_limit", "Flights that may wait; one more is answered 503.", lambda: request_queue.limit)
    started = time.time()
    metrics.gauge("start_time_seconds", "When this process began to serve, Unix time.", lambda: started)

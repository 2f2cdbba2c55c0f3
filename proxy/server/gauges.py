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
    """Register the gauges; each is read at a scrape."""
    metrics.gauge("flights", "Flights under way: generations and other answers.", lambda: len(group))
    metrics.gauge("subscribers", "Requests that read a flight.", lambda: group.subscribers)
    metrics.gauge("queue_depth", "Flights queued for a look-up or an engine.", lambda: len(request_queue))
    for at, name in enumerate(PRIORITIES):
        metrics.gauge(
            "queue_waiting",
            "Flights queued for an engine, by priority.",
            lambda at=at: request_queue.line.lengths()[at],  # type: ignore[misc]
            {"priority": name},
        )
    metrics.gauge("queue_owners", "Callers with flights in the queue.", lambda: request_queue.line.owners)
    metrics.gauge("client_connections", "Open client connections.", lambda: len(listener.connections))
    metrics.counter(
        "log_lines_dropped_total", "Log lines dropped because their reader was too slow.", lambda: log.dropped
    )
    if cache is not None:
        metrics.gauge(
            "cache_available",
            "1 while Redis is in use, 0 while its circuit breaker is open.",
            lambda: int(cache.available),
        )
    metrics.gauge("tasks", "Unfinished event loop tasks.", lambda: len(asyncio.all_tasks()))
    # What an alert sets the others against.
    metrics.gauge("queue_limit", "Queue capacity; requests beyond it get 503.", lambda: request_queue.limit)
    started = time.time()
    metrics.gauge("start_time_seconds", "When this process started to serve, Unix time.", lambda: started)

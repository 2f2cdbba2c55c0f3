"""Owns what Prometheus is told: one typed method a fact, bounded labels, LLM-sized buckets.
Must not know requests, flights or sockets: it is given numbers and names.
Called by the gateway, scheduler and app, once a request or a flight, never once a token."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, Final

from aioprometheus.collectors import Counter, Gauge, Histogram, Registry
from aioprometheus.renderer import render

PREFIX: Final = "gateway_"
MAX_MODELS: Final = 64  # distinct model labels; the rest are `other`: clients choose these names

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._:/@+-]")
Key = tuple[str, ...]

TTFT_BUCKETS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 120.0,
)  # fmt: skip
INTER_TOKEN_BUCKETS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1,
    0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
LATENCY_BUCKETS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0,
)  # fmt: skip
QUEUE_BUCKETS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0, 120.0,
)  # fmt: skip
BATCH_BUCKETS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class Counts(Counter):
    """A counter kept in a plain dict (0.1 µs) and folded into the registry when it is scraped: aioprometheus'
    own labelled increment costs 5 µs."""

    def __init__(self, name: str, doc: str, labels: Key, registry: Registry) -> None:
        super().__init__(PREFIX + name, doc, registry=registry)
        self._labels = labels
        self.counts: dict[Key, float] = {}

    def add_one(self, *key: str, by: float = 1) -> None:
        self.counts[key] = self.counts.get(key, 0) + by

    def get_all(self) -> list[tuple[dict[str, str], Any]]:
        return [(dict(zip(self._labels, key, strict=True)), value) for key, value in self.counts.items()]


class Gauges(Gauge):
    """A gauge that is read when it is scraped."""

    def __init__(self, name: str, doc: str, registry: Registry) -> None:
        super().__init__(PREFIX + name, doc, registry=registry)
        self.readers: list[tuple[dict[str, str], Callable[[], float]]] = []

    def get_all(self) -> list[tuple[dict[str, str], Any]]:
        return [(labels, read()) for labels, read in self.readers]


class Buckets(Histogram):
    """A histogram by bisection in plain lists, folded when it is scraped."""

    def __init__(self, name: str, doc: str, labels: Key, bounds: Sequence[float], registry: Registry) -> None:
        super().__init__(PREFIX + name, doc, registry=registry, buckets=(*bounds, float("inf")))
        self._labels = labels
        self._bounds = bounds
        self.series: dict[Key, tuple[list[int], list[float]]] = {}

    def seen(self, value: float, *key: str) -> None:
        """Count one value, in the metric's unit."""
        series = self.series.get(key)
        if series is None:
            series = self.series[key] = ([0] * (len(self._bounds) + 1), [0.0])
        counts, total = series
        counts[bisect_left(self._bounds, value)] += 1
        total[0] += value

    def get_all(self) -> list[tuple[dict[str, str], Any]]:
        found = []
        for key, (counts, total) in self.series.items():
            told: dict[float | str, float] = {}
            running = 0
            for bound, count in zip((*self._bounds, float("inf")), counts, strict=True):
                running += count
                told[bound] = running
            told["count"], told["sum"] = running, total[0]
            found.append((dict(zip(self._labels, key, strict=True)), told))
        return found


class Metrics:
    """All of the gateway's metrics, in a registry of their own."""

    def __init__(self, registry: Registry | None = None) -> None:
        self._registry = registry = registry or Registry()
        self._models: dict[str | None, str] = {None: "", "": ""}
        self._gauges: dict[str, Gauges] = {}

        def counts(name: str, doc: str, *labels: str) -> Counts:
            return Counts(name, doc, labels, registry)

        def buckets(name: str, doc: str, bounds: Sequence[float], *labels: str) -> Buckets:
            return Buckets(name, doc, labels, bounds, registry)

        self._requests = counts(
            "requests_total",
            "Requests answered, by endpoint, status and cache verdict.",
            "endpoint",
            "status",
            "verdict",
        )
        self._tokens = counts(
            "tokens_total",
            "Tokens of answers given; `source` says whether the engine counted (usage) or events were.",
            "direction",
            "model",
            "source",
        )
        self._flights = counts("flights_total", "Flights ended, by outcome.", "outcome", "model")
        self._coalesced = counts("coalesced_total", "Requests that joined a flight under way.", "endpoint")
        self._cache = counts("cache_operations_total", "What became of look-ups and stores.", "result")
        self._breaker = counts("cache_breaker_changes_total", "Redis given up and found again.", "to")
        self._upstream_errors = counts("upstream_errors_total", "Failures of engines.", "backend", "code")
        self._upstream = counts("upstream_requests_total", "Requests sent to engines.", "backend")
        self._refused = counts("connections_refused_total", "Client connections over the limit.")
        self._latency = buckets(
            "request_duration_seconds", "From the request to its last byte.", LATENCY_BUCKETS, "endpoint"
        )
        self._ttft = buckets(
            "time_to_first_token_seconds",
            "From the request to its first token.",
            TTFT_BUCKETS,
            "endpoint",
            "verdict",
        )
        self._queue = buckets(
            "queue_duration_seconds", "From the request to an engine.", QUEUE_BUCKETS, "endpoint"
        )
        self._inter = buckets(
            "inter_token_seconds", "Mean gap between tokens, one value a flight.", INTER_TOKEN_BUCKETS, "model"
        )
        self._batch = buckets("lookup_batch_size", "Look-ups in one Redis round trip.", BATCH_BUCKETS)

    def request(
        self,
        *,
        endpoint: str,
        status: int,
        verdict: str,
        model: str | None,
        queue_s: float,
        ttft_s: float | None,
        total_s: float,
        prompt_tokens: int | None,
        completion_tokens: int | None,
        token_source: str | None,
    ) -> None:
        """One request was answered. Durations in seconds."""
        self._requests.add_one(endpoint, str(status), verdict)
        self._latency.seen(total_s, endpoint)
        if ttft_s is not None:
            self._ttft.seen(ttft_s, endpoint, verdict)
            self._queue.seen(queue_s, endpoint)
        if token_source is not None:
            label = self._model(model)
            if prompt_tokens:
                self._tokens.add_one("in", label, token_source, by=prompt_tokens)
            if completion_tokens:
                self._tokens.add_one("out", label, token_source, by=completion_tokens)

    def flight_landed(self, outcome: str, model: str | None, inter_token_s: float | None) -> None:
        """A flight ended: hit, landed, failed, cancelled or error."""
        label = self._model(model)
        self._flights.add_one(outcome, label)
        if inter_token_s is not None:
            self._inter.seen(inter_token_s, label)

    def coalesced(self, endpoint: str) -> None:
        self._coalesced.add_one(endpoint)

    def cache(self, result: str) -> None:
        self._cache.add_one(result)

    def cache_breaker(self, opened: bool) -> None:
        self._breaker.add_one("open" if opened else "closed")

    def upstream_error(self, backend: str, code: str) -> None:
        self._upstream_errors.add_one(backend, code)

    def upstream_request(self, backend: str) -> None:
        self._upstream.add_one(backend)

    def connection_refused(self) -> None:
        self._refused.add_one()

    def batch(self, size: int) -> None:
        self._batch.seen(float(size))

    def gauge(self, name: str, doc: str, read: Callable[[], float], labels: dict[str, str] | None = None) -> None:
        """Have a number read at each scrape."""
        if name not in self._gauges:
            self._gauges[name] = Gauges(name, doc, self._registry)
        self._gauges[name].readers.append((labels or {}, read))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type."""
        body, headers = render(self._registry, [part.strip() for part in accept.split(",") if part.strip()])
        return body, headers["Content-Type"]

    def _model(self, name: str | None) -> str:
        """A label for a name that a client chose: clean, short, and one of a bounded number."""
        label = self._models.get(name)
        if label is None:
            label = _UNSAFE.sub("_", name or "")[:100] if len(self._models) < MAX_MODELS + 2 else "other"
            if label != "other":
                self._models[name] = label
        return label

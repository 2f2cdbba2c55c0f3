"""The state that the page shows: flights, queue, engines, rates. No prompt, no key and no secret of a URL is in
it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, Final

from proxy import __version__
from proxy.config import Settings, mask_url
from proxy.flights import Flight, FlightGroup
from proxy.flights.queue import RequestQueue
from proxy.redis import Cache, RedisState
from proxy.server.page.rates import Counters, CounterSnapshot, Rising, rates_between, read, window
from proxy.telemetry import Metrics, Totals
from proxy.upstream import Backend, Backends, State

WINDOW: Final = 10.0  # seconds that the quantiles and shares are of
RATES: Final = 2.0  # seconds that the rates are of: tokens are counted as they come, and a second is uneven

Visible = Callable[[Sequence[dict[str, Any]]], Sequence[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the state is read from."""

    settings: Settings
    metrics: Metrics
    group: FlightGroup
    queue: RequestQueue[Flight]
    resumable: Sized = ()  # the streams that clients may come back to
    backends: Backends
    cache: Cache | None
    redis: RedisState
    state_redis: RedisState | None = None  # where limits have a Redis of their own
    began: float  # monotonic seconds
    clock: Callable[[], float] = time.monotonic
    totals: Callable[[], Awaitable[Totals]] | None = None
    """The metrics of all processes of this gateway; None: there is one."""


class StateView:
    """The state for one watcher, with the counter snapshots of the last seconds."""

    def __init__(self, sources: Sources, visible: Visible, delivered: Rising) -> None:
        """`delivered`: the tokens that any watcher has been shown."""
        self._delivered = delivered
        self._sources = sources
        self._visible = visible
        self._readings: deque[CounterSnapshot] = deque(maxlen=64)
        self._start = CounterSnapshot(at=sources.began)

    async def look(self) -> dict[str, Any]:
        """The state now, of all processes."""
        of = self._sources
        totals = None if of.totals is None else await of.totals()
        now = of.clock()
        snapshot = read(totals or of.metrics, of.group.live, now)
        self._readings.append(replace(snapshot, delivered=self._delivered.shown(snapshot.delivered)))
        while len(self._readings) > 2 and now - self._readings[1].at >= WINDOW:
            self._readings.popleft()
        state = standing(of, self._visible, now)
        start = self._start
        if totals is not None:
            state = together(state, [backend.name for backend in of.backends.all], totals)
            start = CounterSnapshot(at=now - state["uptime_s"])
        return {
            **state,
            "fleet": fleet(totals or of.metrics),
            "total": rates_between(start, self._readings[-1]),
            "recent": recent(self._readings),
        }


def recent(readings: Sequence[CounterSnapshot]) -> dict[str, Any]:
    """The last seconds: quantiles and shares over WINDOW, rates over RATES. Pure."""
    last = readings[-1]
    told = rates_between(window(readings, WINDOW), last)
    rates = rates_between(window(readings, RATES), last) if len(readings) > 1 else told
    if len(readings) < 2:
        rates = rates | {"generated_per_s": 0.0, "delivered_per_s": 0.0}
    return told | {name: rates[name] for name in ("generated_per_s", "delivered_per_s")}


def standing(of: Sources, visible: Visible, now: float) -> dict[str, Any]:
    """What exists and what is under way."""
    backends = of.backends
    return {
        "version": __version__,
        "uptime_s": round(now - of.began, 1),
        "ready": backends.ready,
        "share": of.settings.share,
        "keys": bool(of.settings.api_keys_file),
        "flights": len(of.group),
        "readers": of.group.subscribers,
        "queued": len(of.queue),
        "resumable": len(of.resumable),
        "queue_limit": of.queue.limit,
        "models": [str(model.get("id")) for model in visible(backends.models())],
        "redis": of.redis.shown() | {"available": None if of.cache is None else of.cache.available},
        **({"state_redis": of.state_redis.shown()} if of.state_redis is not None else {}),
        "backends": [engine(backend, visible, now) for backend in backends.all],
    }


def fleet(metrics: Counters) -> dict[str, Any]:
    """Whether generations and the limits of engines are shared with other gateways now; None: they are not by the
    settings. `gateways`: how many share the limits, this one included."""

    def value(name: str) -> float | None:
        return next((value for _, value in metrics.samples(name)), None)

    live, limits = value("fleet_live"), value("admission_live")
    gateways = value("admission_gateways")
    return {
        "generations": None if live is None else bool(live),
        "engine_limits": None if limits is None else bool(limits),
        "gateways": None if gateways is None else int(gateways),
    }


def together(state: dict[str, Any], engines: Sequence[str], totals: Totals) -> dict[str, Any]:
    """The state of one process with the numbers of all. `engines`: the names of its engines, as labels."""
    counts = {
        "flights": "flights",
        "readers": "subscribers",
        "queued": "queue_depth",
        "resumable": "resumable_streams",
        "queue_limit": "queue_limit",
    }
    backends = [
        each
        | {
            "inflight": int(totals.value("backend_inflight", backend=name)),
            "max_inflight": int(totals.value("backend_max_inflight", backend=name)),
        }
        for each, name in zip(state["backends"], engines, strict=True)
    ]
    uptime = max(0.0, time.time() - totals.value("start_time_seconds"))
    sums = {name: int(totals.value(gauge)) for name, gauge in counts.items()}
    return state | sums | {"backends": backends, "uptime_s": round(uptime, 1)}


def engine(backend: Backend, visible: Visible, now: float) -> dict[str, Any]:
    """One engine, as the page shows it."""
    breaker, report = backend.breaker, backend.report
    retry = max(0.0, breaker.until - now) if breaker.state is State.OPEN else None
    return {
        "name": mask_url(backend.name),
        "up": backend.up,
        "detail": backend.detail,
        "models": [str(model.get("id")) for model in visible(backend.models)],
        "inflight": backend.inflight,
        "max_inflight": backend.max_inflight,
        "breaker": breaker.state.name.lower(),
        "retry_s": None if retry is None else round(retry, 1),
        "unshared": backend.abilities.told(),
        "waiting": report.waiting if report is not None else None,
        "kv_cache": report.kv_cache if report is not None else None,
    }

"""Makes engines from their URLs, with their metrics and log events, and adds and removes them while the gateway
runs."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from proxy.config import Settings
from proxy.errors import GatewayError
from proxy.telemetry import Log, Metrics
from proxy.upstream.backends import Backend, Backends
from proxy.upstream.breaker import Breaker, BreakerRules
from proxy.upstream.concurrency import AdaptiveLimit
from proxy.upstream.health_checks import Checkup, HealthChecks
from proxy.upstream.http.pool import MAX_IDLE, Pool
from proxy.upstream.http.read_budget import ReadBudget
from proxy.upstream.pulse import Pulse
from proxy.upstream.routing import router

ANSWER_SECONDS: Final = 5.0  # for an engine that is not in use yet to answer /health
_GAUGES: Final[tuple[tuple[str, str, Callable[[Backend], float | None]], ...]] = (
    ("backend_inflight", "Requests in flight at an engine.", lambda b: b.inflight),
    ("backend_max_inflight", "Concurrency limit of an engine, configured or adaptive.", lambda b: b.max_inflight),
    ("backend_up", "1 while the engine passes its health checks.", lambda b: int(bool(b.up))),
    (
        "backend_breaker",
        "State of the engine's circuit breaker: 0 closed, 1 half-open, 2 open.",
        lambda b: b.breaker.state.value,
    ),
    (
        "backend_folds",
        "1: the engine's streams fold into JSON bodies; 0: not all do; absent: not known yet.",
        lambda b: b.abilities.fold,
    ),
    (
        "backend_requests_running",
        "Running requests, reported by the engine.",
        lambda b: b.report.running if b.report else None,
    ),
    (
        "backend_requests_waiting",
        "Queued requests, reported by the engine.",
        lambda b: b.report.waiting if b.report else None,
    ),
    (
        "backend_kv_cache_usage",
        "Used share of the KV cache, 0 to 1, reported by the engine.",
        lambda b: b.report.kv_cache if b.report else None,
    ),
    (
        "backend_start_time_seconds",
        "Unix time at which the engine's process started, reported by the engine.",
        lambda b: b.report.started if b.report else None,
    ),
)


class Fleet:
    """All engines, including those that are leaving."""

    def __init__(
        self,
        urls: Sequence[str],
        settings: Settings,
        *,
        tls: ssl.SSLContext | None,
        api_key: str = "",
        log: Log,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        pulse: Pulse | None = None,
    ) -> None:
        self._settings = settings
        self._tls = tls
        self._api_key = api_key
        self._log = log
        self._metrics = metrics
        self._loop = loop
        self._pulse = pulse or Pulse(loop)
        self._reading = ReadBudget(loop)
        self._leaving: list[Backend] = []
        self._on_news: Callable[[], None] = lambda: None
        self._rules = BreakerRules(
            failures=settings.breaker_failures,
            rate=settings.breaker_rate / 100,
            window=settings.breaker_window,
            span=settings.breaker_seconds,
            longest=settings.breaker_max_seconds,
        )
        self.backends = Backends(
            [self._make(url) for url in urls],
            router=router(settings.routing),
            clock=loop.time,
            on_change=self._tell_change,
            on_breaker=self._tell_breaker,
            on_suspect=lambda backend: self.checkup.begin(backend),
            on_left=self._forget,
            on_restart=self._tell_restart,
        )
        self.health_checks = HealthChecks(self.backends, pulse=self._pulse, clock=loop.time)
        self.checkup = Checkup(self.backends, self._pulse, clock=loop.time)

    def __repr__(self) -> str:
        return f"<Fleet {self.backends!r} leaving={len(self._leaving)}>"

    @property
    def engines(self) -> list[Backend]:
        """All, those that are leaving included. No two have the same name."""
        return [*self.backends.all, *self._leaving]

    def on_news(self, call: Callable[[], None]) -> None:
        """Register a callback for engines that come up, go down or restart."""
        self._on_news = call

    async def change(self, urls: Sequence[str]) -> None:
        """Have exactly these engines from now on. A removed one finishes its requests in flight, and is the same
        one when it is added meanwhile: they count. A new one is checked before it gets requests."""
        known = {backend.name for backend in self.backends.all}
        leaving = {backend.name: backend for backend in self._leaving}
        added = [leaving.get(url) or self._make(url) for url in urls if url not in known]
        removed = [backend for backend in self.backends.all if backend.name not in urls]
        if not added and not removed:
            return
        self._leaving = [*(backend for backend in self._leaving if backend not in added), *removed]
        self.backends.change(added, removed)
        self._log.event(
            "info",
            "engines changed",
            added=" ".join(b.name for b in added),
            removed=" ".join(b.name for b in removed),
        )
        await self.health_checks.check(added)
        self.backends.capacity_changed()  # there may be room for queued requests

    async def answers(self, url: str) -> str:
        """Why an engine that is not in use does not answer /health; empty where it does."""
        pool = self._pool(url)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                status, _ = await pool.get("/health", fresh=True)
        except TimeoutError:
            return f"no answer to /health in {ANSWER_SECONDS:g} s"
        except GatewayError as e:
            return e.message
        finally:
            pool.close()
        return "" if status < 500 else f"/health: {status}"

    def renew(self, *, tls: ssl.SSLContext | None = None, api_key: str | None = None) -> None:
        """Use this TLS context, or this key, for new connections and requests."""
        self._tls = self._tls if tls is None else tls
        self._api_key = self._api_key if api_key is None else api_key
        for backend in self.engines:
            backend.pool.renew(self._tls, self._api_key)

    def close(self) -> None:
        """Close every connection."""
        for backend in self.engines:
            backend.pool.close()

    def _make(self, url: str) -> Backend:
        settings = self._settings
        pool = self._pool(url)
        adaptive_limit = (
            None if settings.max_inflight else AdaptiveLimit(objective=settings.pace_ttft_ms / 1000 or math.inf)
        )
        most = adaptive_limit.limit if adaptive_limit is not None else settings.max_inflight
        backend = Backend(url, pool, most, breaker=Breaker(self._rules), adaptive_limit=adaptive_limit)
        for name, doc, read in _GAUGES:
            self._metrics.gauge(name, doc, _reader(backend, read), {"backend": url})
        return backend

    def _pool(self, url: str) -> Pool:
        return Pool(
            url,
            connect_timeout=self._settings.connect_timeout,
            loop=self._loop,
            tls=self._tls,
            api_key=self._api_key,
            pulse=self._pulse,
            reading=self._reading,
            max_idle=max(MAX_IDLE, self._settings.max_inflight),
        )

    def _forget(self, backend: Backend) -> None:
        """Drop a drained engine. Its metric series stay where an engine of this name was added meanwhile."""
        if backend in self._leaving:
            self._leaving.remove(backend)
        if all(other.name != backend.name for other in self.engines):
            self._metrics.forget_backend(backend.name, [name for name, _, _ in _GAUGES])

    def _tell_change(self, backend: Backend) -> None:
        self._log.event(
            "info" if backend.up and not backend.detail else "warning",
            "engine up" if backend.up else "engine down",
            backend=backend.name,
            detail=backend.detail,
        )
        self._on_news()

    def _tell_restart(self, backend: Backend) -> None:
        self._log.event("info", "engine restarted", backend=backend.name)
        self._on_news()

    def _tell_breaker(self, backend: Backend, why: str) -> None:
        self._metrics.backend_breaker(backend.name, bool(why))
        level, event = ("warning", "engine breaker open") if why else ("info", "engine breaker closed")
        self._log.event(level, event, backend=backend.name, detail=why)


def _reader(backend: Backend, read: Callable[[Backend], float | None]) -> Callable[[], float]:
    def now() -> float:
        value = None if backend.leaving else read(backend)
        if value is None:
            raise LookupError("no value")  # the gauge is left out
        return value

    return now

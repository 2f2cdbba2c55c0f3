"""Admission control: the caller of a request, its estimated cost, and whether it may go on."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

from proxy.access.caller import Rates
from proxy.access.caller_address import Identify
from proxy.access.context import AccessContext
from proxy.access.ratelimit.buckets import Limits, LocalLimits, limits_of
from proxy.access.ratelimit.limiter import Limiter
from proxy.access.ratelimit.redis import RedisLimits
from proxy.config import Settings
from proxy.flights import NO_COST, Cost, estimate, estimate_raw
from proxy.redis import Deployment, WireError
from proxy.telemetry import Log, Metrics
from proxy.wire import NONE, RawBody


class Admission:
    """Admits or refuses each request once. `RequestContext.close` gives a reservation back."""

    def __init__(self, limiter: Limiter, identify: Identify, *, assumed: int) -> None:
        self.limiter = limiter
        self._identify = identify
        self._assumed = assumed  # tokens of an answer that may be of any length

    async def __call__(self, context: AccessContext, passed: RawBody = NONE) -> None:
        """Let the request go on, or raise GatewayError 429 or 503. `passed`: of one that passes through."""

        def cost() -> Cost:
            if context.cost is not None:
                return Cost(*context.cost)
            if context.api_request is not None:
                return estimate(context.api_request, self._assumed)
            return estimate_raw(context.request.path, passed, self._assumed)

        hold = context.hold
        if hold is not None:  # admitted by its head
            await hold.spends(cost)
            return
        caller = context.caller or self._identify(context.request)
        hold = context.reserves(lambda: self.limiter.ask(caller, cost))
        if hold is not None:
            await hold.allowed()

    async def head(self, context: AccessContext, *, slots: int = 1) -> None:
        """Every limit but tokens: before a large or slow body is read, which comes before them, and for a client
        that comes back to a stream, whose tokens are paid for. `slots`: as of `Limiter.ask`."""
        caller = context.caller or self._identify(context.request)
        hold = context.reserves(lambda: self.limiter.ask(caller, lambda: NO_COST, slots=slots))
        if hold is not None:
            await hold.allowed()


def _bounds(settings: Settings) -> tuple[Rates, Limits]:
    """The limits of a caller without its own, and those of all callers."""
    default = Rates(
        rps=settings.rate_limit_rps,
        burst=settings.rate_limit_burst,
        tokens_per_minute=settings.rate_limit_tokens_per_minute,
        streams=settings.rate_limit_streams,
    )
    everyone = Rates(
        rps=settings.global_limit_rps,
        burst=settings.global_limit_burst,
        tokens_per_minute=settings.global_limit_tokens_per_minute,
        streams=settings.global_limit_streams,
    )
    return default, limits_of(everyone, Rates())


def limits_any(settings: Settings, *, keyed: bool) -> bool:
    """Whether some caller may have a limit. `keyed`: callers may bring limits of their own."""
    default, everyone = _bounds(settings)
    return keyed or everyone.any or limits_of(default, default).any


async def admission_for(
    settings: Settings,
    redis: str | Deployment | None,
    metrics: Metrics,
    log: Log,
    stack: AsyncExitStack,
    *,
    identify: Identify,
    keyed: bool = False,
    parts: int = 1,
) -> Admission | None:
    """The settings' admission control; None without limits, so that requests pay nothing. `redis`: one that other
    processes have too, by the URL of one server or as a Deployment, which its owner starts. `keyed`: callers may
    bring limits of their own; `parts`: processes that divide the limits while they have no Redis in common."""
    if not limits_any(settings, keyed=keyed):
        return None
    default, everyone = _bounds(settings)
    shared = None
    if redis is not None:

        def changed(trouble: WireError | None) -> None:
            if trouble is not None:
                log.event("warning", "limits are each process's own", detail=str(trouble))
            else:
                log.event("info", "limits are shared again")

        shared = RedisLimits(
            redis,
            timeout=settings.redis_timeout_ms / 1000,
            namespace=settings.redis_namespace,
            on_change=changed,
        )
        stack.push_async_callback(shared.stop)
        await shared.start()
    limiter = Limiter(
        LocalLimits(time.monotonic(), parts=parts),
        shared,
        default=default,
        everyone=everyone,
        followers=settings.rate_limit_followers,
        on_refused=metrics.rate_limited,
        on_fallback=metrics.limit_fallback,
    )
    metrics.gauge("limited_requests", "Requests under way that rate limits count.", lambda: limiter.local.streams)
    metrics.gauge("limited_callers", "Callers whose limits this process tracks.", lambda: len(limiter.local))
    if shared is not None:
        metrics.gauge(
            "limits_local",
            "1 while Redis is unavailable or refuses, and each process limits by itself.",
            lambda: int(shared.local),
        )
    return Admission(limiter, identify, assumed=settings.rate_limit_assumed_tokens)

"""Owns the users of a Redis deployment: a cache and shared limits, with what they report written down.
Must not know what a test checks."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from proxy.access.ratelimit.buckets import UNBOUNDED, Claim, Decision, Limit, Limits
from proxy.access.ratelimit.redis import RedisLimits
from proxy.redis.cache import Cache, Stored
from proxy.redis.deployment import Deployment, deployment_of
from proxy.redis.resp import WireError
from tests.kit.redis_server import look_up

WHOLE: Final = Stored(
    "whole",
    1.0,
    b'{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"a"}}]}',
)
SLOW: Final = Limit(0.0001, 50)  # nothing leaks while a test runs


class Users:
    """A cache and limits of one gateway."""

    def __init__(self, deployment: Deployment, timeout: float, lease: float) -> None:
        self.deployment = deployment
        self.ops: Counter[str] = Counter()
        self.servers: list[tuple[str, str]] = []  # what became of which server
        self.details: list[str] = []
        self.told: dict[str, list[str | None]] = {"look-ups": [], "stores": [], "limits": []}
        self.cache = Cache(
            deployment,
            timeout=timeout,
            ttl=60,
            max_entry=10**5,
            max_pending=10**7,
            record=lambda op, count: self.ops.update({op: count}),
            on_breaker=lambda e: self._tell("look-ups", e),
            on_stores=lambda e: self._tell("stores", e),
        )
        self.limits = RedisLimits(
            deployment, timeout=timeout, lease=lease, on_change=lambda e: self._tell("limits", e)
        )

    def _tell(self, use: str, e: WireError | None) -> None:
        self.told[use].append(None if e is None else str(e))

    def server(self, change: str, name: str, detail: str) -> None:
        self.servers.append((change, name))
        self.details.append(detail)

    async def store(self, keys: Sequence[bytes]) -> None:
        """Store an answer under each key; returns once all are stored or given up."""
        settled = asyncio.Semaphore(0)
        for key in keys:
            self.cache.store(key, WHOLE, settled.release)
        for _ in keys:
            await settled.acquire()

    async def hits(self, keys: Sequence[bytes]) -> int:
        """How many of them one look-up finds."""
        return sum(value is not None for value in await look_up(self.cache, keys))

    async def ask(self, claim: Claim) -> Decision | None:
        """A decision of the limits; what is granted is held."""
        told: asyncio.Future[Decision | None] = asyncio.get_running_loop().create_future()
        self.limits.acquire(claim, told.set_result)
        decision = await told
        if decision is not None and decision.over is None:
            self.limits.hold(claim)
        return decision


def keys(count: int) -> list[bytes]:
    """Keys as requests have them."""
    return [os.urandom(36) for _ in range(count)]


def claim(
    permit: str, caller: str = "a", own: Limits = UNBOUNDED, everyone: Limits = UNBOUNDED, tokens: int = 0
) -> Claim:
    return Claim(permit, caller, own, everyone, tokens)


@asynccontextmanager
async def users(url: str, *, timeout: float = 2.0, lease: float = 30.0) -> AsyncIterator[Users]:
    """A gateway's use of the Redis at a URL, begun as the gateway does it."""
    made: list[Users] = []
    deployment = deployment_of(
        url, timeout=timeout, namespace="gateway", on_server=lambda *told: made[0].server(*told)
    )
    made.append(Users(deployment, timeout, lease))
    one = made[0]
    await deployment.start()
    try:
        await one.cache.start()
        await one.cache.ping()
        await one.limits.start()
        yield one
    finally:
        await one.limits.stop()
        await one.cache.stop()
        await deployment.close()

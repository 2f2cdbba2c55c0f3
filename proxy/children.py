"""Owns which of the embedded engine and the embedded Redis are started, as far as the settings ask for them.
Must not know what they are used for, nor how one runs.
Called by the app, as the first thing it starts and so the last it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

from proxy.config.settings import Settings
from proxy.telemetry.log import Log


async def children(settings: Settings, log: Log, stack: AsyncExitStack) -> tuple[list[str], str | None, str]:
    """Start the embedded engine and the embedded Redis, as far as they are asked for, side by side."""
    # Imported where they are used: with an engine and a Redis of your own they cost no start-up time.
    from proxy.embedded.engine import EmbeddedEngine
    from proxy.embedded.redis import EmbeddedRedis

    def told(name: str) -> Callable[[str, str], None]:
        return lambda event, detail: log.event("info", f"{name} {event}", detail=detail)

    engine = None if settings.backends else EmbeddedEngine(on_event=told("embedded engine"))
    redis = (
        EmbeddedRedis(settings.redis_memory_mb, on_event=told("embedded redis"))
        if settings.redis == "auto"
        else None
    )
    for child in (engine, redis):
        if child is not None:
            stack.push_async_callback(child.stop)
    starts = [child.start() for child in (engine, redis) if child is not None]
    started = await asyncio.gather(*starts, return_exceptions=True)
    for result in started:
        if isinstance(result, BaseException):
            raise result
    found = [str(result) for result in started]
    urls = list(settings.backends) or [found.pop(0)]
    if settings.redis == "off":
        return urls, None, "off"
    return (
        urls,
        (found.pop() if redis is not None else settings.redis),
        "embedded" if redis is not None else "yours",
    )

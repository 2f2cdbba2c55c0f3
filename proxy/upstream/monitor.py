"""Runs the tasks that never end: health, load and limits of engines, and others that the app names. One that
raises is reported and restarted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack

from proxy.config import Settings
from proxy.telemetry import Fault, Log
from proxy.upstream.backends import Backend, Backends
from proxy.upstream.health_checks import HealthChecks
from proxy.upstream.limit_ticker import LimitTicker
from proxy.upstream.load_poller import LoadPoller

Task = tuple[str, Callable[[], Awaitable[None]]]
"""Its name in the log, and a coroutine function that never returns."""

FIRST_LOOK_SECONDS = 2.0
"""How long start-up waits for the first health check; a slow engine is checked again later."""

RESTART_SECONDS = 1.0  # before a task that raised is restarted


def watch(
    settings: Settings,
    backends: Backends,
    health_checks: HealthChecks,
    others: Iterable[Task],
    loop: asyncio.AbstractEventLoop,
    log: Log,
    fault: Fault,
    stack: AsyncExitStack,
) -> None:
    """Start the tasks that observe engines, and the `others`; the stack cancels them at its end."""
    adaptive = settings.max_inflight == 0
    load = LoadPoller(
        lambda: backends.all,
        every=settings.load_seconds or settings.refresh_seconds,
        weight=settings.load_weight if settings.load_seconds else 0.0,
        spare=settings.refresh_seconds,
        on_start=backends.started,
        clock=loop.time,
    )
    tasks: list[Task] = [
        ("the health checks of engines", lambda: health_checks.run(settings.refresh_seconds)),
        ("the polls of engines' load", load.run),
        *others,
    ]
    if adaptive:

        def report(engine: Backend, limit: int) -> None:
            log.event("info", "engine limit changed", backend=engine.name, max_inflight=limit)

        ticker = LimitTicker(
            lambda: backends.all,
            clock=time.monotonic,
            on_room=lambda: backends.capacity_changed(),
            on_large=report,
        )
        tasks.append(("the ticks of adaptive limits", ticker.run))
    for name, run in tasks:
        stack.push_async_callback(_stop, asyncio.create_task(for_ever(name, run, fault)))


async def for_ever(name: str, run: Callable[[], Awaitable[None]], fault: Fault) -> None:
    """Run a task that never ends. An exception is reported, and the task restarted after RESTART_SECONDS."""
    while True:
        try:
            await run()
        except Exception as e:  # noqa: BLE001 - a task's border: its exception would else be seen by nobody
            fault(name, e)
        await asyncio.sleep(RESTART_SECONDS)


async def each(seconds: float, look: Callable[[], None]) -> None:
    """Call `look` now and every so many seconds."""
    while True:
        look()
        await asyncio.sleep(seconds)


async def first_look(health_checks: HealthChecks) -> None:
    try:
        async with asyncio.timeout(FIRST_LOOK_SECONDS):
            await health_checks.check()
    except TimeoutError:
        pass  # the health checks go on; until then engines are tried unchecked


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

"""Runs the tasks that never end: health, load and pace of engines, and others that the app names. One that raises
is reported and starts again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack

from proxy.config import Settings
from proxy.telemetry import Fault, Log
from proxy.upstream.backends import Backend, Backends
from proxy.upstream.limit_ticker import LimitTicker
from proxy.upstream.load_poller import LoadPoller

Task = tuple[str, Callable[[], Awaitable[None]]]
"""What it is called in the log, and what runs for ever."""

FIRST_LOOK_SECONDS = 2.0
"""How long starting waits for the engines to say what they serve; one that is slow is asked again later."""

RESTART_SECONDS = 1.0  # until what raised begins anew


def watch(
    settings: Settings,
    backends: Backends,
    others: Iterable[Task],
    loop: asyncio.AbstractEventLoop,
    log: Log,
    fault: Fault,
    stack: AsyncExitStack,
) -> None:
    """Start the tasks that look at engines, and `others` by name; the stack's end ends them."""
    paced = settings.max_inflight == 0
    load = LoadPoller(
        lambda: backends.all,
        every=settings.load_seconds or settings.refresh_seconds,
        weight=settings.load_weight if settings.load_seconds else 0.0,
        spare=settings.refresh_seconds,
        on_start=backends.started,
        clock=loop.time,
    )
    tasks: list[Task] = [
        ("the watch on engines", lambda: backends.watch(settings.refresh_seconds)),
        ("the watch on engines' load", load.run),
        *others,
    ]
    if paced:

        def told(engine: Backend, limit: int) -> None:
            log.event("info", "engine pace", backend=engine.name, max_inflight=limit)

        pace = LimitTicker(
            lambda: backends.all, clock=time.monotonic, on_room=lambda: backends.capacity_changed(), on_large=told
        )
        tasks.append(("the pacers' ticks", pace.run))
    for name, run in tasks:
        stack.push_async_callback(_stop, asyncio.create_task(for_ever(name, run, fault)))


async def for_ever(name: str, run: Callable[[], Awaitable[None]], fault: Fault) -> None:
    """Run what never ends. Where it raises it is reported, and begins anew: engines go on being looked at."""
    while True:
        try:
            await run()
        except Exception as e:  # noqa: BLE001 - a task's border: its exception would else be seen by nobody
            fault(name, e)
        await asyncio.sleep(RESTART_SECONDS)


async def each(seconds: float, look: Callable[[], None]) -> None:
    """Look, and again after so many seconds, for ever."""
    while True:
        look()
        await asyncio.sleep(seconds)


async def first_look(backends: Backends) -> None:
    try:
        async with asyncio.timeout(FIRST_LOOK_SECONDS):
            await backends.refresh()
    except TimeoutError:
        pass  # the watch asks again; meanwhile they are tried as they are


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

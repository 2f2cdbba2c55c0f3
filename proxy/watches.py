"""Owns what looks at something time and again, as tasks: engines' health, load and pace, files, keys that expire.
Must not know what is done with what they see.
Called by the app at start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial

from proxy.config.file_watch import FileWatch
from proxy.config.settings import Settings
from proxy.flights.shapes import Shapes
from proxy.flights.watchdog import Watchdog
from proxy.reload import Reload
from proxy.telemetry.containment import Fault
from proxy.telemetry.log import Log
from proxy.upstream.backends import Backend, Backends
from proxy.upstream.fleet import Fleet
from proxy.upstream.limit_ticker import PaceWatch
from proxy.upstream.load_poller import LoadWatch

FIRST_LOOK_SECONDS = 2.0
"""How long starting waits for the engines to say what they serve; one that is slow is asked again later."""

RESTART_SECONDS = 1.0  # until what raised begins anew


def watch(
    settings: Settings,
    fleet: Fleet,
    shapes: Shapes,
    reload: Reload | None,
    files: FileWatch,
    expiring: Sequence[tuple[str, float, Callable[[], None]]],
    watchdog: Watchdog,
    loop: asyncio.AbstractEventLoop,
    log: Log,
    fault: Fault,
    stack: AsyncExitStack,
) -> None:
    """Begin to look; the stack's end ends it. `expiring`: what ends with time, each by name, with its seconds
    between two looks."""
    tasks: list[asyncio.Task[None]] = []
    backends = fleet.backends

    def begin(name: str, run: Callable[[], Awaitable[None]]) -> None:
        tasks.append(asyncio.create_task(for_ever(name, run, fault)))

    begin("the watch on engines", lambda: backends.watch(settings.refresh_seconds))
    begin("the watchdog", watchdog.run)
    if settings.probe == "on":
        begin("the probes of engines' answers", shapes.run)
    paced = settings.max_inflight == 0
    load = LoadWatch(
        lambda: backends.all,
        every=settings.load_seconds or settings.refresh_seconds,
        weight=settings.load_weight if settings.load_seconds else 0.0,
        spare=settings.refresh_seconds,
        on_start=backends.started,
        clock=loop.time,
    )
    begin("the watch on engines' load", load.run)
    if paced:

        def told(engine: Backend, limit: int) -> None:
            log.event("info", "engine pace", backend=engine.name, max_inflight=limit)

        pace = PaceWatch(
            lambda: backends.all, clock=time.monotonic, on_room=lambda: backends.on_release(), on_large=told
        )
        begin("the pacers' ticks", pace.run)
    if reload is not None:
        begin("the change of engines", reload.run)
    begin("the watch on files", files.run)
    for name, seconds, look in expiring:
        begin(name, partial(each, seconds, look))
    for task in tasks:
        stack.push_async_callback(_stop, task)


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

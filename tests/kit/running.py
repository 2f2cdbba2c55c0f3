"""Owns running the gateway in a test's own loop, against engines the test made.
Must not know what a test checks.
Called by tests of the app over loopback."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from proxy.app import App, running
from proxy.config.settings import Settings
from proxy.telemetry.log import Log
from tests.kit.engine import Engine

HELLO = {"model": "m1", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
TURNS = 500
HELLO_STREAM = HELLO | {"stream": True}
DEFAULTS: dict[str, Any] = {
    "port": 0,
    "redis": "off",
    "redis_timeout_ms": 5000,  # on a busy machine a look-up may take longer than the default, and is a miss then
    "drain_timeout": 1.0,
    "keepalive_seconds": 0.0,  # on a busy machine an error may come later than the first one, as a frame then
    "probe": "off",
}
PATIENT = {"GATEWAY_REDIS_TIMEOUT_MS": str(DEFAULTS["redis_timeout_ms"])}
"""The same for a gateway that a test starts as a process; its flags come first."""


@asynccontextmanager
async def gateway(*engines: Engine | str, log_to: Path | None = None, **changes: Any) -> AsyncIterator[App]:
    """The gateway on a free port of loopback, without Redis unless told. `changes` are settings."""
    urls = tuple(engine if isinstance(engine, str) else engine.url for engine in engines)
    chosen = DEFAULTS | {"backends": urls} | changes
    settings = Settings(**chosen)
    fd = os.open(log_to or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = Log(fd, settings.log_format, settings.log_level)
    try:
        async with running(settings, log) as app:
            await until(lambda: settings.probe == "off" or app.shapes.settled)
            if settings.redis != "off":  # before the first look at an engine nothing is stored
                await until(lambda: all(backend.up is not None for backend in app.backends.all))
            yield app
        assert len(app.group) == 0, f"flights are left: {app.group!r}"
        assert all(backend.inflight == 0 for backend in app.backends.all), repr(app.backends)
        assert len(app.scheduler.queue) == 0, repr(app.scheduler)
        assert app.watchdog.healed == 0, repr(app.watchdog)
        assert app.embedder is None or len(app.embedder) == 0, repr(app.embedder)
        assert app.admission is None or app.admission.limiter.local.streams == 0, repr(app.admission.limiter)
    finally:
        log.close(30)
        os.close(fd)


async def until(fact: Callable[[], bool]) -> None:
    """Turns of the loop until the fact holds; bounded by the test's own timeout. After `TURNS` it looks each
    millisecond: the fact then depends on a clock or on another process, which needs the CPU."""
    turns = 0
    while not fact():
        await asyncio.sleep(0 if turns < TURNS else 0.001)
        turns += 1


async def pause() -> None:
    """Between two questions about another process or a clock: asked without one, they keep a CPU busy."""
    await asyncio.sleep(0.01)


def lines(path: Path) -> list[dict[str, Any]]:
    """The log's whole lines, decoded. Another process may be in the middle of its last one."""
    return [msgspec.json.decode(line) for line in path.read_bytes().rpartition(b"\n")[0].splitlines()]

"""Owns the watch on the settings file: read anew when it changes or on demand; only the engines change with it.
Must not know engines: it hands their URLs on.
Called by the app (one task) and by the program (SIGHUP)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields
from typing import Final

from proxy.config import Settings
from proxy.errors import SettingsError
from proxy.log import Log

EVERY: Final = 1.0  # seconds between two looks at the file

Mark = tuple[int, int, int] | None


def mark_of(path: str) -> Mark:
    """What changes when a file does, also when it is replaced (as a ConfigMap is); None where there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


class Reload:
    """The settings that hold now, and the file that may change them."""

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        apply: Callable[[Sequence[str]], Awaitable[None]],
        log: Log,
        *,
        mark: Callable[[str], Mark] = mark_of,
    ) -> None:
        self._settings = settings
        self._read = read  # all sources, in their order: a flag still wins over the file
        self._apply = apply
        self._log = log
        self._mark = mark
        self._seen = mark(settings.config)
        self._asked = asyncio.Event()

    def wake(self) -> None:
        """Read it now, changed or not."""
        self._asked.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                async with asyncio.timeout(EVERY):
                    await self._asked.wait()
            except TimeoutError:
                pass
            mark = self._mark(self._settings.config)
            if self._asked.is_set() or mark != self._seen:
                self._asked.clear()
                self._seen = mark
                await self.look()

    async def look(self) -> None:
        """Read the settings and change the engines. What is wrong is told, and nothing changes."""
        try:
            settings = self._read()
            if self._settings.backends and not settings.backends:
                raise SettingsError("no engine is named: `backends` must have at least one while running")
        except SettingsError as e:
            self._log.event("warning", "settings refused", detail=str(e))
            return
        ours = {"backends", "warnings"}
        others = [
            f.name
            for f in fields(Settings)
            if f.name not in ours and getattr(settings, f.name) != getattr(self._settings, f.name)
        ]
        if others:
            self._log.event("warning", "settings need a restart", detail=", ".join(others))
        if settings.backends:  # none: the embedded engine goes on
            await self._apply(settings.backends)

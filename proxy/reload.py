"""Owns what a settings file that has changed changes while it runs: only the engines.
Must not know engines: it hands their URLs on; nor how a change of the file is noticed.
Called by the watch on files (load, take) and by the app (one task)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields

from proxy.config.settings import Settings
from proxy.errors import SettingsError
from proxy.telemetry.log import Log


class Reload:
    """The settings that hold now, and those of the file that may change them."""

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        apply: Callable[[Sequence[str]], Awaitable[None]],
        log: Log,
    ) -> None:
        self._settings = settings
        self._read = read  # all sources, in their order: a flag still wins over the file
        self._apply = apply
        self._log = log
        self._engines = tuple(settings.backends)
        self._new: tuple[str, ...] | None = None
        self._taken = asyncio.Event()

    def load(self) -> Callable[[], str]:
        """Read the settings, in a thread; what puts them in force. Raises SettingsError."""
        settings = self._read()
        if self._settings.backends and not settings.backends:
            raise SettingsError("no engine is named: `backends` must have at least one while running")
        return lambda: self.take(settings)

    def take(self, settings: Settings) -> str:
        """The engines change soon; what else is new is told to need a restart."""
        ours = {"backends", "warnings"}
        others = [
            f.name
            for f in fields(Settings)
            if f.name not in ours and getattr(settings, f.name) != getattr(self._settings, f.name)
        ]
        if others:
            self._log.event("warning", "settings need a restart", detail=", ".join(others))
        if not settings.backends:  # none: the embedded engine goes on
            return "nothing that changes while it runs"
        self._new = settings.backends
        self._taken.set()
        before, self._engines = self._engines, tuple(settings.backends)
        added, removed = set(self._engines) - set(before), set(before) - set(self._engines)
        return f"{len(added)} engines added, {len(removed)} removed"

    async def run(self) -> None:
        """For ever. Not where files are looked at: a new engine may take its time to say what it serves."""
        while True:
            await self._taken.wait()
            self._taken.clear()
            urls, self._new = self._new, None
            if urls is not None:
                await self._apply(urls)

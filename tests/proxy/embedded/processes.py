"""Owns how these tests see processes: by pidfd, which names one process and not its number's next owner.
Must not know what the processes do.
Called by the tests of the supervisor, the engine and Redis."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable

from tests.kit.patience import Patience, patience

DEADLINE = 20.0  # seconds: a loaded machine is slow, and a fact that never comes is a failure


class Watched:
    """A process as it is now; `gone` waits for its end, whoever its parent is."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def gone(self, seconds: float = DEADLINE) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        waiting = Patience(seconds)
        while not (ended := bool(poll.poll(waiting.step() * 1000))) and waiting.left:
            pass
        os.close(self._fd)
        return ended


class Events:
    """What a supervised child told: an `on_event` that can be awaited."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self._more = asyncio.Event()

    def __call__(self, event: str, detail: str) -> None:
        self.told.append((event, detail))
        self._more.set()

    def details(self, event: str) -> list[str]:
        return [detail for name, detail in self.told if name == event]

    async def until(self, fact: Callable[[], bool]) -> None:
        async with patience(DEADLINE):
            while not fact():
                self._more.clear()
                await self._more.wait()

"""Owns what signals mean: the first SIGTERM or SIGINT ends well, the second at once, SIGHUP reads again.
Must not know what is ended or read.
Called by `__main__`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

ENDS: Final = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """While it is entered, signals are taken for the task that entered it. `stop` is set by the first that ends;
    the second cancels the task, and so does the first while nothing runs that could end well."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self._reload: Callable[[], object] | None = None
        self._task: asyncio.Task[object] | None = None

    def __repr__(self) -> str:
        return f"<Signals {'stopping' if self.stop.is_set() else 'running' if self._reload else 'starting'}>"

    def running(self, reload: Callable[[], object]) -> None:
        """From now on there is something to end well, and to read again."""
        self._reload = reload

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in ENDS:
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in (*ENDS, signal.SIGHUP):
            loop.remove_signal_handler(number)
        for number in (*ENDS, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # what is left takes milliseconds: nobody need interrupt it

    def _end(self) -> None:
        if (self._reload is None or self.stop.is_set()) and self._task is not None:
            self._task.cancel()
        self.stop.set()

    def _hang_up(self) -> None:
        if self._reload is not None and not self.stop.is_set():
            self._reload()

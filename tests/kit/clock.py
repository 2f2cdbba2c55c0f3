"""Owns virtual time for loop-only tests: when nothing is ready, the clock jumps to the next timer.
Must not know the proxy. Never with sockets, threads or subprocesses: their I/O would look like idleness.
Called by tests: `@virtual` on an async test, or `run_virtual(coroutine)` inside a property."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from tests.kit.leaks import check_tasks

P = ParamSpec("P")
T = TypeVar("T")


class Deadlock(Exception):
    """Nothing is ready and no timer is set: the loop would wait for ever."""


class _JumpingSelector(selectors.DefaultSelector):
    """Asked to wait, it moves the clock on instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise Deadlock(f"at {self.now:g} s nothing is ready and no timer is set")
        if not ready and timeout is not None:
            self.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` starts at 0 and passes only when everything waits."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_virtual(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run in virtual time. Raises Deadlock where it would hang; fails if it leaves a task running."""

    async def checked() -> T:
        result = await coroutine
        await check_tasks()
        return result

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(checked())


def virtual(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Turns an async test into one that pytest runs in virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_virtual(test(*args, **kwargs))

    return run

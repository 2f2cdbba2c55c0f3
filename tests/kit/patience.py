"""How long a test waits before it reports a hang. A busy machine gets more time than the clock alone would give.

A second in which a runnable task waited for a CPU counts as `SHARE` of a second. Linux counts that time
(`/proc/pressure/cpu`); where it is not counted, the load average of the last minute decides. Time in which the
process itself, or the whole machine, stood still is not counted.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

PRESSURE: Final = "/proc/pressure/cpu"
SHARE: Final = (
    0.1  # of a second in which somebody waited for a CPU: a hang on a busy machine is told ten times later
)
LEAST: Final = 0.05  # seconds between two looks, at least
STEP: Final = 0.5  # and at most: a look later than that means that the process stood still


def contended() -> float | None:
    """Seconds since boot in which a runnable task waited for a CPU. None where Linux does not count it."""
    try:
        with open(PRESSURE) as pressure:
            return int(pressure.readline().rsplit("total=", 1)[1]) / 1e6
    except (OSError, IndexError, ValueError):
        return None


class Patience:
    """`seconds` of a machine that has a CPU for everyone. `clock` in seconds, of a loop or of the system."""

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        waited: Callable[[], float | None] = contended,
    ) -> None:
        self.seconds = seconds
        self._clock = clock
        self._waited = waited
        self._began = clock()
        self._contended = waited()
        self._stood_still = 0.0
        self._due = math.inf

    def step(self) -> float:
        """Seconds to wait until the next call, `STEP` at most; 0 when they are over. A machine was seen to stand
        still for a minute: what passes after those seconds is not counted."""
        now = self._clock()
        self._stood_still += max(0.0, now - self._due)
        step = min(self.left, STEP)
        self._due = now + step
        return step

    @property
    def left(self) -> float:
        """Seconds that are left; 0 when they are over."""
        elapsed = self._clock() - self._began - self._stood_still
        now = self._waited()
        if now is None or self._contended is None:
            busy = elapsed if os.getloadavg()[0] > (os.cpu_count() or 1) else 0.0
        else:
            busy = min(now - self._contended, elapsed)
        left = self.seconds - elapsed + (1 - SHARE) * busy
        return max(left, LEAST) if left > 0 else 0.0


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """Like `asyncio.timeout`.

    Raises:
        TimeoutError: the body has not ended within `seconds` of patience.
    """
    loop = asyncio.get_running_loop()
    waiting = Patience(seconds, loop.time)
    timer: asyncio.TimerHandle
    async with asyncio.timeout(None) as limit:

        def look() -> None:
            nonlocal timer
            if step := waiting.step():
                timer = loop.call_later(step, look)
            else:
                limit.reschedule(loop.time())

        look()
        try:
            yield
        finally:
            timer.cancel()


def run_process(
    command: Sequence[str | Path], *, seconds: float, input: Any = None, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Like `subprocess.run` with a timeout. `options` are Popen's, `capture_output` and `check` too.

    Raises:
        subprocess.TimeoutExpired: the process has not ended within `seconds` of patience; it is killed.
    """
    check = options.pop("check", False)
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    waiting = Patience(seconds)
    step = waiting.step()
    with subprocess.Popen(command, **options) as process:
        while True:
            try:
                out, errors = process.communicate(input, timeout=step)
                break
            except subprocess.TimeoutExpired:
                input = None  # `communicate` goes on with what it was given first
                if not (step := waiting.step()):
                    process.kill()
                    raise
            except BaseException:
                process.kill()
                raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, errors)
    if check:
        done.check_returncode()
    return done


class Alarm:
    """The bound of a whole test, by SIGALRM in the main thread: calls `expired` when they are over."""

    def __init__(self, seconds: float, expired: Callable[[], None]) -> None:
        self._waiting = Patience(seconds)
        self._expired = expired
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, self._waiting.step())

    def _look(self, _number: int, _frame: Any) -> None:
        if step := self._waiting.step():
            signal.setitimer(signal.ITIMER_REAL, step)
        else:
            self._expired()

    def cancel(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

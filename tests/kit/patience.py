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
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

PRESSURE: Final = "/proc/pressure/cpu"
SHARE: Final = (
    0.1  # of a second in which somebody waited for a CPU: a hang on a busy machine is told ten times later
)
LEAST: Final = 0.05  # seconds between two looks, at least
STEP: Final = 0.5  # and at most: a look later than that means that the process stood still


class Recent:
    """A reading that is taken again after `LEAST` seconds at the earliest."""

    def __init__(self, read: Callable[[], float | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._until = -math.inf
        self._value: float | None = None

    def __call__(self) -> float | None:
        now = self._clock()
        if now >= self._until:
            self._value = self._read()
            self._until = now + LEAST
        return self._value


def contended() -> float | None:
    """Seconds since boot in which a runnable task waited for a CPU. None where Linux does not count it."""
    try:
        with open(PRESSURE) as pressure:
            return int(pressure.readline().rsplit("total=", 1)[1]) / 1e6
    except (OSError, IndexError, ValueError):
        return None


recently_contended: Final = Recent(contended)


class Patience:
    """`seconds` of a machine that has a CPU for everyone. `clock` in seconds, of a loop or of the system."""

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        waited: Callable[[], float | None] = recently_contended,
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


class patience:
    """Like `asyncio.timeout`: the body may take `seconds` of patience.

    Raises:
        TimeoutError: it has taken longer.
    """

    __slots__ = ("_limit", "_loop", "_timer", "_waiting")

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting = Patience(seconds, self._loop.time)
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._timer = self._loop.call_later(self._waiting.step(), self._look)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def _look(self) -> None:
        if step := self._waiting.step():
            self._timer = self._loop.call_later(step, self._look)
        else:
            self._limit.reschedule(self._loop.time())


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

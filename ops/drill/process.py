"""A child process that prints its address on stderr; stderr is drained while it lives, and it ends with the
block."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

LINES: Final = 50  # lines of stderr kept for an error message
END_SECONDS: Final = 5.0


class Process:
    """A child process that listens."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child
        self.address = ""
        self.said: deque[str] = deque(maxlen=LINES)
        self.listens = asyncio.Event()

    def send(self, number: signal.Signals) -> None:
        """Send a signal if it is still running."""
        if self.child.returncode is None:
            self.child.send_signal(number)

    async def read(self, pattern: re.Pattern[str]) -> None:
        """Read its stderr to the end, since it would block otherwise; the address is the pattern's first group."""
        assert self.child.stderr is not None
        async for line in self.child.stderr:
            text = line.decode(errors="replace").rstrip()
            self.said.append(text)
            found = pattern.search(text)
            if found and not self.address:
                self.address = found[1]
                self.listens.set()
        self.listens.set()  # it has exited

    async def kill(self) -> None:
        """Kill it."""
        self.send(signal.SIGKILL)
        await self.child.wait()


@asynccontextmanager
async def started(
    words: Sequence[str], listens: re.Pattern[str], patience: float, *, stdout: int | None = None
) -> AsyncIterator[Process]:
    """Run the program until the block ends, which begins when the program has printed its address. Raises
    RuntimeError with the end of its output if that takes longer than `patience` seconds."""
    child = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL if stdout is None else stdout,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    process = Process(child)
    reading = asyncio.create_task(process.read(listens))
    try:
        try:
            async with asyncio.timeout(patience):
                await process.listens.wait()
        except TimeoutError:
            pass
        if not process.address:
            raise RuntimeError(f"{words[0]} does not listen: " + "\n".join(process.said))
        yield process
    finally:
        process.send(signal.SIGCONT)
        process.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(END_SECONDS):
                await child.wait()
        except TimeoutError:
            await process.kill()
        await reading

"""A supervised child process: started, awaited until it serves, restarted when it dies, never left behind."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from proxy.errors import StartError

TAIL_LINES = 50  # of its output that are kept
SHOWN_LINES = 5  # of these that are reported
LINE_CHARS = 300  # of a line that are kept
READ_BYTES = 4096
PATIENCE = 30.0  # default time to serve, seconds
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds before a restart: doubled each time, with full jitter
LOOK_EVERY = 0.02  # seconds between two checks of `serves`
SETTLED = 5.0  # seconds of uptime after which the pause is reset
GRACE = 2.0  # seconds for a child to end after SIGTERM, and for reading the rest of its output


class ChildFailed(StartError):
    """A child did not come up; the message has the end of its output. `status`: its exit code, if it had one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Child:
    """One supervised process. `serves` is polled until it returns True."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        serves: Callable[[], Awaitable[bool]],
        *,
        on_event: Callable[[str, str], None] = lambda event, detail: None,
        patience: float = PATIENCE,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.restarts = 0
        self._command = command
        self._serves = serves
        self._on_event = on_event
        self._patience = patience
        self._jitter = jitter
        self._process: asyncio.subprocess.Process | None = None
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "up" if self._process is not None and self._process.returncode is None else "down"
        return f"<Child {self.name} {state} restarts={self.restarts}>"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start it and wait until it serves. Raises ChildFailed with the end of its output; no process is left."""
        up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep(up))
        try:
            await asyncio.shield(up)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End it, and the task that restarts it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self, up: asyncio.Future[None]) -> None:
        pause = FIRST_PAUSE
        loop = asyncio.get_running_loop()
        while True:
            born = loop.time()
            try:
                await self._run(up)
            except (ChildFailed, OSError) as e:  # OSError: fork or exec failed
                if not up.done():
                    up.set_exception(e if isinstance(e, ChildFailed) else ChildFailed(f"{self.name}: {e}"))
                    return
                self._on_event("failed", str(e))
            if loop.time() - born > SETTLED:
                pause = FIRST_PAUSE
            self.restarts += 1
            wait = pause * self._jitter()
            pause = min(pause * 2, LONGEST_PAUSE)
            self._on_event("died", f"restart in {wait:.2f} s; its last output: {self._said()}")
            await asyncio.sleep(wait)

    async def _run(self, up: asyncio.Future[None]) -> None:
        """Run the process once: returns when it has served and ended. Raises ChildFailed if it did not serve."""
        self._tail.clear()
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "proxy.embedded.launch",
            str(os.getpid()),
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only the gateway, which drains while its children serve
        )
        reading = asyncio.create_task(self._read(process))
        failed: str | None = None
        try:
            failed = await self._until_it_serves(process)
            if failed is None:
                self._on_event("up", f"pid {process.pid}")
                if not up.done():
                    up.set_result(None)
                await process.wait()
        finally:
            try:
                await self._end(process)
                await asyncio.wait({reading}, timeout=GRACE)  # a grandchild may hold the pipe open
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        if failed is not None:
            raise ChildFailed(f"{self.name} {failed}: {self._said()}", process.returncode)

    async def _until_it_serves(self, process: asyncio.subprocess.Process) -> str | None:
        """None once it serves, else the reason of the failure."""
        try:
            async with asyncio.timeout(self._patience):
                while process.returncode is None:
                    if await self._serves() and process.returncode is None:
                        return None
                    await asyncio.sleep(LOOK_EVERY)
        except TimeoutError:
            return f"did not serve within {self._patience:g} s"
        return f"ended with status {process.returncode}"

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Keep the last lines. Reads until the end, so that the child never blocks on a full pipe."""
        assert process.stdout is not None
        while data := await process.stdout.read(READ_BYTES):
            self._tail.extend(line[:LINE_CHARS] for line in data.decode("utf-8", "replace").splitlines() if line)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        try:
            process.terminate()
            async with asyncio.timeout(GRACE):
                await process.wait()
        except (TimeoutError, ProcessLookupError):
            pass
        finally:  # also when this wait is cancelled
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
        await process.wait()

    def _said(self) -> str:
        return " | ".join(list(self._tail)[-SHOWN_LINES:]) or "nothing"

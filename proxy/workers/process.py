"""One worker process, as the supervisor sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from proxy.workers.channel import Channel, FromWorker, Hello, Leave, Ready, ToWorker, to_worker

CHANNEL: Final = "STREAMING_GATEWAY_CHANNEL"
"""The environment variable that holds the number of a worker's channel descriptor."""
SILENT: Final = 15.0
"""Seconds without a report, after which a worker is killed: it reports several times a second."""


class WorkerProcess:
    """Started, talked to, ended. Knows nothing of the others."""

    def __init__(
        self,
        index: int,
        *,
        on_message: Callable[[WorkerProcess, FromWorker], None],
        clock: Callable[[], float],
    ) -> None:
        self.index = index
        self.pid = 0
        self.ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self.heard = clock()
        self.leaving = False
        self._on_message = on_message
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel[FromWorker] | None = None
        self._reading: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "starting" if not self.ready.done() else "leaving" if self.leaving else "serving"
        return f"<WorkerProcess {self.index} pid={self.pid} {state}>"

    @property
    def serving(self) -> bool:
        return self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None

    async def start(self, arguments: Sequence[str], hello: Hello, log: int) -> None:
        """Start the process. `log`: the descriptor that its standard output goes to. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "proxy",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                env={**os.environ, CHANNEL: str(theirs.fileno())},
                pass_fds=(theirs.fileno(), *hello.listen, *hello.admin),
                start_new_session=True,  # Ctrl-C reaches the supervisor, which drains all
            )
            self.pid = self._process.pid
            self._channel = await to_worker(ours)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel.send(hello)
        self._reading = asyncio.create_task(self._read(self._channel))

    async def ended(self) -> int:
        """Wait for its end. Returns the exit code; negative: the signal that ended it."""
        assert self._process is not None
        code = await self._process.wait()
        if self._reading is not None:
            await self._reading  # its last message
        if self._channel is not None:
            self._channel.close()
        return code

    def leave(self) -> None:
        """Another process has its place."""
        self.leaving = True
        self.send(Leave())

    def excuse(self) -> None:
        """Its silence until now does not count: this process was paused."""
        self.heard = self._clock()

    def send(self, message: ToWorker) -> None:
        if self._channel is not None:
            self._channel.send(message)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _read(self, channel: Channel[FromWorker]) -> None:
        while (message := await channel.receive()) is not None:
            self.heard = self._clock()
            if isinstance(message, Ready):
                if not self.ready.done():
                    self.ready.set_result(message)
            else:
                self._on_message(self, message)

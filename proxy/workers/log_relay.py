"""The log of all processes on one descriptor: whole lines of each, in the order in which they come."""

from __future__ import annotations

import os
import select
import threading
from typing import Final

READ: Final = 256 * 1024
MAX_LINE: Final = 4 * 1024 * 1024  # bytes; a longer one is written in parts


class LogRelay:
    """Copies pipes to one descriptor, a thread each. Where its reader is slow the threads wait, the pipes fill,
    and each process drops lines by its own rules, as it does alone."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def pipe(self) -> int:
        """A descriptor to write to. The relay ends once all its holders have closed it."""
        reading, writing = os.pipe()
        thread = threading.Thread(target=self._copy, args=(reading,), name="log relay", daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)
        thread.start()
        return writing

    def join(self, seconds: float) -> None:
        """Wait for what has been written, once the writers have closed."""
        for thread in self._threads:
            thread.join(seconds)

    def _copy(self, reading: int) -> None:
        rest = b""
        try:
            while data := os.read(reading, READ):
                rest += data
                end = len(rest) if len(rest) > MAX_LINE else rest.rfind(b"\n") + 1
                if end:
                    self._write(rest[:end])
                    rest = rest[end:]
            if rest:
                self._write(rest + b"\n")
        except OSError:
            pass  # the reader of the log is gone; the process that writes to the pipe notices
        finally:
            os.close(reading)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        with self._lock:
            while view:
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:  # another process has made it non-blocking
                    poll = select.poll()
                    poll.register(self._fd, select.POLLOUT)
                    poll.poll()

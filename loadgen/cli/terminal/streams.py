"""Standard streams whose reader may be slow, gone or full: a write ends within a time limit and never raises, so
that no measurement waits for a terminal. Control characters, such as those of a server's error, are escaped."""

from __future__ import annotations

import errno
import io
import os
import re
import select
import sys
import time
from collections.abc import Callable
from typing import Any, Final

SECONDS: Final = 2.0  # limit on the time to write one text
PIECE: Final = 4096  # bytes that a writable pipe takes at once (PIPE_BUF)
FAILED: Final = 1
GONE: Final = os.strerror(errno.EPIPE)  # the reader has closed the pipe: `| head`
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class _Descriptor(io.FileIO):
    """Unbuffered, so that nothing is left to flush at exit."""

    def __init__(self, fd: int, seconds: float) -> None:
        super().__init__(fd, "w", closefd=False)
        self._seconds = seconds
        self.lost = ""  # why a write failed; later texts are dropped

    def write(self, data: Any) -> int:
        if not self.lost:
            self.lost = self._put(data)
        return len(data)

    def _put(self, data: bytes) -> str:
        """Write all of it. Returns why it failed, or ""."""
        until = time.monotonic() + self._seconds
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        rest = memoryview(data)
        try:
            while rest:
                if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                    return "nobody reads it"
                try:
                    rest = rest[os.write(self.fileno(), rest[:PIECE]) :]
                except BlockingIOError:
                    continue
        except OSError as e:
            return e.strerror or str(e)
        return ""


class Stream(io.TextIOWrapper):
    """Replaces `sys.stdout` or `sys.stderr`."""

    def __init__(self, fd: int, seconds: float = SECONDS) -> None:
        self._descriptor = _Descriptor(fd, seconds)
        super().__init__(self._descriptor, "utf-8", "backslashreplace", write_through=True)

    def write(self, text: str) -> int:
        super().write(_CONTROL.sub(lambda found: ascii(found[0])[1:-1], text))
        return len(text)

    @property
    def lost(self) -> str:
        """Why what was written is lost, or ""."""
        return self._descriptor.lost


def hold() -> None:
    """Open /dev/null if stdin, stdout or stderr is closed: otherwise the next socket would get its number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one


def run(main: Callable[[], int]) -> int:
    """The exit code of `main`, or 1 if it succeeded but its output to stdout was lost."""
    hold()
    out, err = Stream(1), Stream(2)
    sys.stdout, sys.stderr = out, err
    try:
        code = main()
    except SystemExit as e:  # argparse has printed why
        if e.code is not None and not isinstance(e.code, int):
            raise
        code = e.code or 0
    if out.lost and out.lost != GONE and code == 0:
        err.write(f"loadgen: stdout: {out.lost}\n")
        return FAILED
    return code

"""Standard streams whose reader may be slow, gone or full: a write ends within a time limit and never raises, so
that no measurement waits for a terminal."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO, cast

SECONDS: Final = 2.0  # limit on the time to write one text
PIECE: Final = 4096  # bytes that a writable pipe takes at once (PIPE_BUF)
FAILED: Final = 1
GONE: Final = os.strerror(errno.EPIPE)  # the reader has closed the pipe: `| head`


class Stream(io.TextIOBase):
    """Replaces `sys.stdout` or `sys.stderr`. Unbuffered, so that nothing is left to flush at exit."""

    def __init__(self, fd: int, seconds: float = SECONDS) -> None:
        self._fd = fd
        self._seconds = seconds
        self.lost = ""  # why a write failed; later texts are dropped

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not self.lost:
            self.lost = self._put(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def _put(self, data: bytes) -> str:
        """Write all of it. Returns why it failed, or ""."""
        until = time.monotonic() + self._seconds
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        rest = memoryview(data)
        try:
            while rest:
                if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                    return "nobody reads it"
                try:
                    rest = rest[os.write(self._fd, rest[:PIECE]) :]
                except BlockingIOError:
                    continue
        except OSError as e:
            return e.strerror or str(e)
        return ""


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
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
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

"""Standard streams for the commands of this package, whose reader may be slow, gone or full: a write ends in
bounded time and never raises."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO, cast

from proxy.telemetry.terminal import hold_standard_files, visible

SECONDS: Final = 2.0  # for one write
PIECE: Final = 4096  # bytes that a writable pipe accepts at once (PIPE_BUF)
FAILED: Final = 1  # exit code of a program whose output is lost
GONE: Final = os.strerror(errno.EPIPE)  # its reader has read enough, as in `| head`


class Stream(io.TextIOBase):
    """Replaces `sys.stdout` or `sys.stderr`, unbuffered: nothing is flushed as the interpreter exits."""

    def __init__(self, fd: int, seconds: float = SECONDS) -> None:
        self._fd = fd
        self._seconds = seconds
        self.lost = ""  # why a write failed; later writes are dropped

    def __repr__(self) -> str:
        return f"<Stream {self._fd} {self.lost or 'works'}>"

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
            self.lost = self._put(visible(text).encode("utf-8", "backslashreplace"))
        return len(text)

    def _put(self, data: bytes) -> str:
        """Write all of it. Returns the reason of a failure, or ""."""
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


def run(name: str, main: Callable[[], int], *, both: bool = False) -> int:
    """Run a command: the exit code of `main`, or 1 where that is 0 and its stdout is lost (`both`: or its
    stderr)."""
    hold_standard_files()
    out, err = Stream(1), Stream(2)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        code = main()
    except SystemExit as e:  # of argparse, which has printed why
        if e.code is not None and not isinstance(e.code, int):
            raise
        code = e.code or 0
    for stream, what in ((out, "stdout"), *(((err, "stderr"),) if both else ())):
        if stream.lost and stream.lost != GONE and code == 0:
            err.write(f"{name}: {what}: {stream.lost}\n")
            code = FAILED
    return code

"""Text for people on the terminal: messages on stderr, and the standard streams of the commands. Their reader may
be slow, gone or full: a write ends in bounded time and never raises."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, TextIO, cast

STDERR: Final = 2
SECONDS: Final = 2.0  # for one write
PIECE: Final = 4096  # bytes that a writable pipe accepts at once (PIPE_BUF)
FAILED: Final = 1  # exit code of a program whose output is lost
GONE: Final = os.strerror(errno.EPIPE)  # its reader has read enough, as in `| head`
SAY_SECONDS: Final = 1.0  # for printing why a program ends


def say(text: str, *, wait: float = 0.0, fd: int = STDERR) -> bool:
    """Write the text in a thread, waiting at most `wait` seconds. True: it is written, or cannot be.

    By the descriptor, not by `sys.stderr`: the interpreter takes the lock of `sys.stderr` as it exits, and aborts
    where a thread blocked in a write holds it.
    """
    data = visible(text).encode("utf-8", "backslashreplace")
    thread = threading.Thread(target=_write, args=(fd, data), name="terminal", daemon=True)
    thread.start()
    thread.join(wait)
    return not thread.is_alive()


def visible(text: str) -> str:
    """The text with control characters escaped, so that texts of engines and files cannot control the terminal."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def hold_standard_files() -> None:
    """Open /dev/null where stdin, stdout or stderr is closed: else the next socket gets that number, and output
    goes to a client or an engine."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    try:
        while rest:
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:  # another process has made the pipe non-blocking
                poll = select.poll()
                poll.register(fd, select.POLLOUT)
                poll.poll()
    except OSError:
        return  # the reader is gone


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

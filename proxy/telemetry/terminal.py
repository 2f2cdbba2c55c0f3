"""Messages for people on stderr, written by a thread: a terminal that nobody reads blocks nothing."""

from __future__ import annotations

import os
import select
import threading
from typing import Final

STDERR: Final = 2


def say(text: str, *, wait: float = 0.0, fd: int = STDERR) -> bool:
    """Write the text, waiting at most `wait` seconds. True: it is written, or cannot be.

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

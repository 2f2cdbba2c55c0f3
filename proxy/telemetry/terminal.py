"""Messages for people on stderr, written by a thread: a terminal that nobody reads blocks nothing."""

from __future__ import annotations

import os
import select
import threading
from typing import Final

STDERR: Final = 2


def say(text: str, *, wait: float = 0.0, fd: int = STDERR) -> bool:
    """Write the text, and wait at most `wait` seconds for that. True: it is written, or cannot be.

    By the descriptor, not by `sys.stderr`: the interpreter takes that one's lock as it ends, and aborts where a
    thread that is stuck in a write holds it.
    """
    data = visible(text).encode("utf-8", "backslashreplace")
    thread = threading.Thread(target=_write, args=(fd, data), name="terminal", daemon=True)
    thread.start()
    thread.join(wait)
    return not thread.is_alive()


def visible(text: str) -> str:
    """The text with what a terminal may obey written out: what an engine or a file says moves no cursor there."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def hold_standard_files() -> None:
    """Open /dev/null where stdin, stdout or stderr is closed: the next socket would else get its number, and what
    is written there would go to a client or an engine."""
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
            except BlockingIOError:  # whoever shares the pipe made it non-blocking
                poll = select.poll()
                poll.register(fd, select.POLLOUT)
                poll.poll()
    except OSError:
        return  # nobody reads it any more

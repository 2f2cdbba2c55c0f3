"""Sends to the log what Python and its libraries would write to stderr: errors of callbacks, tasks, threads and
destructors, warnings, and `logging`. stderr may be a pipe that nobody reads, where a write blocks the process."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final, NamedTuple

from proxy.errors import frames_of, words_of
from proxy.telemetry.log import Log
from proxy.terminal import say

MAX_WAITING: Final = 256  # faults queued for the log; more are counted
MAX_TEXT: Final = 500  # characters of one field
CLOSE_SECONDS: Final = 1.0


class _Fault(NamedTuple):
    level: str
    source: str  # loop, thread, destructor, or a logger's name
    detail: str
    fault: str
    where: str


class Faults:
    """Replaces Python's hooks from `install` until `uninstall`.

    A hook may be called by a destructor in the middle of anything, while any lock is held. So it takes no lock: it
    puts texts into a SimpleQueue, whose `put` is reentrant, and a thread logs them.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._queue: SimpleQueue[_Fault | None] = SimpleQueue()
        self._missed = 0
        self._handler = _Handler(self)
        self._thread = threading.Thread(target=self._log_for_ever, name="faults", daemon=True)
        self._before: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return f"<Faults waiting={self._queue.qsize()}>"

    def install(self) -> None:
        """Replace Python's hooks and the handlers of the root logger."""
        root = logging.getLogger()
        self._before = (sys.excepthook, sys.unraisablehook, threading.excepthook, root.handlers[:])
        sys.excepthook, sys.unraisablehook = _crashed, self._unraisable
        threading.excepthook = self._thread_failed
        for handler in root.handlers[:]:
            root.removeHandler(handler)
        root.addHandler(self._handler)
        logging.captureWarnings(True)
        self._thread.start()

    def uninstall(self) -> None:
        """Restore the hooks and handlers."""
        self.close()
        sys.excepthook, sys.unraisablehook, threading.excepthook, handlers = self._before
        logging.captureWarnings(False)
        root = logging.getLogger()
        root.removeHandler(self._handler)
        for handler in handlers:
            root.addHandler(handler)

    def close(self) -> None:
        """Log the queued faults, for at most CLOSE_SECONDS. The hooks stay: later faults must not go to stderr
        either."""
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)

    def of_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The event loop's exception handler."""
        error = context.get("exception")
        self.tell("error", "loop", context.get("message"), error if isinstance(error, BaseException) else None)

    def tell(self, level: str, source: str, detail: object, error: BaseException | None) -> None:
        """Queue one fault. Never raises, never blocks."""
        if self._queue.qsize() >= MAX_WAITING:
            self._missed += 1
            return
        fault = where = ""
        if error is not None:
            fault, where = words_of(error), frames_of(error)
        self._queue.put(_Fault(level, source[:MAX_TEXT], _text(detail), fault, where))

    # -- inside -----------------------------------------------------------------------------------

    def _unraisable(self, found: sys.UnraisableHookArgs) -> None:
        self.tell("error", "destructor", found.err_msg or "Exception ignored", found.exc_value)

    def _thread_failed(self, found: threading.ExceptHookArgs) -> None:
        self.tell("error", "thread", found.thread.name if found.thread is not None else "", found.exc_value)

    def _log_for_ever(self) -> None:
        while (one := self._queue.get()) is not None:
            with suppress(Exception):  # the thread must go on
                level, source, detail, fault, where = one
                like = f"{source} {(fault or detail)[:80]} {where}"
                self._log.often(level, "fault", like, source=source, detail=detail, fault=fault, where=where)
                if self._missed:
                    missed, self._missed = self._missed, 0
                    self._log.often("warning", "faults left out", count=missed)


class _Handler(logging.Handler):
    """Messages of libraries by `logging`, and warnings."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(logging.WARNING)
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        error = record.exc_info[1] if record.exc_info else None
        self._faults.tell(level, record.name, _Said(record), error)

    def handleError(self, record: logging.LogRecord) -> None:
        """Print no traceback on stderr."""


class _Said:
    """The message of a record, formatted only when it is logged."""

    def __init__(self, record: logging.LogRecord) -> None:
        self._record = record

    def __str__(self) -> str:
        return self._record.getMessage()


def _text(value: object) -> str:
    try:
        return str(value)[:MAX_TEXT] if value is not None else ""
    except Exception:  # noqa: BLE001 - `__str__` of a foreign object, or a message that does not fit its arguments
        return f"<{type(value).__name__}>"


def _crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The main thread ended by an exception: print it on the terminal."""
    say(f"proxy: {words_of(error)} at {frames_of(error)}\n", wait=CLOSE_SECONDS)

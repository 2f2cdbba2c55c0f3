"""Owns the log: one JSON line a request and a few for the process, written without ever holding the loop up.
Must not know requests or flights: it is given records.
Called by the gateway (requests) and the app (events)."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

LEVELS: Final = ("debug", "info", "warning", "error")
MAX_PENDING: Final = 4 * 1024 * 1024  # bytes of lines that may wait for a reader that does not keep up
_ENCODE: Final = msgspec.json.Encoder().encode


class RequestRecord(msgspec.Struct, omit_defaults=True):
    """What is logged of one request. Times in milliseconds."""

    request_id: str
    model_id: str | None
    endpoint: str
    method: str
    status: int
    verdict: str
    stream: bool
    queue_ms: float
    ttft_ms: float | None
    total_ms: float
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    token_source: str | None = None
    backend: str | None = None
    bytes_out: int = 0
    error: str | None = None
    client_left: bool = False
    prompt: str | None = None


class Log:
    """Lines to one file descriptor, by a thread of its own: a stalled pipe stalls the thread, not the loop.

    What waits is bounded; over it lines are dropped and counted.
    """

    def __init__(self, fd: int, fmt: str = "json", level: str = "info") -> None:
        self.dropped = 0
        self._fd = fd
        self._text = fmt == "text"
        self._level = LEVELS.index(level)
        self._lines: deque[bytes] = deque()
        self._put_bytes = 0  # grows in the loop's thread only
        self._gone_bytes = 0  # grows in the writer's thread only
        self._told = 0  # drops that a line has owned up to
        self._wanted = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._write_for_ever, name="log", daemon=True)
        self._thread.start()

    def request(self, record: RequestRecord) -> None:
        level = "warning" if record.status >= 500 or (record.error and not record.client_left) else "info"
        if LEVELS.index(level) >= self._level:
            self._put(level, "request", msgspec.structs.asdict(record))

    def event(self, level: str, msg: str, **fields: Any) -> None:
        if LEVELS.index(level) >= self._level:
            self._put(level, msg, fields)

    def _put(self, level: str, msg: str, fields: dict[str, Any]) -> None:
        stamp = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {name: value for name, value in fields.items() if value is not None and value != ""}
        if self._text:
            line = f"{stamp} {level.upper():7} {msg}" + "".join(
                f" {name}={_shown(v)}" for name, v in fields.items()
            )
            data = line.encode("utf-8", "backslashreplace") + b"\n"
        else:
            data = _ENCODE({"ts": stamp, "level": level, "msg": msg, **fields}) + b"\n"
        if self._put_bytes - self._gone_bytes + len(data) > MAX_PENDING:
            self.dropped += 1
            return
        self._lines.append(data)
        self._put_bytes += len(data)
        self._wanted.set()

    def _write_for_ever(self) -> None:
        while not (self._closing and not self._lines):
            self._wanted.wait()
            self._wanted.clear()
            while self._lines:
                lines = [self._lines.popleft() for _ in range(min(len(self._lines), 256))]
                size = sum(map(len, lines))
                if self.dropped > self._told:
                    lines.append(
                        _ENCODE({"level": "warning", "msg": "log lines dropped", "count": self.dropped}) + b"\n"
                    )
                    self._told = self.dropped
                data = b"".join(lines)
                try:
                    while data:
                        data = data[os.write(self._fd, data) :]
                except OSError:  # the reader is gone: the gateway is not
                    self.dropped += len(lines)
                    self._told = self.dropped
                self._gone_bytes += size

    def close(self, timeout: float = 1.0) -> None:
        """Write what waits, for at most `timeout` seconds."""
        self._closing = True
        self._wanted.set()
        self._thread.join(timeout)


def _shown(value: Any) -> str:
    """A value on one line of text, whatever is in it."""
    text = value if isinstance(value, str) else _ENCODE(value).decode()
    plain = text.isprintable() and " " not in text and '"' not in text and "=" not in text
    return text if plain else _ENCODE(text).decode()

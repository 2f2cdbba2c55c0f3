"""The log: one line per request and a few for the process, JSON or text, written by a thread so that the event
loop never blocks on a slow reader."""

from __future__ import annotations

import json
import math
import os
import re
import select
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Final

import msgspec

from proxy.config import Known, mask_url
from proxy.telemetry.fair_lines import FairLines
from proxy.telemetry.repeats import Repeats
from proxy.wire import settable

LEVELS: Final = ("debug", "info", "warning", "error")
MAX_PENDING: Final = 4 * 1024 * 1024  # bytes of lines that wait for a slow reader
MAX_PROMPT: Final = 64 * 1024  # characters of a prompt; a longer one is cut
MAX_FIELD: Final = 256 * 1024  # characters of one field of an event; a longer one is cut
PIECE: Final = 256 * 1024  # bytes written at once of the lines shared fairly
PACE: Final = (
    0.02  # seconds between two writes: waking for each line, the writer would compete with the loop for the GIL
)

_COLOUR: Final = {"debug": "\x1b[2m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_SLY: Final = re.compile(
    "[\x80-\x9f\xad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]"
)
"""Characters that JSON allows but that control a terminal, split lines, or are invisible."""

_DELETE: Final = 0x7F  # a number: bytes are searched for it in 2,000 instructions less than for b"\x7f"
_ENCODE: Final = msgspec.json.Encoder(enc_hook=str).encode
_MS: Final = tuple(b"%03dZ" % ms for ms in range(1000))
_REQUEST: Final = {level: f'","level":"{level}","msg":"request",'.encode() for level in LEVELS}


@settable
class RequestRecord(msgspec.Struct, omit_defaults=True, gc=False):
    """The log line of one request. Times in milliseconds. `ts`, `level` and `msg` come before it on the line.

    Positional arguments take 0.2 µs, keyword arguments 1.0.
    """

    request_id: str
    endpoint: str
    method: str
    status: int
    verdict: str  # hit, miss, attached, merged, bypass
    stream: bool
    queue_ms: float
    total_ms: float
    bytes_out: int
    client_left: bool
    model_id: str | None = None
    ttft_ms: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    token_source: str | None = None  # usage: engine count; estimated: share of it; events: gateway count
    backend: str | None = None
    error: str | None = None
    key: str | None = None  # the API key's name, never the key
    prompt: str | None = None  # only with log_prompts
    attempts: int = 1  # at engines
    items: int | None = None  # inputs of an embedding
    items_cached: int | None = None  # of these from Redis
    trace_id: str | None = None  # with tracing
    client: str | None = None  # client address of a refused request without a key
    limit: str | None = None  # the limit that refused it: requests, tokens, streams; prefix `global.`: everyone's
    upstream_id: str | None = None  # its id at the engine, where that is another
    continued: str | None = None  # how its stream was continued after it broke: replay
    asked_model: str | None = None  # the client's name for the model, where another one answers
    fallback_from: str | None = None  # the model that no engine could serve
    leader: str | None = None  # the gateway that fed the answer, where another did
    stream_name: str | None = None  # the first characters of the name by which its client may come back
    resumed_after: int | None = None  # events that a client had that came back


class Log:
    """Writes lines to one file descriptor from a thread: a stalled pipe blocks the thread, not the event loop.

    Pending lines are bounded in bytes; beyond that lines are dropped and counted, and a line reports the count
    once writing works. Thread-safe; never raises.
    """

    def __init__(
        self,
        fd: int,
        fmt: str = "json",
        level: str = "info",
        *,
        max_pending: int = MAX_PENDING,
        clock: Callable[[], float] = time.time,
        write: Callable[[int, memoryview], int] = os.write,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped = 0
        self._fd = fd
        self._text = fmt == "text"
        self._colour = self._text and os.isatty(fd)
        self._levels = frozenset(LEVELS[LEVELS.index(level) :])
        self._clock = clock
        self._os_write = write
        self._ticks = ticks
        self._stamped = (-1, b"")
        self._lock = threading.Lock()  # guards all below; never held while writing
        self._known = Known()
        self._free = max_pending // 2  # bytes open to all callers; the rest is shared fairly
        self._lines: list[bytes] = []
        self._crowd = FairLines(max_pending - self._free)
        self._pending = 0  # bytes pending or being written
        self._repeats = Repeats()
        self._told = 0  # drops that a line has reported
        self._works = True  # whether the last write succeeded
        self._torn = False  # the last write failed inside a line
        self._idle = False  # the writer waits for a line
        self._wanted = threading.Event()
        self._closed = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_for_ever, name="log", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Log pending={self._pending} dropped={self.dropped}>"

    def hide(self, secrets: Iterable[str]) -> None:
        """Remove these from every event from now on: messages of an engine or Redis may repeat them."""
        self._known.hide(secrets)

    def request(self, record: RequestRecord, who: Callable[[], Hashable] | None = None) -> None:
        """Log one request. `who` gives its owner; called only where the reader is slow and room is shared."""
        status = record.status
        broke = status >= 500 or (record.error is not None and status < 400)  # the gateway or an engine did
        level = "warning" if broke else "info"
        if level not in self._levels:
            return
        if record.prompt is not None and len(record.prompt) > MAX_PROMPT:
            record = msgspec.structs.replace(record, prompt=record.prompt[:MAX_PROMPT] + "…")
        if self._text:
            self._put(self._text_line(level, *_request_words(record)), who)
            return
        try:
            fields = _ENCODE(record)
        except ValueError:  # text that is not UTF-8
            fields = _json(msgspec.structs.asdict(record))
        now = self._clock()
        second, (known, text) = int(now), self._stamped
        stamp = text + _MS[int((now - second) * 1000)] if second == known else self._stamp(now)  # a call less
        line = b"".join((b'{"ts":"', stamp, _REQUEST[level], fields[1:], b"\n"))
        if not line.isascii() or _DELETE in line:
            line = _readable(line)
        self._put(line, who)

    def event(self, level: str, msg: str, who: Callable[[], Hashable] | None = None, /, **fields: object) -> None:
        """Log an event of the process. A field that is None or "" is omitted; URLs are masked, known secrets
        removed, long texts cut. `who`: as for a request, of an event that one client caused."""
        if level not in self._levels:
            return
        told = {
            name: self._clean(value) if isinstance(value, str) else value
            for name, value in fields.items()
            if value is not None and value != ""
        }
        if self._text:
            self._put(self._text_line(level, _shown(msg, " "), told), who)
        else:
            self._put(self._json_line(_head(level, msg, told), _json(told)), who)

    def often(self, level: str, msg: str, like: str = "", **fields: object) -> None:
        """`event` for events that a client, an engine or a fault may cause again and again: at most
        `repeats.OFTEN` lines a second of one kind (`msg` and `like`), then one line with the count of the rest."""
        if level not in self._levels:
            return
        with self._lock:
            known = self._repeats.due
            left_out = self._repeats.ask(level, msg, like, self._ticks())
            wake = self._repeats.due != known and self._idle
        if left_out is not None:
            self.event(level, msg, **fields, left_out=left_out or None)
        elif wake:
            self._wanted.set()  # to report the count when the second is over

    def close(self, timeout: float = 1.0) -> bool:
        """Write pending lines, for at most `timeout` seconds; True: all were written. Later lines are dropped."""
        with self._lock:
            self._closed = True  # later lines are dropped
        self._closing.set()
        self._wanted.set()
        self._thread.join(timeout)
        return not self._thread.is_alive() and self._pending == 0

    # -- lines ------------------------------------------------------------------------------------

    def _stamp(self, now: float | None = None) -> bytes:
        """RFC 3339 in UTC to the millisecond. The date is formatted once a second."""
        now = self._clock() if now is None else now
        second = int(now)
        known, text = self._stamped  # one tuple: the writer's thread uses it too
        if second != known:
            text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second)).encode()
            self._stamped = (second, text)
        return text + _MS[int((now - second) * 1000)]

    def _json_line(self, head: bytes, fields: bytes) -> bytes:
        """One JSON object: the time, the members in `head`, then those of the object `fields`."""
        line = b"".join((b'{"ts":"', self._stamp(), head, fields[1:], b"\n"))
        return line if line.isascii() and _DELETE not in line else _readable(line)

    def _clean(self, text: str) -> str:
        text = self._known.out_of(text)
        if "://" in text:
            text = mask_url(text)
        return text if len(text) <= MAX_FIELD else text[:MAX_FIELD] + "…"

    def _text_line(self, level: str, words: str, fields: dict[str, object]) -> bytes:
        shown = f"{level:<7}"
        if self._colour and level in _COLOUR:
            shown = f"{_COLOUR[level]}{shown}\x1b[0m"
        rest = "".join(f" {name}={_shown(value)}" for name, value in fields.items())
        return f"{self._stamp()[11:].decode()} {shown} {words}{rest}\n".encode("utf-8", "backslashreplace")

    def _put(self, line: bytes, who: Callable[[], Hashable] | None = None) -> None:
        with self._lock:
            if self._closed:
                self.dropped += 1
                return
            pending = self._pending + len(line)
            if pending > self._free or self._crowd.size:
                for gone in self._crowd.put(line, who() if who is not None else None):
                    self.dropped += 1
                    pending -= len(gone)
            else:
                self._lines.append(line)
            self._pending = pending
            wake, self._idle = self._idle, False
        if wake:
            self._wanted.set()

    # -- the writer's thread ----------------------------------------------------------------------

    def _write_for_ever(self) -> None:
        while (taken := self._take()) is not None:
            lines, drops = taken
            data = b"".join(lines)
            works = self._write(data)
            with self._lock:
                self._works = works
                self._pending -= len(data)
                if not works:
                    self.dropped += len(lines)
            if drops and self._works and self._write(self._line("log lines dropped", count=drops)):
                with self._lock:
                    self._told += drops
            self._closing.wait(PACE)

    def _take(self) -> tuple[list[bytes], int] | None:
        """The lines to write next, and the number of drops to report after them. None: the log is closed.

        Only the few lines about omitted lines are formatted under the lock."""
        while True:
            closing = self._closing.is_set()
            with self._lock:
                due = self._repeats.due
                if due is not None and (closing or due <= self._ticks()):
                    for level, msg, count in self._repeats.over(math.inf if closing else self._ticks()):
                        line = self._line("log lines left out", level, of=msg, count=count)
                        self._lines.append(line)
                        self._pending += len(line)
                    due = self._repeats.due
                if self._crowd.size:
                    self._lines += self._crowd.take(PIECE)
                lines, drops = self._lines, self.dropped - self._told
                if lines or (drops and self._works and not closing):
                    self._lines = []
                    return lines, drops
                if closing:
                    return None
                self._idle = True
            self._wanted.wait(None if due is None else max(0.0, due - self._ticks()))
            self._wanted.clear()

    def _line(self, msg: str, level: str = "warning", **fields: object) -> bytes:
        """A line of the log about itself. Empty where it cannot be made."""
        try:
            if self._text:
                return self._text_line(level, msg, fields)
            return self._json_line(_head(level, msg, fields), _json(fields))
        except Exception:  # noqa: BLE001 - the thread that asks has the lines of all requests to write
            return b""

    def _write(self, data: bytes) -> bool:
        """Write all of it, without a time limit. False: the reader is gone or the disk is full."""
        if self._torn:
            data = b"\n" + data
        rest = memoryview(data)
        try:
            while rest:
                try:
                    rest = rest[self._os_write(self._fd, rest) :]
                except BlockingIOError:  # another process has made the pipe non-blocking
                    poll = select.poll()
                    poll.register(self._fd, select.POLLOUT)
                    poll.poll()
        except OSError:
            sent = len(data) - len(rest)
            self._torn = data[sent - 1] != ord("\n") if sent else self._torn
            return False
        self._torn = False
        return True


def _readable(line: bytes) -> bytes:
    """A line with its _SLY characters, and DEL, escaped."""
    text = _SLY.sub(lambda found: json.dumps(found[0])[1:-1], line.decode())
    return text.replace("\x7f", "\\u007f").encode()


def _head(level: str, msg: str, fields: Mapping[str, object]) -> bytes:
    return b'","level":"%b","msg":%b%b' % (level.encode(), _json(msg), b"," if fields else b"")


def _json(value: Any) -> bytes:
    """Any value as JSON; a value that JSON does not have as text."""
    try:
        return _ENCODE(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        if isinstance(value, dict):
            members = (_json(str(name)) + b":" + _json(member) for name, member in value.items())
            return b"{" + b",".join(members) + b"}"
        try:
            text = str(value)
        except RecursionError:
            text = f"a {type(value).__name__}, nested too deep"
        return _ENCODE(text.encode("utf-8", "backslashreplace").decode())


def _shown(value: object, allowed: str = "") -> str:
    """A value as one word of a text line, quoted where needed."""
    text = value if isinstance(value, str) else _json(value).decode()
    if text.isprintable():
        plain = text and not any(mark in text for mark in ' "=' if mark not in allowed)
        return text if plain else json.dumps(text, ensure_ascii=False)
    return json.dumps(text)  # ASCII only: no control character, line break or lone surrogate


def _request_words(record: RequestRecord) -> tuple[str, dict[str, object]]:
    """The columns of a request, and the rest of it as name=value."""
    tokens = None
    if record.completion_tokens is not None:
        tokens = f"{'?' if record.prompt_tokens is None else record.prompt_tokens}+{record.completion_tokens}"
    fields = {
        "model": record.model_id,
        "queue": _duration(record.queue_ms),
        "ttft": _duration(record.ttft_ms),
        "total": _duration(record.total_ms),
        "tokens": tokens,
        "bytes": record.bytes_out,
        "items": record.items and f"{record.items_cached or 0}/{record.items}",
        "backend": record.backend,
        "error": record.error,
        "key": record.key,
        "id": record.request_id,
        "trace": record.trace_id,
        "prompt": record.prompt,
    }
    end = "left" if record.client_left else "stream" if record.stream else "whole"
    words = f"{record.status} {_shown(record.verdict):<8} {_shown(record.endpoint):<11} {end:<6}"
    return words, {name: value for name, value in fields.items() if value is not None}


def _duration(ms: float | None) -> str | None:
    if ms is None:
        return None
    return f"{ms / 1000:.2f}s" if ms >= 1000 else f"{ms:.1f}ms"

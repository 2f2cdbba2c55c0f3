"""A recording of the gateway's own traffic, for the load generator to replay: one JSON line for each request,
written by a thread to a file that is rotated by size."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable
from io import FileIO
from typing import Any, Final

import msgspec

from proxy.errors import SettingsError

MAX_PENDING: Final = 16 * 1024 * 1024  # bytes of requests that wait for the writer
MAX_BODY: Final = 4 * 1024 * 1024  # bytes of a body; of a longer one only the length is recorded
BLOCK: Final = 512  # bytes of a prompt's blocks, about 128 tokens
_ENCODE: Final = msgspec.json.Encoder().encode
_NOT_KEPT: Final = ("user", "safety_identifier", "metadata", "prompt_cache_key")
"""Members of a body that name people; a whole body is recorded without them."""


class Recorded(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One request. `at`: its arrival in Unix seconds; times in milliseconds. `body` is not part of the line."""

    at: float
    endpoint: str
    model: str | None
    stream: bool
    status: int
    verdict: str
    total_ms: float
    ttft_ms: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    left: bool = False  # the client left before the end


class _Line(Recorded, omit_defaults=True, kw_only=True):
    id: str  # equal for equal bodies
    bytes: int  # of the body
    blocks: list[str] = []  # of the prompt: equal up to a place where two prompts are equal up to its end
    body: msgspec.Raw | None = None  # only with record_prompts = whole


class Recording:
    """Bounded and never blocking: beyond MAX_PENDING requests are dropped and counted. Thread-safe.

    Hashes are keyed by a secret of the process, so that nobody can try texts against a recording; equal prompts
    have equal hashes within one process only. Raises SettingsError for a file that cannot be opened.
    """

    def __init__(
        self,
        path: str,
        *,
        whole: bool,
        max_bytes: int,
        files: int,
        tell: Callable[[str], None] = lambda text: None,
        max_pending: int = MAX_PENDING,
    ) -> None:
        self.written = self.dropped = 0
        self._path = path
        self._whole = whole
        self._max_bytes = max_bytes
        self._files = files
        self._tell = tell
        self._max_pending = max_pending
        self._key = os.urandom(32)
        try:
            self._file: FileIO | None = _opened(path)
        except OSError as e:
            raise SettingsError(f"record_file = {path!r}: cannot be written: {e.strerror or e}") from None
        self._size = os.path.getsize(path)
        self._lock = threading.Lock()  # guards the two below
        self._queue: deque[tuple[Recorded, bytes, bytes]] = deque()
        self._pending = 0  # bytes
        self._wanted = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._write_for_ever, name="recording", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Recording {self._path} written={self.written} dropped={self.dropped}>"

    def put(self, recorded: Recorded, body: bytes, prompt: bytes) -> None:
        """Record one request: its body, and the part of it that is the prompt."""
        weight = 500 + (len(body) + len(prompt) if len(body) <= MAX_BODY else 0)
        with self._lock:
            if self._pending + weight > self._max_pending or self._closing:
                self.dropped += 1
                return
            self._pending += weight
            self._queue.append((recorded, body, prompt))
        self._wanted.set()

    def close(self, timeout: float = 1.0) -> None:
        """Write what is pending, for at most `timeout` seconds."""
        with self._lock:
            self._closing = True
        self._wanted.set()
        self._thread.join(timeout)

    # In the thread

    def _write_for_ever(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            while self._queue:
                recorded, body, prompt = self._queue[0]
                try:
                    self._write(self._line(recorded, body, prompt))
                except Exception as e:  # noqa: BLE001 - the border of the thread: one request is not recorded
                    self.dropped += 1
                    self._tell(f"{type(e).__name__}: {e}")
                with self._lock:
                    self._queue.popleft()
                    self._pending -= 500 + (len(body) + len(prompt) if len(body) <= MAX_BODY else 0)
            if self._closing:
                if self._file is not None:
                    self._file.close()
                return

    def _line(self, recorded: Recorded, body: bytes, prompt: bytes) -> bytes:
        fits = len(body) <= MAX_BODY
        return (
            _ENCODE(
                _Line(
                    **msgspec.structs.asdict(recorded),
                    id=hashlib.blake2b(body, digest_size=12, key=self._key).hexdigest(),
                    bytes=len(body),
                    blocks=self._blocks(prompt) if fits and not self._whole else [],
                    body=_without(body) if fits and self._whole else None,
                )
            )
            + b"\n"
        )

    def _blocks(self, prompt: bytes) -> list[str]:
        running = hashlib.blake2b(digest_size=8, key=self._key)
        blocks = []
        for start in range(0, len(prompt), BLOCK):
            running.update(prompt[start : start + BLOCK])
            blocks.append(running.copy().hexdigest())
        return blocks

    def _write(self, line: bytes) -> None:
        if self._size and self._size + len(line) > self._max_bytes:
            self._rotate()
        if self._file is None:
            self._file, self._size = _opened(self._path), os.path.getsize(self._path)
        if self._file.write(line) != len(line):  # the disk is full: no line is left in pieces
            os.ftruncate(self._file.fileno(), self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += len(line)
        self.written += 1

    def _rotate(self) -> None:
        """`FILE` becomes `FILE.1`, and so on; the oldest is deleted."""
        if self._file is not None:
            self._file.close()
            self._file = None
        for number in range(self._files - 1, 0, -1):
            older = self._path if number == 1 else f"{self._path}.{number - 1}"
            with contextlib.suppress(FileNotFoundError):
                os.replace(older, f"{self._path}.{number}")
        if self._files == 1:
            os.truncate(self._path, 0)
        self._size = 0


def _opened(path: str) -> FileIO:
    """For appending; readable by its owner only."""
    return open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600))


def _without(body: bytes) -> msgspec.Raw:
    members: dict[str, Any] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    kept = {name: value for name, value in members.items() if name not in _NOT_KEPT}
    return msgspec.Raw(_ENCODE(kept))

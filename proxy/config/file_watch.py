"""Watches the files that settings name, and loads each again when its content changes or on demand. Files are
read in a thread: no file system blocks the event loop."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from proxy.errors import SettingsError, words_of

EVERY: Final = 0.5  # seconds between two checks
REREAD: Final = 4
"""Checks after which a file is read again though `stat` shows no change: time stamps of NFS are coarse."""
RESTLESS: Final = 10  # checks after which a file that changes all the time is loaded all the same
STALL_SECONDS: Final = 10.0  # without an answer of the file system, before that is reported
MOST_BYTES: Final = 16 * 1024 * 1024  # of a file that are compared and loaded
_PIECE: Final = 1024 * 1024

Take = Callable[[], str]
"""Puts loaded content in effect, on the event loop. Returns what has changed, as text without secrets."""
Digests = Mapping[str, bytes]
InThread = Callable[[Callable[[], Any]], "asyncio.Future[Any]"]


@dataclass(frozen=True, slots=True)
class Watched:
    """One setting's files, loaded together."""

    name: str
    paths: Sequence[str]
    load: Callable[[], Take]
    """Called in a thread. Raises SettingsError."""


class Observer(Protocol):
    """Receives the results of reloads."""

    def reloaded(self, name: str, paths: Sequence[str], who: str, changed: str) -> None: ...

    def not_reloaded(self, name: str, paths: Sequence[str], who: str, reason: str) -> None: ...

    def stalled(self, seconds: float) -> None: ...

    def answers(self) -> None:
        """The file system answers again, after `stalled`."""


class Content:
    """The digest of one file's content, read again only where it may have changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._mark: tuple[int, ...] = ()
        self._digest = b""
        self._age = 0

    def look(self) -> bytes:
        """The digest of the content, or of the reason why it cannot be read. Never raises."""
        try:
            mark = _mark_of(os.stat(self._path))
            self._age += 1
            if mark != self._mark or self._age >= REREAD:
                self._digest, self._mark = _digest_of(self._path)
                self._age = 0
        except (OSError, ValueError) as e:
            self._mark, self._digest = (), f"error {getattr(e, 'errno', None) or type(e).__name__}".encode()
        return self._digest


def _mark_of(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev


def _digest_of(path: str) -> tuple[bytes, tuple[int, ...]]:
    """The digest of a regular file's content, and its mark when it was opened. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO without a writer would block
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return b"no regular file", _mark_of(status)
        digest, left = hashlib.sha256(), MOST_BYTES + 1
        while left > 0 and (piece := os.read(fd, min(_PIECE, left))):
            digest.update(piece)
            left -= len(piece)
        return digest.digest(), _mark_of(status)
    finally:
        os.close(fd)


class Contents:
    """The digests of some files. The first ones are taken at construction, before the files are loaded."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._files = {path: Content(path) for path in paths if path}
        self.first: Digests = self.look()

    def look(self) -> Digests:
        """The digest of each file. Never raises. Called in a thread, one call at a time."""
        return {path: content.look() for path, content in self._files.items()}


class _File:
    """The state of one setting's files."""

    def __init__(self, watched: Watched, digests: Digests) -> None:
        self.watched = watched
        self._done = self._now(digests)  # digests of the last load, successful or not
        self._seen = self._done
        self._restless = 0

    def _now(self, digests: Digests) -> tuple[bytes, ...]:
        return tuple(digests[path] for path in self.watched.paths)

    def due(self, digests: Digests, forced: bool) -> bool:
        """Whether to load them: the content has changed, and was the same in two checks. A file that is being
        written may be valid in the middle, with some keys missing."""
        now = self._now(digests)
        if not forced:
            settled, self._seen = now == self._seen, now
            if now == self._done:
                self._restless = 0
                return False
            self._restless += 1
            if not settled and self._restless < RESTLESS:
                return False
        self._done = self._seen = now
        self._restless = 0
        return True


class FileWatch:
    """Checks the files and loads those that have changed, one round at a time, each file by itself. A failed
    load is reported, and the old content stays in effect."""

    def __init__(
        self,
        watched: Sequence[Watched],
        contents: Contents,
        observer: Observer,
        *,
        in_thread: InThread | None = None,
        every: float = EVERY,
    ) -> None:
        self._files = [_File(each, contents.first) for each in watched]
        self._contents = contents
        self._observer = observer
        self._in_thread = in_thread or in_daemon
        self._every = every
        self._asked = asyncio.Event()
        self._round: asyncio.Future[None] | None = None  # the next round, requested by `wake`

    def __repr__(self) -> str:
        return f"<FileWatch of {', '.join(file.watched.name for file in self._files) or 'nothing'}>"

    def __len__(self) -> int:
        return len(self._files)

    def wake(self) -> asyncio.Future[None]:
        """Load all files now, changed or not. The future is done when the round is; calls before it share it."""
        if self._round is None:
            self._round = asyncio.get_running_loop().create_future()
            self._asked.set()
        return self._round

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._every if self._files else None):
                    await self._asked.wait()
            except TimeoutError:
                pass
            self._asked.clear()
            asked, self._round = self._round, None
            try:
                await self._look(forced=asked is not None)
            finally:
                if asked is not None and not asked.done():
                    asked.set_result(None)

    async def _look(self, *, forced: bool) -> None:
        digests = await self._off_loop(self._contents.look)
        for file in self._files:
            if file.due(digests, forced):
                await self._load(file.watched, "signal" if forced else "file")

    async def _load(self, watched: Watched, who: str) -> None:
        try:
            take = await self._off_loop(partial(_loaded, watched))
            changed = take()
        except SettingsError as e:
            self._observer.not_reloaded(watched.name, watched.paths, who, str(e))
        except Exception as e:  # noqa: BLE001 - foreign content: nested too deeply, or larger than memory
            self._observer.not_reloaded(watched.name, watched.paths, who, words_of(e))
        else:
            self._observer.reloaded(watched.name, watched.paths, who, changed)

    async def _off_loop(self, work: Callable[[], Any]) -> Any:
        future = self._in_thread(work)
        done, _ = await asyncio.wait((future,), timeout=STALL_SECONDS)
        if done:
            return await future
        self._observer.stalled(STALL_SECONDS)
        try:
            return await future
        finally:
            self._observer.answers()


def _loaded(watched: Watched) -> Take:
    """Load. Raises SettingsError, also for a FIFO or a device: reading it may block for ever, and then nothing
    would be loaded any more."""
    for path in watched.paths:
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError):
            continue  # the loader reports it
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise SettingsError(f"{watched.name} = {path!r}: is not a regular file, so it is not reloaded")
    return uncollected(watched.load)


def uncollected(load: Callable[[], Take]) -> Take:
    """Load with the garbage collector off, and freeze the result. Collecting would hold the event loop while it
    scans the new objects, which live as long as the file is in effect and have no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return load()
    finally:
        if enabled:
            gc.freeze()
            gc.enable()


def in_daemon(work: Callable[[], Any]) -> asyncio.Future[Any]:
    """Run it in a daemon thread, which the exit of the process does not wait for: a file system may never
    answer."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if future.done():
            return  # cancelled
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as e:  # noqa: BLE001 - raised where the result is awaited
            error = e
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            pass  # the loop has ended meanwhile

    threading.Thread(target=run, name="files", daemon=True).start()
    return future

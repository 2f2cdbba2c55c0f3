"""The pool of child processes for work that would block the event loop: started on demand, bounded, fair to
callers. Not threads: decoding holds the interpreter's lock."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from proxy.access import Found, Job, Terms
from proxy.errors import Code, GatewayError, place_of, shutting_down

CHILDREN: Final = 2
JOB_SECONDS: Final = 30.0
"""Seconds for one job. The most expensive known 16 MiB take about ten on a slow machine."""
IDLE_SECONDS: Final = 60.0  # without a job, after which a child ends: what it has of memory goes back
WAITING_BYTES: Final = 256 << 20
"""Bytes of queued bodies; one caller may use half of it."""
WAITING_JOBS: Final = 256
PAUSE: Final = 1.0  # seconds after a child could not be started, in which none is tried

_HEAD: Final = 8
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_FOUND: Final = msgspec.msgpack.Decoder(Found)
_MAX_HEAD: Final = 8 << 20  # bytes of what was found: its members' beginnings

Result = tuple[Found, bytes]


@dataclass(slots=True, eq=False)
class _Waiting:
    job: Job
    body: bytes
    owner: Hashable
    done: asyncio.Future[Result]


class _Child:
    """One process, and the socket to it."""

    __slots__ = ("process", "reader", "told", "writer")

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self.reader = reader
        self.writer = writer
        self.told: Terms | None = None

    async def do(self, job: Job, body: bytes, terms: Terms) -> Result:
        """Raises OSError or EOFError where the child is gone, ValueError where it answers nonsense."""
        if self.told is not terms:
            self._send(_ENCODE(terms), b"")
            self.told = terms
        self._send(_ENCODE(job), body)
        await self.writer.drain()
        sizes = await self.reader.readexactly(_HEAD)
        head, rest = int.from_bytes(sizes[:4], "little"), int.from_bytes(sizes[4:], "little")
        if head > _MAX_HEAD:
            raise ValueError(f"{head} bytes")
        found = _FOUND.decode(await self.reader.readexactly(head))
        return found, await self.reader.readexactly(rest)

    def _send(self, head: bytes, body: bytes) -> None:
        self.writer.write(len(head).to_bytes(4, "little") + len(body).to_bytes(4, "little") + head)
        if body:
            self.writer.write(body)  # not joined to its head: it may be 16 MiB

    async def end(self) -> None:
        self.writer.close()
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


async def start_child() -> tuple[asyncio.subprocess.Process, socket.socket]:
    """A new process, and our end of the socket that is its standard input. Raises OSError."""
    ours, theirs = socket.socketpair()
    try:
        for sock in ours, theirs:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # else 16 MiB take a hundred turns
        ours.setblocking(False)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "proxy.server.offload.child",
            str(os.getpid()),
            stdin=theirs.fileno(),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,  # a pipe that nobody reads would stop it
            start_new_session=True,  # Ctrl-C is the gateway's
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, ours


class Offload:
    """Jobs wait in a queue for each caller, and the callers take turns. A child that dies, or takes too long
    over a job, fails that job only; the next one is given a new child."""

    def __init__(
        self,
        terms: Callable[[], Terms],
        *,
        on_event: Callable[[str, str], None] = lambda event, detail: None,
        children: int = CHILDREN,
        job_seconds: float = JOB_SECONDS,
        start: Callable[[], Awaitable[tuple[asyncio.subprocess.Process, socket.socket]]] = start_child,
    ) -> None:
        """`terms`: those in force, the same object as long as they have not changed."""
        self._terms = terms
        self._on_event = on_event
        self._most = children
        self._seconds = job_seconds
        self._start = start
        self._queues: dict[Hashable, deque[_Waiting]] = {}  # in the order of turns
        self._owed: dict[Hashable, int] = {}  # bytes that wait, by caller
        self._bytes = 0
        self._count = 0
        self._running: dict[Hashable, int] = {}  # jobs under way, by caller
        self._idle = 0  # of the tasks, those that wait for a job
        self._work = asyncio.Event()  # there may be a job
        self._tasks: set[asyncio.Task[None]] = set()
        self._not_before = 0.0  # by the loop's clock
        self._closed = False
        self.pids: set[int] = set()

    def __repr__(self) -> str:
        return f"<Offload children={len(self.pids)} waiting={self._count}>"

    @property
    def busy(self) -> int:
        """Jobs under way."""
        return sum(self._running.values())

    def __len__(self) -> int:
        return self._count

    async def do(self, job: Job, body: bytes, owner: Hashable) -> Result:
        """Have a job done. Raises GatewayError 503 where it cannot be done."""
        if self._closed:
            raise shutting_down()
        owed = self._owed.get(owner, 0) + len(body)
        if (
            self._count >= WAITING_JOBS
            or self._bytes + len(body) > WAITING_BYTES
            or (owed > WAITING_BYTES // 2 and owed > len(body))
            or len(self._queues.get(owner, ())) >= WAITING_JOBS // 2
        ):
            raise GatewayError(
                Code.QUEUE_FULL,
                "Too many large requests are waiting to be parsed; try again shortly or send a smaller request.",
                retry_after=1,
            )
        waiting = _Waiting(job, body, owner, asyncio.get_running_loop().create_future())
        self._queues.setdefault(owner, deque()).append(waiting)
        self._owed[owner] = owed
        self._bytes += len(body)
        self._count += 1
        if self._count > self._idle and len(self._tasks) < self._most:
            task = asyncio.create_task(self._serve())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._work.set()
        try:
            return await waiting.done
        finally:
            self._drop(waiting)

    async def close(self) -> None:
        """End the children; queued jobs fail."""
        self._closed = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for queue in tuple(self._queues.values()):
            for waiting in tuple(queue):
                _fail(waiting, shutting_down())

    # -- inside -----------------------------------------------------------------------------------

    def _drop(self, waiting: _Waiting) -> None:
        """Dequeue a job: its client has left, or a child takes it."""
        queue = self._queues.get(waiting.owner)
        if queue is None or waiting not in queue:
            return
        queue.remove(waiting)
        size = len(waiting.body)
        self._count -= 1
        self._bytes -= size
        self._owed[waiting.owner] -= size
        if not queue:
            del self._queues[waiting.owner]
            del self._owed[waiting.owner]

    def _next(self) -> _Waiting | None:
        """The next job, round robin by caller. No caller occupies every child."""
        most = max(1, self._most - 1)
        owner = next((each for each in self._queues if self._running.get(each, 0) < most), None)
        if owner is None:
            return None
        waiting = self._queues[owner][0]
        self._drop(waiting)
        if owner in self._queues:
            self._queues[owner] = self._queues.pop(owner)  # to the end of the order
        return waiting

    async def _serve(self) -> None:
        """Run children one after the other, as long as there is work."""
        child: _Child | None = None
        try:
            while True:
                waiting = self._next()
                if waiting is None:
                    if not await self._wait():
                        return
                    continue
                self._running[waiting.owner] = self._running.get(waiting.owner, 0) + 1
                try:
                    if child is None:
                        child = await self._child()
                    child = await self._do(child, waiting)
                except asyncio.CancelledError:
                    _fail(waiting, shutting_down())
                    raise
                except OSError as e:
                    self._not_before = asyncio.get_running_loop().time() + PAUSE
                    self._on_event("could not be started", str(e))
                    _fail(waiting, _away())
                except Exception as e:  # noqa: BLE001 - one job's fault must not leave the others without a child
                    self._on_event("failed", f"{e!r} at {place_of(e)}")
                    _fail(waiting, _away())
                finally:
                    self._running[waiting.owner] -= 1
                    if not self._running[waiting.owner]:
                        del self._running[waiting.owner]
                    self._work.set()
        finally:
            if child is not None:
                await self._end(child)

    async def _wait(self) -> bool:
        """Wait for a job; False after the idle timeout."""
        self._idle += 1
        self._work.clear()
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                await self._work.wait()
        except TimeoutError:
            return bool(self._queues)
        finally:
            self._idle -= 1
        return True

    async def _child(self) -> _Child:
        """A new one. Raises OSError."""
        if asyncio.get_running_loop().time() < self._not_before:
            raise OSError("one could not be started a moment ago")
        process, sock = await self._start()
        try:
            reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 20)
        except BaseException:
            sock.close()
            process.kill()
            await process.wait()
            raise
        self.pids.add(process.pid)
        return _Child(process, reader, writer)

    async def _do(self, child: _Child, waiting: _Waiting) -> _Child | None:
        """One job. The child, where it can do another."""
        why = "ended"
        try:
            async with asyncio.timeout(self._seconds):
                result = await child.do(waiting.job, waiting.body, self._terms())
        except TimeoutError:
            why = f"took more than {self._seconds:g} s"
        except (OSError, EOFError, ValueError, msgspec.MsgspecError) as e:
            why = f"{type(e).__name__}: {e}"[:200]
        else:
            if not waiting.done.done():
                waiting.done.set_result(result)
            return child
        await self._end(child)
        self._on_event("failed", f"{why}, of a job of {len(waiting.body)} bytes")
        _fail(waiting, _too_much() if why.startswith("took") else _away())
        return None

    async def _end(self, child: _Child) -> None:
        self.pids.discard(child.process.pid)
        await child.end()


def _fail(waiting: _Waiting, error: GatewayError) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(error)


def _away() -> GatewayError:
    return GatewayError(
        Code.LOCAL_RESOURCES,
        "The gateway could not parse this large request; try again or send a smaller one.",
        retry_after=1,
    )


def _too_much() -> GatewayError:
    return GatewayError(Code.LOCAL_RESOURCES, "This request took too long to parse; send fewer or simpler parts.")

"""The supervisor: it keeps N workers, divides the engines' permits among them, and sums what they count."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.telemetry import PREFIX, Family, Log, lasting, raised, summed
from proxy.workers.channel import (
    Allot,
    Ask,
    Collect,
    Collected,
    Engine,
    FromWorker,
    Hello,
    Metrics,
    Ready,
    Report,
    Served,
)
from proxy.workers.leases import Demand
from proxy.workers.permits import Permits
from proxy.workers.process import SILENT, WorkerProcess
from proxy.workers.sockets import Sockets

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0  # seconds before a restart: doubled each time, with full jitter
SETTLED: Final = 10.0  # seconds of service after which the pause is the first one again
COLLECT_SECONDS: Final = 2.0  # for the metrics of a worker; one that is later is counted by its last ones
LOOK_SECONDS: Final = 1.0  # between two looks for silent workers
PAUSED: Final = 3.0  # seconds between two looks that mean that this process was paused, not its workers silent
START_SECONDS: Final = 120.0  # for a worker to accept
END_SECONDS: Final = 15.0  # for a worker to end, besides its drain


class CannotStart(Exception):
    """The first worker has ended before it accepted; it has said why. `code` is its exit code."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"a worker ended with status {code}")


@dataclass(slots=True)
class _Collection:
    """The metrics of all workers, asked for by one."""

    asker: WorkerProcess
    number: int
    waiting: set[WorkerProcess]
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, kw_only=True)
class Parts:
    """What all workers share."""

    sockets: Sockets
    engines: list[str]
    redis: str | None
    redis_words: str
    limits_redis: str | None = None  # an embedded one of their own
    arguments: Sequence[str]  # of the command line
    drain: float  # seconds that a worker may take to drain
    delay: float  # seconds between the signal and the end of accepting
    log_pipe: Callable[[], int]
    close: Callable[[int], None] = field(default=lambda fd: None)
    shared: bool = False  # other gateways use the engines: they are bounded by `bound`
    fixed: bool = True  # the limits of engines are not adapted
    families: Callable[[], list[Family]] = list  # metrics of the supervisor


class Supervisor:
    """Runs until `stop`. Each place is kept by one task; a worker that leaves is awaited by another."""

    def __init__(self, parts: Parts, log: Log, jitter: Callable[[], float] = random.random) -> None:
        self._parts = parts
        self._log = log
        self._jitter = jitter
        self._loop = asyncio.get_running_loop()
        self._places: list[WorkerProcess | None] = [None] * len(parts.sockets.own)
        self._all: set[WorkerProcess] = set()  # those that leave too
        self._tasks: set[asyncio.Task[None]] = set()
        self._permits = Permits(shared=parts.shared)
        self._ended: list[Family] = []  # counters of workers that have ended
        self._last: dict[WorkerProcess, list[Family]] = {}
        self._collections: dict[int, _Collection] = {}
        self._numbers = 0
        self._salt = os.urandom(32)
        self._begun = False  # a worker has become ready
        self._stopping = False
        self._probes: dict[str, WorkerProcess] = {}  # by engine: the worker that probes it
        self._open: dict[str, tuple[Engine, float]] = {}  # by engine: that its breaker opened, and until when
        self._replacing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Supervisor {self._places!r}>"

    @property
    def workers(self) -> list[WorkerProcess | None]:
        """By place; None while one is restarted."""
        return list(self._places)

    async def start(self) -> Ready:
        """Start all workers. Returns what the first one says. Raises CannotStart."""
        first = await self._launch(0)
        ending = asyncio.ensure_future(first.ended())
        try:
            await _first_of(first, ending)
            if not first.serving:
                raise CannotStart(ending.result() if ending.done() else 1)
        except BaseException:
            first.signal(signal.SIGKILL)
            await ending
            raise
        self._begun = True
        self._own(self._keep(0, first, ending))
        for index in range(1, len(self._places)):
            self._own(self._keep(index))
        self._own(self._watch())
        return first.ready.result()

    def demands(self) -> dict[str, Demand]:
        """What all workers together want of each engine."""
        return self._permits.demands(fixed=self._parts.fixed)

    def bound(self, engine: str, ceiling: int) -> None:
        """All workers together may have so many requests there."""
        self._permits.bound(engine, ceiling)
        self._allot()

    def reached(self, engine: str) -> None:
        """The limit of all gateways is reached there."""
        self._permits.reached(engine)
        self._allot()

    def reload(self) -> None:
        """Every worker reads its settings and files again."""
        self._log.event("info", "reloading", workers=len(self._all))
        for worker in self._all:
            worker.signal(signal.SIGHUP)

    def replace(self) -> None:
        """Replace the workers one by one: the next one accepts before the last one leaves."""
        if not self._stopping and not self._replacing.locked():
            self._own(self._replace_all())

    async def stop(self) -> None:
        """Drain all workers together, and wait for their ends."""
        self._stopping = True
        for worker in self._all:
            worker.signal(signal.SIGTERM)
        await asyncio.sleep(self._parts.delay)
        self._parts.sockets.close()  # from now on the kernel refuses, as it does for one process
        await self._wait_for_all(self._parts.drain + END_SECONDS)

    async def stop_now(self) -> None:
        """End all workers without waiting for their requests."""
        self._stopping = True
        for _ in range(2):
            for worker in self._all:
                worker.signal(signal.SIGTERM)
        self._parts.sockets.close()
        await self._wait_for_all(END_SECONDS)

    async def close(self) -> None:
        """End whatever still runs, at once."""
        self._stopping = True
        for worker in self._all:
            worker.signal(signal.SIGKILL)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _wait_for_all(self, seconds: float) -> None:
        ends = [asyncio.ensure_future(worker.ended()) for worker in self._all]
        if ends:
            await asyncio.wait(ends, timeout=seconds)
        for worker in self._all:
            worker.signal(signal.SIGKILL)

    def _own(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raised("the supervisor", error)

    # -- processes --------------------------------------------------------------------------------

    async def _launch(self, index: int) -> WorkerProcess:
        """Start a process for a place. Raises OSError."""
        parts = self._parts
        worker = WorkerProcess(index, on_message=self._heard, clock=self._loop.time)
        hello = Hello(
            index=index,
            workers=len(self._places),
            listen=[sock.fileno() for sock in parts.sockets.own[index]],
            admin=[sock.fileno() for sock in parts.sockets.admin],
            port=parts.sockets.port,
            engines=parts.engines,
            redis=parts.redis,
            redis_words=parts.redis_words,
            limits_redis=parts.limits_redis,
            salt=self._salt,
            first=not self._begun,
        )
        log = parts.log_pipe()
        try:
            await worker.start(parts.arguments, hello, log)
        finally:
            parts.close(log)
        self._all.add(worker)
        self._permits.join(worker.pid)
        self._introduce(worker)
        if self._stopping:  # since its process was being made, so `stop` did not know it
            worker.signal(signal.SIGTERM)
        return worker

    async def _keep(
        self, index: int, worker: WorkerProcess | None = None, ending: asyncio.Future[int] | None = None
    ) -> None:
        """Keep a worker at a place, until it is told to leave or the gateway stops."""
        pause = FIRST_PAUSE
        while not self._stopping:
            born = self._loop.time()
            code: int | str
            try:
                if worker is None:
                    worker = await self._launch(index)
                self._places[index] = worker
                self._log.event("info", "worker started", worker=index, pid=worker.pid)
                code = await (ending or worker.ended())
            except OSError as e:
                code = e.strerror or str(e)
            ending = None
            if worker is not None:
                self._forget(worker)
                if self._places[index] is not worker:
                    return  # another one has its place
                self._places[index] = None
            if self._loop.time() - born > SETTLED:
                pause = FIRST_PAUSE
            await self._before_restart(index, worker, code, pause * self._jitter())
            pause = min(pause * 2, LONGEST_PAUSE)
            worker = None

    async def _before_restart(
        self, index: int, worker: WorkerProcess | None, code: int | str, seconds: float
    ) -> None:
        """A worker has ended by itself, or could not be started: say so, and wait."""
        if not self._stopping:
            pid = worker.pid if worker is not None else None
            detail = f"restart in {seconds:.2f} s"
            self._log.event("error", "worker ended", worker=index, pid=pid, status=code, detail=detail)
            await asyncio.sleep(seconds)

    def _forget(self, worker: WorkerProcess) -> None:
        """It has ended. What it has counted stays in the sums."""
        self._all.discard(worker)
        self._permits.leave(worker.pid)
        for name in [name for name, prober in self._probes.items() if prober is worker]:
            self._relay(worker, Engine(name, "idle", 0.0, ""))
        self._ended = summed([self._ended, lasting(self._last.pop(worker, []))], PREFIX)
        for number, collection in tuple(self._collections.items()):
            collection.waiting.discard(worker)
            if collection.asker is worker:
                self._drop(number)
            elif not collection.waiting:
                self._collected(number)
        self._allot()

    async def _replace_all(self) -> None:
        async with self._replacing:
            for index, old in enumerate(self._places):
                if self._stopping:
                    return
                try:
                    worker = await self._launch(index)
                except OSError as e:
                    self._log.event("error", "worker not replaced", worker=index, detail=e.strerror or str(e))
                    return
                ending = asyncio.ensure_future(worker.ended())
                await _first_of(worker, ending)
                if not worker.serving:
                    # With what it has read, the next ones would not start either: the old ones stay.
                    worker.signal(signal.SIGKILL)
                    status = await ending
                    self._forget(worker)
                    self._log.event("error", "worker not replaced", worker=index, status=status)
                    return
                self._own(self._keep(index, worker, ending))
                await asyncio.sleep(0)  # it has its place now
                if old is not None:
                    old.leave()
                self._log.event("info", "worker replaced", worker=index, pid=worker.pid)

    async def _watch(self) -> None:
        """Kill workers that report nothing any more: frozen, or with a blocked event loop."""
        last = self._loop.time()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = self._loop.time()
            paused, last = now - last > PAUSED, now
            for worker in self._all:
                if paused:
                    worker.excuse()
                elif worker.serving and now - worker.heard > SILENT:
                    detail = f"no report for {SILENT:g} s"
                    self._log.event("error", "worker silent", worker=worker.index, pid=worker.pid, detail=detail)
                    worker.signal(signal.SIGKILL)
            self._allot()

    # -- messages ---------------------------------------------------------------------------------

    def _heard(self, worker: WorkerProcess, message: FromWorker) -> None:
        if isinstance(message, Report):
            self._permits.report(worker.pid, message.number, message.engines, message.queues, message.leaving)
            self._allot()
        elif isinstance(message, Metrics):
            self._last[worker] = message.families
            collection = self._collections.get(message.number)
            if collection is not None:
                collection.waiting.discard(worker)
                if not collection.waiting:
                    self._collected(message.number)
        elif isinstance(message, Engine):
            self._relay(worker, message)
        elif isinstance(message, Ask):
            self._last[worker] = message.families
            self._collect(worker, message.number)

    def _relay(self, worker: WorkerProcess, message: Engine) -> None:
        """Tell all others what a worker has found out of an engine, those that have not begun too."""
        if message.news == "open":
            self._open[message.name] = message, self._loop.time() + message.seconds
        elif message.news == "closed":
            self._open.pop(message.name, None)
        if message.news == "probe":
            self._probes[message.name] = worker
        elif message.news != "down" and self._probes.get(message.name) is worker:
            del self._probes[message.name]
        for other in self._all:
            if other is not worker:
                other.send(message)

    def _introduce(self, worker: WorkerProcess) -> None:
        """Tell a new worker whose breakers are open."""
        now = self._loop.time()
        for name, (message, until) in tuple(self._open.items()):
            if until > now:
                worker.send(Engine(name, "open", until - now, message.detail))
            else:
                del self._open[name]

    def _allot(self) -> None:
        by_pid = {worker.pid: worker for worker in self._all}
        for pid, (number, places, short) in self._permits.changes().items():
            by_pid[pid].send(Allot(number, places, short))
        for pid, tokens in self._permits.charges().items():
            by_pid[pid].send(Served(tokens))

    def _collect(self, asker: WorkerProcess, number: int) -> None:
        self._numbers += 1
        others = {worker for worker in self._all if worker is not asker and worker.serving}
        collection = self._collections[self._numbers] = _Collection(asker, number, others)
        collection.timer = self._loop.call_later(COLLECT_SECONDS, self._collected, self._numbers)
        for worker in others:
            worker.send(Collect(self._numbers))
        if not others:
            self._collected(self._numbers)

    def _drop(self, number: int) -> _Collection | None:
        collection = self._collections.pop(number, None)
        if collection is not None and collection.timer is not None:
            collection.timer.cancel()
        return collection

    def _collected(self, number: int) -> None:
        collection = self._drop(number)
        if collection is not None:
            families = [last for worker, last in self._last.items() if worker is not collection.asker]
            collection.asker.send(Collected(collection.number, [self._ended, self._parts.families(), *families]))


async def _first_of(worker: WorkerProcess, ending: asyncio.Future[int]) -> None:
    """Wait until it accepts or has ended, at most START_SECONDS."""
    ends: set[asyncio.Future[Any]] = {worker.ready, ending}
    await asyncio.wait(ends, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)

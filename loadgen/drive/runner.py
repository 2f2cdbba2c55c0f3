"""Sends requests when they are due (open loop) or when a user is free (closed loop); keeps, sheds or cancels the
rest. It is given a client and told where ended exchanges go; it does not know what responses say."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from loadgen.drive.capture.client import PreparedRequest
from loadgen.drive.capture.clock import Clock
from loadgen.drive.capture.exchange import Exchange
from loadgen.drive.requests import ScheduledRequest
from loadgen.spec import Pace

MAX_WAITING: Final = 100_000
"""Requests that may wait to be sent. Beyond it the server is hopelessly behind, and the run is ended."""


class Sender(Protocol):
    """As `Client`: sends, and returns the exchange when it has ended, failed or not."""

    async def send(self, request: PreparedRequest) -> Exchange: ...


class DueTimer(Protocol):
    """As `Timer`."""

    async def until(self, due_ns: int) -> None: ...


class Runner:
    """Sends a schedule and waits until all of it has ended. `stop()` sends no more and cancels the rest."""

    def __init__(
        self,
        client: Sender,
        clock: Clock,
        timer: DueTimer,
        build: Callable[[ScheduledRequest], PreparedRequest],
        on_end: Callable[[Exchange], None],
        *,
        max_in_flight: int,
    ) -> None:
        self._client = client
        self._clock = clock
        self._timer = timer
        self._build = build
        self._on_end = on_end
        self._max_in_flight = max_in_flight  # the cap that file descriptors impose
        self._closing = False  # after `max_seconds`: nothing more is sent
        self._due_now = False  # closed loop: a request is due when its user is free
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: deque[PreparedRequest] = deque()
        self._schedule: Iterator[ScheduledRequest] = iter(())
        self._error: BaseException | None = None
        self._stopped = asyncio.Event()
        self._idle = asyncio.Event()
        self.due = 0
        self.sent = 0
        self.shed = 0
        self.waited = 0
        self.overrun = False  # more than MAX_WAITING requests waited

    def __repr__(self) -> str:
        return (
            f"<Runner: {self.sent} of {self.due} sent, {self.in_flight} in flight, {len(self._waiting)} waiting>"
        )

    @property
    def in_flight(self) -> int:
        return len(self._tasks)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def stop(self) -> None:
        self._stopped.set()

    async def run(self, schedule: Iterable[ScheduledRequest], pace: Pace) -> None:
        """Return when every request has ended, or after `stop()` when those in flight have."""
        max_in_flight = min(pace.max_concurrency or self._max_in_flight, self._max_in_flight)
        firing = asyncio.create_task(
            self._open(iter(schedule), max_in_flight, pace.shed)
            if pace.open_loop
            else self._closed(iter(schedule), max_in_flight)
        )
        stopping = asyncio.create_task(self._stopped.wait())
        try:
            limit = None if pace.max_seconds is None else pace.max_seconds + self._lead()
            await asyncio.wait({firing, stopping}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not firing.done() and not stopping.done():
                await self._grace(firing, stopping, pace.grace_seconds)
        finally:
            await self._end(firing, stopping)

    async def _grace(self, firing: asyncio.Task[None], stopping: asyncio.Task[bool], seconds: float) -> None:
        """Send nothing more, and wait so long for what is in flight: cut off, the longest responses would be
        missing in every figure."""
        self._closing = True
        firing.cancel()
        self._abandon_waiting()
        if self._tasks and seconds:
            self._idle.clear()
            drained = asyncio.create_task(self._drained())
            await asyncio.wait({drained, stopping}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            drained.cancel()
            await asyncio.gather(drained, return_exceptions=True)

    def _lead(self) -> float:
        """Seconds until the run's start."""
        return max(self._clock.zero - self._clock.now(), 0) / 1e9

    async def _end(self, firing: asyncio.Task[None], stopping: asyncio.Task[bool]) -> None:
        broken = firing.exception() if firing.done() and not firing.cancelled() else None
        cut = self._closing and bool(self._tasks)  # the grace was too short
        whole = firing.done() and broken is None and not self.overrun and not cut
        for task in (firing, stopping):
            task.cancel()
        if not whole:
            self._stopped.set()
            await asyncio.sleep(0)  # a task that is cancelled before its first step never reports its end
            for task in list(self._tasks):
                task.cancel()
            self._abandon_waiting()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(firing, stopping, return_exceptions=True)
        error = self._error or broken  # a bug, or a workload that failed half-way
        if error is not None:
            raise error

    def _abandon_waiting(self) -> None:
        while self._waiting:
            self._give_up(self._waiting.popleft(), "cancelled", "the run ended before it could be sent")

    # Closed loop: each user has one request at a time

    async def _closed(self, schedule: Iterator[ScheduledRequest], max_in_flight: int) -> None:
        await self._timer.until(self._clock.zero)
        self._due_now = True
        self._schedule = schedule
        while self.in_flight < max_in_flight and self._next():
            if self.sent % 16 == 0:
                await asyncio.sleep(0)  # read the first responses while the rest is sent
        await self._drained()

    def _next(self) -> bool:
        """Send the next request, due when its task begins. False if there is none."""
        scheduled = next(self._schedule, None)
        if scheduled is None:
            return False
        request = self._build(scheduled)
        self.due += 1
        self._send(request, self._continue_closed)
        return True

    def _continue_closed(self) -> None:
        if not self._stopped.is_set() and not self._closing:
            self._next()

    # Open loop: by the clock; a request above the cap waits, and its wait counts from when it was due

    async def _open(self, schedule: Iterator[ScheduledRequest], max_in_flight: int, shed: bool) -> None:
        for scheduled in schedule:
            request = self._build(scheduled)  # encoded before it is due
            await self._timer.until(self._clock.zero + request.record.due_ns)
            self.due += 1
            if self.in_flight < max_in_flight and not self._waiting:
                self._send(request, self._continue_open)
            elif shed:
                self.shed += 1
                self._give_up(request, "shed", f"due while {max_in_flight} requests were in flight (--shed)")
            elif len(self._waiting) >= MAX_WAITING:
                self.overrun = True
                self._give_up(request, "shed", f"{MAX_WAITING} requests were already waiting to be sent")
                return
            else:
                request.record.waited = True
                self.waited += 1
                self._waiting.append(request)
        await self._drained()

    def _continue_open(self) -> None:
        if self._waiting and not self._stopped.is_set():
            self._send(self._waiting.popleft(), self._continue_open)

    # Both

    def _send(self, request: PreparedRequest, freed: Callable[[], None]) -> None:
        self.sent += 1
        self._idle.clear()
        task = asyncio.create_task(self._one(request))
        self._tasks.add(task)

        def over(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._error = self._error or error
                self._stopped.set()
            freed()
            if not self._tasks:
                self._idle.set()

        task.add_done_callback(over)

    async def _one(self, request: PreparedRequest) -> None:
        if self._due_now:
            request.record.due_ns = self._clock.since_start(self._clock.now())
        self._on_end(await self._client.send(request))

    def _give_up(self, request: PreparedRequest, failure: str, detail: str) -> None:
        exchange = Exchange(request.record)
        exchange.fail(failure, detail)  # type: ignore[arg-type]
        self._on_end(exchange)

    async def _drained(self) -> None:
        while self._tasks or self._waiting:
            self._idle.clear()
            await self._idle.wait()

"""Sends requests when they are due (open loop) or when a user is free (closed loop); keeps, sheds or cancels the
rest. It is given a client and told where ended exchanges go; it does not know what responses say."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, Protocol

from loadgen.drive.capture.client import PreparedRequest
from loadgen.drive.capture.clock import Clock
from loadgen.drive.capture.exchange import Exchange
from loadgen.drive.conversations import AnswerOf, Conversation, DueRequest
from loadgen.drive.requests import ScheduledRequest
from loadgen.record import Failure
from loadgen.spec import Pace

MAX_WAITING: Final = 100_000
"""Requests that may wait to be sent. Beyond it the server is hopelessly behind, and the run is ended."""


class Sender(Protocol):
    """As `Client`: sends, and returns the exchange when it has ended, failed or not."""

    async def send(self, request: PreparedRequest) -> Exchange: ...


class DueTimer(Protocol):
    """As `Timer`."""

    async def until(self, due_ns: int) -> None: ...


class _Place(NamedTuple):
    """A request, and where it belongs."""

    request: PreparedRequest
    conversation: Conversation | None
    number: int  # its place in the conversation
    due_now: bool  # it is due when its user comes to it


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
        answer_of: AnswerOf = lambda exchange: "",
    ) -> None:
        self._client = client
        self._clock = clock
        self._timer = timer
        self._build = build
        self._on_end = on_end
        self._answer_of = answer_of
        self._max_in_flight = max_in_flight  # the cap that file descriptors impose
        self._cap = max_in_flight  # the most in flight: requests of an open loop, further requests of a user
        self._shed = False
        self._closing = False  # after `max_seconds`: nothing more is sent
        self._users = 0  # closed loop: the users there may be now, each with one request or conversation
        self._busy = 0  # users that have one
        self._tasks: set[asyncio.Task[Exchange]] = set()
        self._planned: set[asyncio.Task[None]] = set()  # later requests of conversations until they are due
        self._waiting: deque[_Place] = deque()
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
        self._shed = pace.shed
        if pace.open_loop:
            self._cap = max_in_flight
        firing = asyncio.create_task(
            self._open(iter(schedule)) if pace.open_loop else self._closed(iter(schedule), max_in_flight)
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
        for planned in self._planned:
            planned.cancel()
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
            for sending in [*self._tasks, *self._planned]:
                sending.cancel()
            self._abandon_waiting()
        await asyncio.gather(*self._tasks, *self._planned, return_exceptions=True)
        await asyncio.gather(firing, stopping, return_exceptions=True)
        error = self._error or broken  # a bug, or a workload that failed half-way
        if error is not None:
            raise error

    def _abandon_waiting(self) -> None:
        while self._waiting:
            self._give_up(self._waiting.popleft(), "cancelled", "the run ended before it could be sent")

    # Closed loop: each user has one request or one conversation at a time

    async def _closed(self, schedule: Iterator[ScheduledRequest], users: int) -> None:
        await self._timer.until(self._clock.zero)
        self._schedule = schedule
        while self._users < users:
            self._users += 1
            if not self._next():
                break
            if self.sent % 16 == 0:
                await asyncio.sleep(0)  # read the first responses while the rest is sent
        await self._drained()

    def _next(self) -> bool:
        """Give a free user the next request, due when its task begins. False if there is none, or no free user."""
        if self._busy >= self._users or self._stopped.is_set() or self._closing:
            return False
        scheduled = next(self._schedule, None)
        if scheduled is None:
            return False
        self._busy += 1
        self.due += 1
        self._begin(scheduled, self._build(scheduled), due_now=True)
        return True

    # Open loop: by the clock; a request above the cap waits, and its wait counts from when it was due

    async def _open(self, schedule: Iterator[ScheduledRequest]) -> None:
        for scheduled in schedule:
            request = self._build(scheduled)  # encoded before it is due
            await self._timer.until(self._clock.zero + request.record.due_ns)
            self.due += 1
            self._begin(scheduled, request)
            if self.overrun:
                return
        await self._drained()

    # Both

    def _begin(self, scheduled: ScheduledRequest, request: PreparedRequest, *, due_now: bool = False) -> None:
        """Send a request, or let it wait for a place, and begin its conversation with it."""
        conversation = Conversation(scheduled, self._answer_of) if scheduled.then else None
        place = _Place(request, conversation, 0, due_now)
        self._arrive(place)
        if conversation is not None:
            start = self._clock.since_start(self._clock.now()) if due_now else request.record.due_ns
            self._plan(conversation, conversation.start(start))

    def _arrive(self, place: _Place) -> None:
        if self.in_flight < self._cap and not self._waiting:
            self._send(place)
        elif self._shed:
            self.shed += 1
            self._give_up(place, "shed", f"due while {self._cap} requests were in flight (--shed)")
        elif len(self._waiting) >= MAX_WAITING:
            self.overrun = True
            self._give_up(place, "shed", f"{MAX_WAITING} requests were already waiting to be sent")
            self._stopped.set()
        else:
            place.request.record.waited = True
            self.waited += 1
            self._waiting.append(place)

    def _send(self, place: _Place) -> None:
        self.sent += 1
        self._idle.clear()
        task = asyncio.create_task(self._one(place))
        self._tasks.add(task)

        def over(task: asyncio.Task[Exchange]) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                if (error := task.exception()) is not None:
                    self._error = self._error or error
                    self._stopped.set()
                elif place.conversation is not None and not self._stopped.is_set() and not self._closing:
                    now = self._clock.since_start(self._clock.now())
                    self._plan(place.conversation, place.conversation.ended(place.number, now, task.result()))
            self._freed(place.conversation)

        task.add_done_callback(over)

    async def _one(self, place: _Place) -> Exchange:
        if place.due_now:
            place.request.record.due_ns = self._clock.since_start(self._clock.now())
        exchange = await self._client.send(place.request)
        self._on_end(exchange)
        return exchange

    def _plan(self, conversation: Conversation, dues: list[DueRequest]) -> None:
        """Send the next requests of a conversation when they are due."""
        for due in dues:
            task = asyncio.create_task(self._later(conversation, due))
            self._planned.add(task)
            task.add_done_callback(self._sent_later)

    def _sent_later(self, task: asyncio.Task[None]) -> None:
        self._planned.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = self._error or error
            self._stopped.set()
        if not self._tasks:
            self._idle.set()

    async def _later(self, conversation: Conversation, due: DueRequest) -> None:
        request = self._build(conversation.request(due))
        if due.at_once:  # reading the answer and encoding the next request is no lateness
            request.record.due_ns = self._clock.since_start(self._clock.now())
        else:
            await self._timer.until(self._clock.zero + due.due_ns)
        if conversation.broken:  # another of its requests has failed since
            conversation.abandon()
            self._freed(conversation)
            return
        self.due += 1
        self._arrive(_Place(request, conversation, due.place, due_now=False))

    def _freed(self, conversation: Conversation | None) -> None:
        """A request has ended: its place is for one that waits, and its user for the next, unless its
        conversation goes on."""
        if self._busy and (conversation is None or conversation.over):
            self._busy -= 1
        if not self._stopped.is_set() and not self._closing:
            while self._waiting and self.in_flight < self._cap:
                self._send(self._waiting.popleft())
            while self._next():
                pass
        if not self._tasks:
            self._idle.set()

    def _give_up(self, place: _Place, failure: Failure, detail: str) -> None:
        exchange = Exchange(place.request.record)
        exchange.fail(failure, detail)
        self._on_end(exchange)
        if place.conversation is not None:
            place.conversation.abandon()

    async def _drained(self) -> None:
        while self._tasks or self._waiting or self._planned:
            self._idle.clear()
            await self._idle.wait()

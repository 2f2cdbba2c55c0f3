"""One process's measurement: loop, clock, probe, client, runner and backlog, set up and closed together."""

from __future__ import annotations

import asyncio
import bisect
import gc
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import msgspec

from loadgen.drive.backlog import Backlog
from loadgen.drive.capture.client import Client, PreparedRequest
from loadgen.drive.capture.clock import Clock
from loadgen.drive.capture.decode import answer_of, decode_exchange
from loadgen.drive.capture.exchange import Exchange
from loadgen.drive.capture.loop import Probe, Timer
from loadgen.drive.progress import Progress
from loadgen.drive.requests import RequestBuilder, ScheduledRequest
from loadgen.drive.runner import Runner
from loadgen.drive.self_error import WorkerError, quantile
from loadgen.record import Record
from loadgen.snapshot import View, time_left
from loadgen.spec import Http, Pace

TICK: Final = 0.25  # seconds between samples of the clocks and checks for silent requests
LEAD_NS: Final = 50_000_000  # from the call to the start
RECENT_ENDS: Final = 100_000  # whose times `in_flight_since` knows
VIEW_TICKS: Final = 2  # a snapshot every half second

Inspect = Callable[[Exchange, Record, Clock], None]
"""Called with each exchange and its record: `calibrate` compares them."""


class Outcome(msgspec.Struct, kw_only=True):
    """The outcome of a phase, besides its records."""

    worker_error: WorkerError
    start_unix_ns: int
    interrupted: bool = False
    stopped: str = ""  # why `max_errors` ended it
    overrun: bool = False
    waited: int = 0
    shed: int = 0
    end_ns: int = 0  # when the last request had ended


class Session:
    """One process's measurement, for one phase after another. Use as `async with`."""

    def __init__(
        self,
        http: Http,
        builder: RequestBuilder,
        *,
        max_in_flight: int,
        worker: int = 0,
        kernel: bool = True,
        hide: Callable[[str], str] = str,
        view: View | None = None,
        inspect: Inspect | None = None,
        keep_answers: bool = False,
        objectives: Mapping[str, float] | None = None,
    ) -> None:
        self._http = http
        self._builder = builder
        self._max_in_flight = max_in_flight
        self._worker = worker
        self._kernel = kernel
        self._hide = hide
        self._view = view
        self._inspect = inspect
        self._keep_answers = keep_answers
        self._objectives = objectives
        self._runner: Runner | None = None
        self._progress = Progress()
        self._stopped = False
        self._start_ns = 0  # of the phase
        self._ends: deque[int] = deque(maxlen=RECENT_ENDS)

    async def __aenter__(self) -> Session:
        loop = asyncio.get_running_loop()
        self.client = Client(self._http, kernel=self._kernel)
        self._timer = Timer(loop)
        self._probe = Probe(loop)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._probe.close()
        self._timer.close()
        await self.client.close()

    def stop(self) -> None:
        """End the current phase and begin no other: Ctrl-C."""
        self._stopped = True
        if self._runner is not None:
            self._runner.stop()

    def cut(self) -> None:
        """End the current phase; others may follow."""
        if self._runner is not None:
            self._runner.stop()

    def missed(self, now_ns: int, ttft_ns: float, e2e_ns: float) -> int:
        """How many requests of the phase have missed the objectives already. Of those in flight: due longer ago
        than the first limit without a byte of response, or than the second. `now_ns` is since the run's start."""
        late = sum(
            now_ns - exchange.record.due_ns > (e2e_ns if exchange.first_ns else min(ttft_ns, e2e_ns))
            for exchange in self.client.open
        )
        return late + self._progress.done - self._progress.good

    @staticmethod
    def now() -> int:
        """CLOCK_MONOTONIC, in nanoseconds."""
        return time.monotonic_ns()

    def in_flight_since(self, since_ns: int) -> int:
        """How many requests were in flight at any time since this time of CLOCK_MONOTONIC."""
        return len(self.client.open) + len(self._ends) - bisect.bisect_left(self._ends, since_ns)

    @property
    def stopped(self) -> bool:
        return self._stopped

    async def phase(
        self,
        schedule: Iterable[ScheduledRequest],
        pace: Pace,
        emit: Callable[[Record], None],
        *,
        start_ns: int | None = None,
        warmup: bool = False,
        total: int | None = None,
        rate: float | None = None,
        stage: str = "",
    ) -> Outcome:
        """Send the schedule. Records go to `emit` in the order in which requests ended, mostly after the last one.

        `start_ns` is the start on CLOCK_MONOTONIC that all workers share; None: soon. Due times count from it.
        """
        upcoming = iter(schedule)
        head = list(itertools.islice(upcoming, 1))  # a dataset may load its texts now: longer than LEAD_NS
        gc.collect()  # and so may this be, of a large heap
        clock = Clock()
        clock.zero = start_ns or clock.now() + LEAD_NS
        progress = self._progress = Progress(self._objectives, clock.zero)
        worker_error = WorkerError()
        backlog = Backlog(lambda exchange: self._decode(exchange, clock, worker_error), emit)

        stopped = ""

        def ended(exchange: Exchange) -> None:
            nonlocal stopped
            self._ends.append(time.monotonic_ns())
            progress.ended(exchange)
            backlog.add(exchange)
            if pace.max_errors is not None and not stopped:
                stopped = pace.max_errors.reached(progress.errors, progress.done)
                if stopped:
                    runner.stop()

        def build(scheduled: ScheduledRequest) -> PreparedRequest:
            return self._builder.build(scheduled, worker=self._worker, warmup=warmup)

        runner = self._runner = Runner(
            self.client,
            clock,
            self._timer,
            build,
            ended,
            max_in_flight=self._max_in_flight,
            answer_of=lambda exchange: answer_of(exchange, self._builder.endpoint),
        )
        if self._stopped:
            runner.stop()
        self._start_ns = max(clock.zero, clock.now())
        ticking = asyncio.create_task(self._tick(runner, clock, progress, total, rate, stage, pace.max_seconds))
        with _calm_collector():
            self._probe.clear()
            began, cpu = time.monotonic(), time.process_time()
            try:
                await runner.run(itertools.chain(head, upcoming), pace)
            finally:
                worker_error.cpu = (time.process_time() - cpu) / max(time.monotonic() - began, 1e-9)
                worker_error.loop_ns = list(self._probe.samples)
                ended_at = clock.since_start(clock.now())
                ticking.cancel()
                await asyncio.gather(ticking, return_exceptions=True)
        clock.sample()
        backlog.flush()
        worker_error.drift_ns, worker_error.step_ns = clock.drift_ns, clock.step_ns
        return Outcome(
            worker_error=worker_error,
            start_unix_ns=clock.start_unix_ns(),
            interrupted=self._stopped,
            stopped=stopped,
            overrun=runner.overrun,
            waited=runner.waited,
            shed=runner.shed,
            end_ns=ended_at,
        )

    def _decode(self, exchange: Exchange, clock: Clock, worker_error: WorkerError) -> Record:
        stamped = sum(1 for read in exchange.reads() if read.kernel_ns)
        worker_error.kernel_reads += stamped
        worker_error.user_reads += exchange.read_count - stamped
        if exchange.wrote_ns:
            worker_error.kernel_sends += exchange.tx_ns != 0
            worker_error.user_sends += exchange.tx_ns == 0
        record = decode_exchange(
            exchange, clock, self._hide, endpoint=self._builder.endpoint, keep_answer=self._keep_answers
        )
        if self._inspect is not None:
            self._inspect(exchange, record, clock)
        return record

    async def _tick(
        self,
        runner: Runner,
        clock: Clock,
        progress: Progress,
        total: int | None,
        rate: float | None,
        stage: str,
        max_seconds: float | None,
    ) -> None:
        """Four times a second: sample the clocks, end silent requests, update the live view."""
        ticks = 0
        while True:
            await asyncio.sleep(TICK)
            clock.sample()
            self.client.sweep(clock.now())
            ticks += 1
            if self._view is None or ticks % VIEW_TICKS:
                continue
            seconds = (clock.now() - self._start_ns) / 1e9
            snapshot = progress.snapshot(self.client.open, seconds=seconds, sent=runner.sent)
            snapshot.stage, snapshot.total, snapshot.requested_rate = stage, total, rate
            snapshot.due = runner.due
            snapshot.under_way, snapshot.waiting = runner.in_flight, runner.waiting
            recent = sorted(self._probe.samples[-1000:])
            snapshot.lag_ms = quantile(recent, 0.99) / 1e6 if recent else None
            snapshot.seconds_left = time_left(snapshot, max_seconds)
            self._view(snapshot)


@contextmanager
def _calm_collector() -> Iterator[None]:
    """A full garbage collection stops the loop for tens of milliseconds if the heap is large.

    Existing objects are frozen, and young ones are collected a hundred times less often than usual.
    """
    usual = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(usual[0] * 100, usual[1], usual[2])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()

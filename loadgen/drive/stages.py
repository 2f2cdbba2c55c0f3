"""The stages of one run: one load after another on one time axis, each with prompts that no earlier stage used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from loadgen.drive.requests import schedule_items
from loadgen.drive.self_error import WorkerError
from loadgen.drive.session import TICK, Session
from loadgen.record import Record
from loadgen.spec import Pace
from loadgen.workload import Item

LEAD: Final = 0.05  # seconds from the call to the first due time


class Stages:
    """Runs stages and keeps their records. `sent`: items of the workload; `ran_out`: a stage got fewer of them
    than it asked for."""

    def __init__(self, session: Session, items: Iterable[Item], emit: Callable[[Record], None]) -> None:
        self._session = session
        self._items = iter(items)
        self._number = 0  # of the next request; those of a conversation have numbers of their own
        self._emit = emit
        self._zero_ns = session.now()
        self.sent = 0
        self.start_unix_ns = 0
        self.worker_errors: list[WorkerError] = []
        self.ran_out = False

    @property
    def elapsed(self) -> float:
        """Seconds since the first stage could begin."""
        return (self._session.now() - self._zero_ns) / 1e9

    async def run(
        self,
        name: str,
        pace: Pace,
        count: int,
        times: Iterable[float] | None = None,
        *,
        rate: float | None = None,
        hopeless: Callable[[int], bool] | None = None,
    ) -> tuple[list[Record], bool]:
        """The stage's records, and whether it was given up.

        `times`: seconds from the stage's start; None for a closed loop. `hopeless`: called every 250 ms with the
        time now since the run's start, in nanoseconds; true ends the stage, and requests in flight are cancelled.
        """
        records: list[Record] = []
        start = self.elapsed + LEAD
        total = None if times is None and pace.max_seconds else count  # users go on for so long, not for so many
        dues = None if times is None else (start + at for at in times)
        schedule = schedule_items(self._taken(count), dues, stage=name, first=self._number)
        watching = asyncio.create_task(self._watch(hopeless)) if hopeless is not None else None
        given_up = False
        try:
            outcome = await self._session.phase(
                schedule, pace, records.append, start_ns=self._zero_ns, total=total, rate=rate, stage=name
            )
        finally:
            if watching is not None:
                given_up = watching.done()
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        if records:
            self.worker_errors.append(outcome.worker_error)
        self.start_unix_ns = self.start_unix_ns or outcome.start_unix_ns
        for record in records:
            self._emit(record)
        return records, given_up

    def _taken(self, count: int) -> Iterator[Item]:
        for _ in range(count):
            item = next(self._items, None)
            if item is None:
                self.ran_out = True
                return
            self.sent += 1
            self._number += 1 + len(item.then)
            yield item

    async def _watch(self, hopeless: Callable[[int], bool]) -> None:
        while True:
            await asyncio.sleep(TICK)
            if hopeless(self._session.now() - self._zero_ns):
                self._session.cut()
                return

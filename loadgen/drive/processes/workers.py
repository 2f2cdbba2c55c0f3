"""The worker processes of a run: their common start, their messages, their ends, the exact merge. Each writes its
own file; no record passes through the parent while they run."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from loadgen import store
from loadgen.drive.processes.job import Job
from loadgen.drive.processes.signals import stop_on_signals
from loadgen.drive.processes.worker import WorkerMessage
from loadgen.drive.self_error import WorkerError
from loadgen.drive.session import Outcome
from loadgen.errors import UsageError
from loadgen.record import Record, Run
from loadgen.snapshot import Snapshot, View, merged
from loadgen.spec import ErrorLimit

START_IN_NS: Final = 200_000_000  # from when the last worker is ready
LINE_LIMIT: Final = 64 * 1024 * 1024  # an outcome holds the probe's samples: 8 bytes of text each, 100 a second


class Worker:
    """One worker process, seen from its parent."""

    def __init__(self, process: Process, file: Path) -> None:
        self.process = process
        self.file = file
        self.ready = asyncio.Event()
        self.snapshot: Snapshot | None = None
        self.outcome: Outcome | None = None
        self.unwritten: list[Record] = []  # records that its file lacks

    async def listen(self) -> None:
        """Read its messages to the end. Sets `ready` even if the worker died, so that nothing waits for it."""
        assert self.process.stdout is not None
        try:
            async for line in self.process.stdout:
                message = msgspec.json.decode(line, type=WorkerMessage)
                if message.ready:
                    self.ready.set()
                self.snapshot = message.snapshot or self.snapshot
                self.outcome = message.outcome or self.outcome
                if message.record is not None:
                    self.unwritten.append(message.record)
        finally:
            self.ready.set()

    def send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self.process.stdin.write(line + b"\n")

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)


class Errors:
    """Counts the failures of all workers, twice a second."""

    def __init__(self, limit: ErrorLimit | None) -> None:
        self.limit = limit
        self.stopped = ""

    def end(self, state: Snapshot) -> bool:
        """Whether the run ends now because of them."""
        if self.limit is None or self.stopped:
            return False
        self.stopped = self.limit.reached(state.errors, state.done)
        return bool(self.stopped)


async def run_workers(job: Job, run: Run, folder: Path, view: View) -> tuple[list[Record], list[WorkerError]]:
    """The run's records, merged in the order of the schedule, and each worker's own error.

    Raises UsageError if a worker died: without its share the run is not the one that was requested. Raises
    KeyboardInterrupt if that was because it was stopped before it had begun.
    """
    workers: list[Worker] = []
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        _stop_all(workers)

    errors = Errors(job.pace.max_errors)
    try:
        for number in range(job.workers):
            workers.append(await _start(job, number, folder))
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker.listen())
            watching = group.create_task(_watch(workers, view, errors))
            stop_on_signals(stop, view.note)
            for worker in workers:
                await worker.ready.wait()
            start = str(time.monotonic_ns() + START_IN_NS).encode()
            for worker in workers:
                worker.send(start)
            for worker in workers:
                await worker.process.wait()
            watching.cancel()
    finally:
        for worker in workers:
            if worker.process.returncode is None:
                worker.process.kill()
                await worker.process.wait()
    if stopped and any(worker.outcome is None for worker in workers):
        raise KeyboardInterrupt
    run.stopped = errors.stopped
    return _merge(workers, run, folder)


async def _start(job: Job, number: int, folder: Path) -> Worker:
    file = folder / f"events-{number}.jsonl"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "loadgen",
        "worker",
        stdin=PIPE,
        stdout=PIPE,
        limit=LINE_LIMIT,
        start_new_session=True,  # the terminal's Ctrl-C reaches only the parent, which passes it on
    )
    worker = Worker(process, file)
    worker.send(msgspec.json.encode(job.share(number, str(file))))
    return worker


def _stop_all(workers: list[Worker]) -> None:
    for worker in workers:
        worker.stop()


async def _watch(workers: list[Worker], view: View, errors: Errors) -> None:
    while True:
        await asyncio.sleep(0.5)
        parts = [worker.snapshot for worker in workers if worker.snapshot is not None]
        if parts:
            state = merged(parts)
            if errors.end(state):
                _stop_all(workers)
            if view is not None:
                view(state)


def _write(folder: Path, records: Iterable[Record]) -> str:
    with store.EventsFile(folder / store.EVENTS) as file:
        for record in records:
            file.append(record)
    return file.warning


def _records_of(worker: Worker) -> Iterator[Record]:
    """Raises StoreError, also where somebody removed the folder during the run."""
    if worker.file.exists() or not worker.unwritten:
        yield from store.read_records(worker.file)
    yield from worker.unwritten


def _merge(workers: list[Worker], run: Run, folder: Path) -> tuple[list[Record], list[WorkerError]]:
    outcomes = [worker.outcome for worker in workers if worker.outcome is not None]
    if len(outcomes) < len(workers):
        codes = ", ".join(str(worker.process.returncode) for worker in workers)
        raise UsageError(f"a worker died (exit codes {codes}); the events of each are in {folder}")
    records = [record for worker in workers for record in _records_of(worker)]
    records.sort(key=lambda record: (not record.warmup, abs(record.index), record.worker))
    warning = _write(folder, records)
    for worker in workers:
        worker.file.unlink(missing_ok=True)
    warning = warning and _write(folder, records)  # there is room now that the workers' files are gone
    run.warnings += [warning] if warning else []
    run.interrupted = not run.stopped and any(outcome.interrupted for outcome in outcomes)
    run.start_unix_ns = outcomes[0].start_unix_ns
    waited = sum(outcome.waited for outcome in outcomes)
    if waited:
        run.warnings.append(f"{waited} of the requests waited to be sent; latencies from due include that")
    if any(outcome.overrun for outcome in outcomes):
        run.warnings.append("the run was ended: too many requests were waiting to be sent")
    return records, [outcome.worker_error for outcome in outcomes]

"""A run in one process: warm-up, one phase, each record written as it ends, Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from loadgen import store
from loadgen.drive.processes.job import Job, session_of, warm_up
from loadgen.drive.processes.signals import stop_on_signals
from loadgen.drive.requests import ScheduledRequest
from loadgen.drive.self_error import WorkerError
from loadgen.record import Record, Run
from loadgen.snapshot import View
from loadgen.workload import Workload


async def run_single(
    job: Job,
    workload: Workload,
    schedule: Iterable[ScheduledRequest],
    run: Run,
    folder: Path,
    hide: Callable[[str], str],
    view: View,
    *,
    total: int | None,
    stage: str = "",
) -> tuple[list[Record], list[WorkerError]]:
    """The records, which are written to `folder` as well, and the process's own error. Updates `run`."""
    records: list[Record] = []
    with store.EventsFile(folder / store.EVENTS) as file:

        def emit(record: Record) -> None:
            records.append(record)
            file.append(record)

        async with session_of(job, hide, view) as session:
            stop_on_signals(session.stop, view.note)
            await warm_up(job, session, workload, emit)
            outcome = await session.phase(
                schedule, job.pace, emit, total=total, rate=job.schedule.rate, stage=stage
            )
    run.warnings += [file.warning] if file.warning else []
    run.interrupted = outcome.interrupted
    run.start_unix_ns = outcome.start_unix_ns
    _add_warnings(run, outcome.waited, outcome.overrun, job)
    return records, [outcome.worker_error]


def _add_warnings(run: Run, waited: int, overrun: bool, job: Job) -> None:
    if waited and job.pace.max_concurrency is None:
        run.warnings.append(
            f"{waited} of the requests waited because only {job.max_in_flight} connections may be open (ulimit -n)"
        )
    elif waited:
        run.warnings.append(
            f"{waited} of the requests waited for --max-concurrency; latencies from due include that"
        )
    if overrun:
        run.warnings.append("the run was ended: too many requests were waiting to be sent")

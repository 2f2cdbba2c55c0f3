"""What every machine does of a run, machine 0 or another: its share of the schedule, from the common start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from loadgen import store
from loadgen.drive.machines.messages import Plan
from loadgen.drive.processes.job import Job, job_schedule, session_of, warm_up
from loadgen.drive.session import Outcome, Session
from loadgen.record import Record
from loadgen.snapshot import View
from loadgen.workload import open_workload


class Part(NamedTuple):
    """One machine's records and what its session says of them."""

    run: str  # the run's name
    records: list[Record]
    outcome: Outcome


def planned(job: Job, machine: int, machines: int, plan: Plan) -> Job:
    """One machine's share of the job under the common names. Every machine ends by its own `max_errors`."""
    common = msgspec.structs.replace(
        job,
        run=plan.run,
        workload=msgspec.structs.replace(job.workload, salt=plan.salt),
        workers=machines,
        max_in_flight=job.max_in_flight * machines,  # of each machine, not of all together
    )
    share = common.share(machine, "")
    return msgspec.structs.replace(share, pace=msgspec.structs.replace(share.pace, max_errors=job.pace.max_errors))


async def carry_out(
    job: Job,
    folder: Path,
    hide: Callable[[str], str],
    view: View,
    started: Callable[[Session], Awaitable[int]],
) -> Part:
    """The share, its records also in `folder`. `started` is called when the warm-up is over and returns the start
    on this machine's CLOCK_MONOTONIC."""
    workload = open_workload(job.workload)
    records: list[Record] = []
    with store.EventsFile(folder / store.EVENTS) as file:

        def emit(record: Record) -> None:
            records.append(record)
            file.append(record)

        async with session_of(job, hide, view) as session:
            await warm_up(job, session, workload, emit)
            start = await started(session)
            outcome = await session.phase(
                job_schedule(job, workload),
                job.pace,
                emit,
                start_ns=start,
                total=None if job.num_prompts is None else len(range(job.worker, job.num_prompts, job.workers)),
                rate=job.schedule.rate,
            )
    return Part(job.run, records, outcome)

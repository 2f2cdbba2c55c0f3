"""One worker process: a job from stdin, its share measured, records to its own file, messages to its parent. It
knows nothing of other workers: the schedule is cut by arithmetic, and the start is a time of CLOCK_MONOTONIC."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from signal import SIGINT, SIGTERM

import msgspec

from loadgen import store
from loadgen.drive.capture.loop import new_loop
from loadgen.drive.processes.job import Job, job_schedule, session_of, warm_up
from loadgen.drive.session import Outcome
from loadgen.record import Record
from loadgen.secrets import Hide
from loadgen.snapshot import Snapshot
from loadgen.workload import open_workload


class WorkerMessage(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One line to the parent. Records go this way only after the run, where the disk was full: a full pipe would
    block the loop."""

    ready: bool = False
    snapshot: Snapshot | None = None
    outcome: Outcome | None = None
    record: Record | None = None


def send(word: WorkerMessage) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(word) + b"\n")
    sys.stdout.buffer.flush()


class ToParent:
    """The live view of a worker: its parent shows it."""

    def __call__(self, snapshot: Snapshot) -> None:
        send(WorkerMessage(snapshot=snapshot))

    def note(self, text: str) -> None:
        raise NotImplementedError("a worker has nothing to say")


def worker_main() -> int:
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_work(job))
    return 0


async def _work(job: Job) -> None:
    workload = open_workload(job.workload)
    hide = Hide(job.secrets)
    loop = asyncio.get_running_loop()
    with store.EventsFile(Path(job.events)) as file:
        async with session_of(job, hide, ToParent()) as session:
            for number in (SIGINT, SIGTERM):
                loop.add_signal_handler(number, session.stop)
            await warm_up(job, session, workload, file.append)
            send(WorkerMessage(ready=True))
            start = await loop.run_in_executor(None, sys.stdin.buffer.readline)
            if not start.strip():
                return  # the parent is gone or has given up
            outcome = await session.phase(
                job_schedule(job, workload),
                job.pace,
                file.append,
                start_ns=int(start),
                total=None if job.num_prompts is None else len(range(job.worker, job.num_prompts, job.workers)),
                rate=job.schedule.rate,
            )
    for record in file.unwritten:
        send(WorkerMessage(record=record))
    send(WorkerMessage(outcome=outcome))

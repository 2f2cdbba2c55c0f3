"""Owns one worker process: a job from stdin, its share measured, records to its own file, words to its parent.
Must not know the other workers: the schedule is cut by arithmetic, and the start is a time of CLOCK_MONOTONIC.
Started by `workers.py` as `python -m loadgen worker`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from signal import SIGINT, SIGTERM

import msgspec

from loadgen import store
from loadgen.drive.capture.loop import new_loop
from loadgen.drive.processes.job import Job, measure_of, shots_of, warm_up
from loadgen.drive.session import Outcome
from loadgen.record import Record
from loadgen.secrets import Hide
from loadgen.snapshot import Snapshot
from loadgen.workload.workload import open_workload


class Word(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One line to the parent. No record goes this way: a queue of those could fill up and hold the loop."""

    ready: bool = False
    snapshot: Snapshot | None = None
    outcome: Outcome | None = None


def say(word: Word) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(word) + b"\n")
    sys.stdout.buffer.flush()


def main() -> int:
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_work(job))
    return 0


async def _work(job: Job) -> None:
    workload = open_workload(job.workload)
    hide = Hide(job.secrets)
    loop = asyncio.get_running_loop()
    with Path(job.events).open("wb") as file:  # noqa: ASYNC230 - before anything is measured

        def emit(record: Record) -> None:
            store.append(file, record)

        async with measure_of(job, hide, lambda snapshot: say(Word(snapshot=snapshot))) as measure:
            for number in (SIGINT, SIGTERM):
                loop.add_signal_handler(number, measure.stop)
            await warm_up(job, measure, workload, emit)
            say(Word(ready=True))
            start = await loop.run_in_executor(None, sys.stdin.buffer.readline)
            if not start.strip():
                return  # the parent is gone, or has given up
            outcome = await measure.phase(
                shots_of(job, workload),
                job.pace,
                emit,
                start_ns=int(start),
                total=None if job.num_prompts is None else len(range(job.worker, job.num_prompts, job.workers)),
                rate=job.schedule.rate,
            )
    say(Word(outcome=outcome))

"""`run --machines N`: one run shared by several machines, and the exact merge of what they measured."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from loadgen import store
from loadgen.cli.flags import values
from loadgen.drive import Gathered, Job, Leader, Part, WorkerError, join_run
from loadgen.errors import UsageError
from loadgen.record import Machine, Record, Run, Share
from loadgen.snapshot import View

INDEX: Final = "JOB_COMPLETION_INDEX"
"""The environment variable by which Kubernetes numbers the pods of an Indexed Job."""
MOST: Final = 256


def add_machines(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several machines",
        "Start the same command on each. Machine 0 compares the clocks, gives the start, and writes the report.",
    )
    group.add_argument(
        "--machines", type=values.whole(1, MOST), default=1, metavar="N", help="machines that share the schedule"
    )
    group.add_argument(
        "--machine",
        type=values.whole(0, MOST - 1),
        metavar="I",
        help=f"this machine's number, from 0 (default: {INDEX} of the environment)",
    )
    group.add_argument(
        "--meet",
        type=values.address,
        metavar="HOST:PORT",
        help="where machine 0 listens and the others find it; only a trusted network may reach that port",
    )
    group.add_argument(
        "--meet-timeout",
        type=values.number(0, 86400),
        default=300.0,
        metavar="S",
        help="wait this long for the other machines (default %(default)g)",
    )


def check_machines(args: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Set `args.machine`. Raises UsageError for flags that do not make a run on several machines."""
    if args.machines == 1:
        if args.meet or args.machine:
            raise UsageError("--meet and --machine need --machines N, the number of all machines")
        return
    if args.machine is None:
        with contextlib.suppress(ValueError):
            args.machine = int(environ.get(INDEX, ""))
    if args.machine is None or not 0 <= args.machine < args.machines:
        raise UsageError(
            f"--machines {args.machines} needs --machine, or {INDEX} of the environment: this one's number, "
            f"0 to {args.machines - 1}"
        )
    if args.meet is None:
        raise UsageError("--machines needs --meet HOST:PORT, where machine 0 is found")
    if args.num_prompts is None:
        raise UsageError("--machines needs --num-prompts: a probe by each machine would choose different sizes")
    if args.num_prompts < args.machines or (args.max_concurrency or args.machines) < args.machines:
        raise UsageError(f"--num-prompts and --max-concurrency must be at least --machines {args.machines}")
    if args.workers > 1 or args.repeat > 1:
        raise UsageError("--machines goes with neither --workers nor --repeat; start more machines")


async def run_on_machines(
    args: argparse.Namespace, job: Job, run: Run, folder: Path, hide: Callable[[str], str], view: View
) -> tuple[list[Record], list[WorkerError]]:
    """On machine 0 all records, on the others their own, with `run.share` set.

    Raises UsageError if a machine is missing or lost; what this machine measured is in `folder` then.
    """
    if args.machine > 0:
        part, lost = await join_run(
            job, args.machine, args.machines, args.meet, args.meet_timeout, folder, hide, view
        )
        _keep_share(run, part, args, folder)
        if lost:
            raise UsageError(_lost(lost, folder))
        return part.records, [part.outcome.worker_error]
    async with Leader(job, args.machines, args.meet, args.meet_timeout) as leader:
        gathered = await leader.run(folder, hide, view)
    if gathered.lost:
        _keep_share(run, gathered.parts[0], args, folder)
        raise UsageError(_lost(gathered.lost, folder))
    return merge_parts(run, gathered, folder, args.limit_error_ms)


def _lost(why: str, folder: Path) -> str:
    return (
        f"{why}\nthis machine's share is in {folder}; `python -m loadgen merge` joins the shares of all machines"
    )


def _keep_share(run: Run, part: Part, args: argparse.Namespace, folder: Path) -> None:
    """Write what `loadgen merge` needs."""
    outcome = part.outcome
    run.share = Share(
        run=part.run,
        machine=args.machine,
        machines=args.machines,
        worker_error=msgspec.to_builtins(outcome.worker_error),
    )
    run.interrupted, run.stopped = outcome.interrupted, outcome.stopped
    run.start_unix_ns = outcome.start_unix_ns
    store.write_run(folder, run)


def end_of_share(run: Run, folder: Path) -> int:
    """The end of the command on a machine other than 0: its exit code."""
    assert run.share is not None
    print(
        f"machine {run.share.machine} of {run.share.machines}: its share is with machine 0, which writes the "
        f"report; also in {folder}",
        file=sys.stderr,
    )
    return 130 if run.interrupted else 0


def merge_parts(
    run: Run, gathered: Gathered, folder: Path, limit_ms: float
) -> tuple[list[Record], list[WorkerError]]:
    """All records in the order of the schedule, in `folder` too, and each machine's own error.

    Updates `run`, with a warning if the clocks differ by more than `limit_ms`.
    """
    outcomes = [part.outcome for part in gathered.parts]
    records = merged_records([part.records for part in gathered.parts], folder)
    run.workers = len(gathered.parts)
    run.machines = gathered.machines
    run.start_unix_ns = outcomes[0].start_unix_ns
    run.stopped = next((outcome.stopped for outcome in outcomes if outcome.stopped), "")
    run.interrupted = not run.stopped and any(outcome.interrupted for outcome in outcomes)
    waited = sum(outcome.waited for outcome in outcomes)
    if waited:
        run.warnings.append(
            f"{waited} requests waited to be sent; their waiting time counts from when they were due"
        )
    words = clocks_in_words(run.machines)
    print(words, file=sys.stderr)
    if max(machine.clock_error_ms for machine in run.machines) > limit_ms:
        run.warnings.append(words)
    return records, [outcome.worker_error for outcome in outcomes]


def merged_records(parts: Sequence[Sequence[Record]], folder: Path) -> list[Record]:
    records = [record for part in parts for record in part]
    records.sort(key=lambda record: (not record.warmup, abs(record.index), record.worker))
    with store.EventsFile(folder / store.EVENTS) as file:
        for record in records:
            file.append(record)
    return records


def clocks_in_words(machines: Sequence[Machine]) -> str:
    """How far apart the machines' times are, and what that touches."""
    worst = max(machines, key=lambda machine: machine.clock_error_ms)
    drift = max(machines, key=lambda machine: abs(machine.clock_drift_ms)).clock_drift_ms
    return (
        f"{len(machines)} machines: their clocks agree to {worst.clock_error_ms:.2f} ms (largest drift over the "
        f"run {drift:+.3f} ms); that touches when requests were due and rates in a moment, no latency"
    )

"""`python -m loadgen ab`: the same requests to two servers in one run, interleaved and paired."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
from collections.abc import Iterator

from loadgen.cli import finish
from loadgen.cli.flags import common as flags
from loadgen.cli.flags import values
from loadgen.cli.flags.engine import add_engine, sources_of
from loadgen.cli.flags.loads import add_conversation_rate
from loadgen.cli.run import add_arrivals, add_workload, end, new_run, prepare, sent_stats
from loadgen.cli.terminal import live
from loadgen.drive import (
    Job,
    ScheduledRequest,
    new_loop,
    run_single,
    schedule_pairs,
    scraping,
)
from loadgen.secrets import Hide
from loadgen.workload import Workload, open_workload


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("a", "b"):
        parser.add_argument(
            f"--{name}", type=values.url, required=True, metavar="URL", help=f"server {name.upper()}"
        )
    flags.add_server(parser, target=False)
    add_workload(parser)
    add_conversation_rate(add_arrivals(parser))
    flags.refuse_workers(parser, "the two requests of a pair belong to one process")
    flags.add_request(parser)
    flags.add_times(parser)
    flags.add_limits(parser)
    add_engine(parser)
    flags.add_output(parser)


def main(args: argparse.Namespace, argv: list[str]) -> int:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_ab(args, argv))


def ab_schedule(job: Job, workload: Workload) -> Iterator[ScheduledRequest]:
    """Two requests, or conversations, per item. A rate is that of both targets together."""
    times = job.schedule.times(
        item for item in itertools.islice(workload.requests(), job.num_prompts) for _ in job.targets
    )
    items = itertools.islice(workload.requests(), job.num_prompts)
    return schedule_pairs(items, times, seed=job.schedule.seed)


async def _ab(args: argparse.Namespace, argv: list[str]) -> int:
    hide = Hide(flags.secrets_of(args, os.environ))
    job = await prepare(args, {"a": args.a, "b": args.b}, hide)
    workload = open_workload(job.workload)
    run = new_run(args, argv, job, hide)
    folder = finish.make_folder(args.result_dir, args.label or "ab", finish.now())
    conversations = bool(next(workload.requests()).then)
    total = None if conversations or job.num_prompts is None else 2 * job.num_prompts
    async with scraping(sources_of(args, job.targets, job.http), folder) as run.scraped:
        with live.view(quiet=args.quiet, silent=finish.silent(args)) as view:
            schedule = ab_schedule(job, workload)
            records, worker_errors = await run_single(
                job, workload, schedule, run, folder, hide, view, total=total, stage="a and b"
            )
    begun = sum(record.turn <= 1 and not record.warmup for record in records)
    run.sent_stats = sent_stats(workload, job.num_prompts, (begun + 1) // 2)
    return end(args, folder, run, records, worker_errors, open_loop=job.schedule.open_loop)

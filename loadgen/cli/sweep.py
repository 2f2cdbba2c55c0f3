"""`python -m loadgen sweep`: stages at rising rates up to saturation, in one run, each under its own name."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from loadgen import store
from loadgen.analysis import (
    SweepStage,
    chance_warning,
    completion_ratio,
    find_limit,
    next_rate,
)
from loadgen.cli import finish
from loadgen.cli.flags import common as flags
from loadgen.cli.flags import values
from loadgen.cli.flags.engine import add_engine, add_gpus, sources_of
from loadgen.cli.preflight import connection_limit
from loadgen.cli.run import add_workload, end, new_run, prepare, sent_stats
from loadgen.cli.sizing import choose_sweep, choose_users, most_stages, refuse_unmeasured, unmeasured_in
from loadgen.cli.terminal import live
from loadgen.drive import (
    Job,
    Session,
    Stages,
    WorkerError,
    counted_times,
    medians_ms,
    new_loop,
    schedule_items,
    scraping,
    session_of,
    stop_on_signals,
    warm_up,
)
from loadgen.errors import UsageError
from loadgen.record import FRESH, Record
from loadgen.secrets import Hide
from loadgen.spec import Pace
from loadgen.workload import Item, Workload, open_workload

START_RATE: Final = 1.0
STAGE_SECONDS: Final = 30.0
MAX_ARRIVALS: Final = 1_000_000  # of one stage
GIVEN: Final = "--num-prompts or --rates"  # with these there is no probe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_server(parser)
    add_workload(parser)
    group = parser.add_argument_group(
        "stages",
        "Open loop. All stages together send at most --num-prompts. Rates are of requests: conversations "
        "(--turns) begin at the rate divided by their mean number of turns.",
    )
    positive = values.number(0, above=True)
    group.add_argument(
        "--concurrencies",
        type=values.users,
        metavar="N,N,…",
        help="instead of rates: so many users, each with one request at a time, for --stage-seconds each",
    )
    group.add_argument(
        "--rates", type=values.rates, metavar="R,R,…", help="these rates only, in requests per second"
    )
    group.add_argument(
        "--start-rate",
        type=positive,
        metavar="R",
        help=f"lowest rate (default: probed; {START_RATE:g} with {GIVEN})",
    )
    group.add_argument(
        "--top-rate", type=positive, default=1024.0, metavar="R", help="highest rate (default %(default)g)"
    )
    group.add_argument(
        "--stage-seconds",
        type=positive,
        metavar="S",
        help=f"duration of arrivals per stage (default: probed; {STAGE_SECONDS:g} with {GIVEN})",
    )
    group.add_argument(
        "--burstiness", type=positive, metavar="B", help=f"1 Poisson, inf constant (default: inf; 1 with {GIVEN})"
    )
    group.add_argument("--max-concurrency", type=values.whole(1), metavar="N", help="most requests in flight")
    flags.refuse_workers(
        parser, "one process drives a stage; for higher rates use `run --request-rate R --workers N`"
    )
    flags.add_request(parser)
    flags.add_times(parser)
    flags.add_limits(parser)
    add_engine(parser)
    add_gpus(parser)
    flags.add_output(parser)


def main(args: argparse.Namespace, argv: list[str]) -> int:
    if args.start_rate and args.top_rate < args.start_rate:
        raise UsageError(f"--top-rate {args.top_rate:g} is below --start-rate {args.start_rate:g}")
    if args.concurrencies and (args.rates or args.start_rate or args.max_concurrency):
        raise UsageError("--concurrencies is a closed loop: remove --rates, --start-rate and --max-concurrency")
    args.request_rate = None if args.concurrencies else START_RATE  # each stage has its own rate
    args.shed, args.ramp_up_strategy, args.ramp_up_start_rps, args.ramp_up_end_rps = False, None, None, None
    args.trace_speed, args.conversation_rate = 1.0, None
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_sweep_users(args, argv) if args.concurrencies else _sweep(args, argv))


class Sweep:
    """The stages so far, and their records on one time axis."""

    def __init__(self, args: argparse.Namespace, job: Job, workload: Workload, session: Session) -> None:
        self._args = args
        self._job = job
        self._session = session
        self._items = itertools.islice(workload.requests(), job.num_prompts)
        self._turns = mean_turns(workload, job.num_prompts)
        self._number = 0  # of the next request
        self._rates: list[float] | None = args.rates
        self.stages: list[SweepStage] = []
        self.records: list[Record] = []
        self.worker_errors: list[WorkerError] = []
        self.start_unix_ns = 0
        self.ran_out = False
        self._began_ns = session.now()
        self._most_stages = most_stages(args.stage_seconds) if getattr(args, "probe", None) else math.inf

    @property
    def _elapsed_s(self) -> float:
        return (self._session.now() - self._began_ns) / 1e9

    def next_rate(self) -> float | None:
        if self._session.stopped or self.ran_out:
            return None
        left_s = (self._args.max_seconds or math.inf) - self._elapsed_s
        if len(self.stages) >= self._most_stages or (self.stages and left_s < self._args.stage_seconds):
            return None
        if self._rates is not None:
            done = len(self.stages)
            return self._rates[done] if done < len(self._rates) else None
        rate = next_rate(self.stages, start=self._args.start_rate, limit=self._args.top_rate)
        return rate and float(f"{rate:.3g}")

    async def stage(self, rate: float, zero_ns: int) -> SweepStage:
        """Send at this rate for the stage's seconds, then wait until all requests have ended. Raises UsageError if
        the first stage's responses lack an objective's measure."""
        name = f"rate={rate:g}"
        records: list[Record] = []
        clock_s = (self._session.now() - zero_ns) / 1e9 + 0.05
        schedule = schedule_items(
            self._unused_items(rate), self._times(rate, clock_s), stage=name, first=self._number
        )
        limit = self._args.max_seconds
        outcome = await self._session.phase(
            schedule,
            Pace(
                max_concurrency=self._job.pace.max_concurrency,
                open_loop=True,
                max_seconds=None if limit is None else max(limit - self._elapsed_s, 0.0),
                grace_seconds=self._args.grace_seconds,
            ),
            records.append,
            start_ns=zero_ns,
            total=self._arrivals(rate) if self._turns == 1 else None,
            rate=rate,
            stage=name,
        )
        if records:
            self.worker_errors.append(outcome.worker_error)
        self.start_unix_ns = self.start_unix_ns or outcome.start_unix_ns
        self.records += records
        if not self.stages and not self._session.stopped:
            refuse_unmeasured(unmeasured_in(records, self._job.objectives))
        stage = stage_of(rate, records)
        if not any(
            record.failure == "cancelled" for record in records
        ):  # a stage cut off says nothing of its rate
            self.stages.append(stage)
        return stage

    def _times(self, rate: float, start_s: float) -> Iterator[float]:
        """As many arrivals as the rate has in a stage: their number is not left to chance."""
        seed = self._args.seed + len(self.stages)
        times = counted_times(rate / self._turns, self._arrivals(rate), self._args.burstiness, seed=seed)
        return (start_s + at for at in times)

    def _arrivals(self, rate: float) -> int:
        """How many requests, or conversations, a stage has, unless the prompts end before."""
        count: int = max(round(rate / self._turns * self._args.stage_seconds), 1)
        return min(count, self._job.num_prompts or MAX_ARRIVALS)

    def _unused_items(self, rate: float) -> Iterator[Item]:
        """What no earlier stage used, so that no stage is answered from a cache that another filled."""
        for count in itertools.count():
            item = next(self._items, None)
            if item is None:
                self.ran_out = count < rate / self._turns * self._args.stage_seconds / 2
                return
            self._number += 1 + len(item.then)
            yield item


def stage_of(rate: float, records: Iterable[Record]) -> SweepStage:
    """The stage's result. Its pace is that of the responses that were not shared, since a cache always keeps up,
    and of conversations' first ones, since the later ones are due after an answer."""
    measured = [record for record in records if not record.warmup]
    good = [record for record in measured if record.failure is None and record.end_ns is not None]
    if not good:
        return SweepStage(
            requested=rate, pace=0.0, ttft_p50_ms=None, failed=1.0 if measured else 0.0, requests=len(measured)
        )
    firsts = [record for record in good if record.turn <= 1] or good
    judged = [record for record in firsts if record.shared in FRESH] or firsts
    kept = completion_ratio(
        [record.due_ns for record in judged], [record.end_ns for record in judged if record.end_ns is not None]
    )
    ends = [record.end_ns for record in measured if record.end_ns is not None]
    seconds = (max(ends) - min(record.due_ns for record in measured)) / 1e9
    return SweepStage(
        requested=rate,
        pace=kept * len(good) / len(measured),
        ttft_p50_ms=medians_ms(good)[0],
        failed=1 - len(good) / len(measured),
        completed=len(good) / max(seconds, len(measured) / rate),
        requests=len(measured),
    )


def mean_turns(workload: Workload, num_prompts: int | None) -> float:
    """Requests of an item of the workload: 1, or the turns of a conversation in the mean."""
    sizes = [1 + len(item.then) for item in itertools.islice(workload.requests(), min(num_prompts or 1000, 1000))]
    return sum(sizes) / len(sizes)


async def _sweep(args: argparse.Namespace, argv: list[str]) -> int:
    hide = Hide(flags.secrets_of(args, os.environ))
    job = await prepare(args, {"a": flags.base_of(args)}, hide, choose_sweep)
    args.start_rate, args.stage_seconds = args.start_rate or START_RATE, args.stage_seconds or STAGE_SECONDS
    args.request_rate = args.start_rate
    args.burstiness = args.burstiness or 1.0
    workload = open_workload(job.workload)
    run = new_run(args, argv, job, hide)
    folder = finish.make_folder(args.result_dir, args.label or "sweep", finish.now())
    warm: list[Record] = []
    async with scraping(sources_of(args, job.targets, job.http), folder) as run.scraped:
        with live.view(quiet=args.quiet, silent=finish.silent(args)) as view:
            async with session_of(job, hide, view) as session:
                stop_on_signals(session.stop, view.note)
                await warm_up(job, session, workload, warm.append)
                sweep = Sweep(args, job, workload, session)
                zero = session.now()
                with store.EventsFile(folder / store.EVENTS) as file:
                    for record in warm:
                        file.append(record)
                    while (rate := sweep.next_rate()) is not None:
                        written = len(sweep.records)
                        stage = await sweep.stage(rate, zero)
                        for record in sweep.records[written:]:
                            file.append(record)
                        cut = "" if stage in sweep.stages else " (cut off)"
                        view.note(line_of(stage) + cut)
                run.interrupted = session.stopped
    run.warnings += [file.warning] if file.warning else []
    run.start_unix_ns = sweep.start_unix_ns
    limit = find_limit(sweep.stages)
    run.config["limit"] = msgspec.to_builtins(limit)
    warning = chance_warning(sweep.stages) if math.isfinite(args.burstiness) else None
    run.warnings += [warning] if warning else []
    if sweep.ran_out:
        run.warnings.append("the sweep ran out of prompts: raise --num-prompts")
    if not finish.silent(args):
        print(f"knee: {limit}", file=sys.stderr)
    run.sent_stats = sent_stats(workload, job.num_prompts, len(sweep.records))
    return end(args, folder, run, warm + sweep.records, sweep.worker_errors, open_loop=True)


async def _sweep_users(args: argparse.Namespace, argv: list[str]) -> int:
    """A stage for each number of users. Its requests that are in flight at its end are waited for, so that the
    longest are not missing."""
    hide = Hide(flags.secrets_of(args, os.environ))
    args.burstiness = args.burstiness or 1.0
    job = await prepare(args, {"a": flags.base_of(args)}, hide, choose_users)
    job = msgspec.structs.replace(job, max_in_flight=connection_limit(max(args.concurrencies)))
    args.stage_seconds = args.stage_seconds or STAGE_SECONDS
    workload = open_workload(job.workload)
    run = new_run(args, argv, job, hide)
    run.config["max_concurrency"] = max(args.concurrencies)
    folder = finish.make_folder(args.result_dir, args.label or "sweep", finish.now())
    kept: list[Record] = []
    async with scraping(sources_of(args, job.targets, job.http), folder) as run.scraped:
        with live.view(quiet=args.quiet) as view, store.EventsFile(folder / store.EVENTS) as file:

            def emit(record: Record) -> None:
                kept.append(record)
                file.append(record)

            async with session_of(job, hide, view) as session:
                stop_on_signals(session.stop, view.note)
                await warm_up(job, session, workload, emit)
                stages = Stages(session, itertools.islice(workload.requests(), job.num_prompts), emit)
                for users in args.concurrencies:
                    left_s = (args.max_seconds or math.inf) - stages.elapsed
                    if session.stopped or stages.ran_out or left_s <= 0:
                        break
                    seconds = min(args.stage_seconds, left_s)
                    pace = Pace(max_concurrency=users, max_seconds=seconds, grace_seconds=args.grace_seconds)
                    records, _ = await stages.run(
                        f"{users} user{'s' if users > 1 else ''}", pace, job.num_prompts or MAX_ARRIVALS
                    )
                    if users == args.concurrencies[0] and not session.stopped:
                        refuse_unmeasured(unmeasured_in(records, job.objectives))
                run.interrupted = session.stopped
    run.warnings += [file.warning] if file.warning else []
    run.start_unix_ns = stages.start_unix_ns
    if stages.ran_out:
        run.warnings.append("the sweep ran out of prompts: raise --num-prompts")
    names = [record.stage for record in kept if not record.warmup]
    run.focus = max(names, key=lambda name: int(name.split()[0]), default="")
    run.sent_stats = sent_stats(workload, job.num_prompts, stages.sent)
    return end(args, folder, run, kept, stages.worker_errors, open_loop=False)


def line_of(stage: SweepStage) -> str:
    ttft = "–" if stage.ttft_p50_ms is None else f"{stage.ttft_p50_ms:.1f} ms"
    rates = f"{stage.requested:8.2f} req/s requested, {stage.completed:8.2f} completed"
    return f"{rates}, TTFT p50 {ttft}, failed {stage.failed:.1%}"

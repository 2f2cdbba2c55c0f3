"""`python -m loadgen find`: the highest rate, or number of users, at which a server meets its objectives."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from loadgen import store
from loadgen.analysis import (
    Found,
    Measured,
    Plan,
    Search,
    Stage,
    amount,
    in_order,
    measure_records,
    met,
    parse_goodput,
    percent,
    strain,
)
from loadgen.cli import finish
from loadgen.cli.flags import common as flags
from loadgen.cli.flags import values
from loadgen.cli.flags.engine import add_engine, add_gpus, sources_of
from loadgen.cli.preflight import connection_limit
from loadgen.cli.run import add_workload, finished, new_run, prepare, sent_stats
from loadgen.cli.sizing import choose_find, refuse_unmeasured, unmeasured_in
from loadgen.cli.terminal import live
from loadgen.drive import (
    Job,
    Session,
    Stages,
    judge_self_error,
    lag_of,
    new_loop,
    scraping,
    session_of,
    stop_on_signals,
    warm_up,
)
from loadgen.errors import UsageError
from loadgen.record import Record, Run
from loadgen.report import unmeasured_text
from loadgen.secrets import Hide
from loadgen.snapshot import View
from loadgen.spec import Pace
from loadgen.workload import open_workload

PRECISION: Final = 0.03
ATTAINMENT: Final = 0.95
MINUTES: Final = 10.0
TOP_RATE: Final = 10_000.0
TOP_USERS: Final = 4096
LEAST_SECONDS: Final = 2.0  # of a stage
OVERTIME: Final = 3.0  # a stage that takes so many times as long as its arrivals is given up
MISSES: Final = 3.0  # times the allowed misses of a stage, after which it is given up
LEAST_MISSES: Final = 20
NEAR_MISSES: Final = 0.4  # of a stage near the limit, whose bursts of misses belong to its share
LEAST_NEAR_MISSES: Final = 100
RESPONSES: Final = 5.0  # a stage lasts at least as long as so many responses in a row
NO_OBJECTIVES: Final = (
    "find needs objectives, such as --goodput ttft:500 tpot:50 (milliseconds): they are what the load must meet"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_server(parser)
    add_workload(parser)
    group = parser.add_argument_group(
        "search",
        "Stages of Poisson arrivals (with --concurrency: of users, each with one request at a time) until the "
        "highest load that meets --goodput is known.",
    )
    positive = values.number(0, above=True)
    group.add_argument(
        "--attainment",
        type=values.attainment,
        default=ATTAINMENT,
        metavar="X",
        help="share of requests that must meet every objective, such as 0.95 or 95%% (default %(default)g)",
    )
    group.add_argument("--concurrency", action="store_true", help="search for users instead of a rate")
    group.add_argument(
        "--precision",
        type=values.attainment,
        default=PRECISION,
        metavar="X",
        help="end at a 95 %% interval of this half width, such as 5%% (default 3%%)",
    )
    group.add_argument(
        "--max-minutes", type=positive, default=MINUTES, metavar="M", help="of the search (default %(default)g)"
    )
    group.add_argument("--start-rate", type=positive, metavar="R", help="first rate (default: probed)")
    group.add_argument(
        "--top-rate", type=positive, default=TOP_RATE, metavar="R", help="highest rate (default %(default)g)"
    )
    group.add_argument(
        "--top-concurrency",
        type=values.whole(1),
        default=TOP_USERS,
        metavar="N",
        help="most users (default %(default)s)",
    )
    flags.refuse_workers(parser, "one process drives a stage")
    flags.add_request(parser)
    flags.add_times(parser)
    flags.add_limits(parser)
    add_engine(parser)
    add_gpus(parser)
    flags.add_output(parser)


def main(args: argparse.Namespace, argv: list[str]) -> int:
    if not args.goodput:
        raise UsageError(NO_OBJECTIVES)
    finish.check_goodput(args.goodput)
    if args.start_rate and args.start_rate > args.top_rate:
        raise UsageError(f"--top-rate {args.top_rate:g} is below --start-rate {args.start_rate:g}")
    streamed = [name for name in parse_goodput(args.goodput) if name.startswith(("ttft", "tpot"))]
    if args.no_stream and streamed:
        raise UsageError(f"--no-stream has no {streamed[0]}: remove it, or give --goodput e2el:MS")
    if args.max_seconds:
        raise UsageError("--max-seconds is of one run; a search ends after --max-minutes")
    args.request_rate = None if args.concurrency else args.start_rate or 1.0
    args.max_concurrency = None
    args.burstiness, args.shed, args.trace_speed = 1.0, False, 1.0
    args.ramp_up_strategy = args.ramp_up_start_rps = args.ramp_up_end_rps = None
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_find(args, argv))


class Driver:
    """Runs a search's plans as stages, and hands their results back to it. `drops`: objectives that no response of
    the first stage has a value for are dropped instead of refused."""

    def __init__(
        self, args: argparse.Namespace, search: Search, stages: Stages, session: Session, *, drops: bool = False
    ) -> None:
        self._search = search
        self._stages = stages
        self._session = session
        self.slos = parse_goodput(args.goodput)
        self.unmeasured: dict[str, str] = {}  # the objectives that were dropped, and why
        self._drops = drops
        self._allowed = 1 - args.attainment
        self._users = bool(args.concurrency)
        self._seconds = args.max_minutes * 60
        self._grace = args.grace_seconds
        self._seed = args.seed
        self._limits = flags.limits_of(args)
        self.records: list[Record] = []

    async def stage(self, plan: Plan) -> Stage | None:
        """The stage as the search takes it; None if it was interrupted, had no prompts, or cannot be judged by any
        objective. Raises UsageError."""
        began = self._stages.elapsed
        left = max(self._seconds - began, LEAST_SECONDS)
        if self._users:
            pace = Pace(
                max_concurrency=int(plan.load), max_seconds=min(plan.seconds, left), grace_seconds=self._grace
            )
            records, aborted = await self._stages.run(self._name(plan), pace, plan.requests)
        else:
            records, aborted = await self._stages.run(
                self._name(plan),
                Pace(open_loop=True, max_seconds=left, grace_seconds=0.0),
                plan.requests,
                arrivals(plan, self._seed + len(self._search.stages)),
                rate=plan.load,
                hopeless=self._hopeless(plan, began),
            )
        self.records += records
        if self._session.stopped or not records:
            return None
        if not self._search.stages:
            self._check(records)
        if not self.slos:
            return None
        return stage_of(
            plan.load,
            records,
            self.slos,
            seconds=self._stages.elapsed - began,
            aborted=aborted,
            open_loop=not self._users,
            fault=self._fault(records),
        )

    def _check(self, records: Sequence[Record]) -> None:
        """Drop or refuse the objectives that these responses have no value for."""
        unmeasured = unmeasured_in(records, self.slos)
        if not self._drops:
            refuse_unmeasured(unmeasured)
        self.unmeasured = unmeasured
        self.slos = {name: limit for name, limit in self.slos.items() if name not in unmeasured}

    def _fault(self, records: Sequence[Record]) -> str:
        """What the generator itself did wrong in the stage that ended last, if it touches the objectives."""
        lag = lag_of(records, self._stages.worker_errors[-1:])
        faults, _ = judge_self_error(lag, records, self._limits, open_loop=not self._users)
        touching = (fault.text for fault in faults if not fault.touches or fault.touches & self.slos.keys())
        return next(touching, "")

    def _hopeless(self, plan: Plan, began: float) -> Callable[[int], bool]:
        """Whether several times as many requests as may miss an objective in the whole stage have missed it, or
        the stage takes much longer than its arrivals."""
        ttft, e2e = (
            min((self.slos[name] for name in names if name in self.slos), default=math.inf) * 1e6
            for names in (("ttft", "ttft_due"), ("e2el", "e2el_due"))
        )
        most = most_misses(plan, self._allowed)
        longest_ns = (began + OVERTIME * plan.requests / plan.load + self._grace) * 1e9
        return lambda now: now > longest_ns or self._session.missed(now, ttft, e2e) > most

    def _name(self, plan: Plan) -> str:
        if not self._users:
            return f"{plan.load:g} req/s"
        again = sum(stage.load == plan.load for stage in self._search.stages)
        return f"{plan.load:.0f} user{'s' if plan.load > 1 else ''}" + (f" ({again + 1})" if again else "")


def most_misses(plan: Plan, allowed: float) -> float:
    """Misses after which a stage is given up. Near the limit only an overload is: giving up stages for bursts
    that chance made would leave the lucky ones."""
    if plan.near:
        return max(NEAR_MISSES * plan.requests, LEAST_NEAR_MISSES)
    return max(MISSES * allowed * plan.requests, LEAST_MISSES)


def arrivals(plan: Plan, seed: int) -> Iterator[float]:
    """Poisson arrivals: the search subtracts their luck, so they are not made more even than that."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    return itertools.accumulate(rng.expovariate(plan.load) for _ in range(plan.requests))


def stage_of(
    load: float,
    records: Sequence[Record],
    slos: Mapping[str, float],
    *,
    seconds: float,
    aborted: bool,
    open_loop: bool,
    fault: str,
) -> Stage:
    """A stage from its records. A request that was cancelled after a limit had passed has missed it; another one
    that was cancelled is left out."""
    # Users who wait have no later due time: where a server hangs, the stage lasts until they were given up.
    ends = [record.end_ns or record.due_ns for record in records]
    ends += [] if open_loop else [record.closed_ns for record in records if record.closed_ns is not None]
    last = max(ends, default=0)
    recent = last - min(slos.values()) * 1e6
    known = (record for record in records if record.failure != "cancelled" or record.due_ns < recent)
    requests = in_order(measure_records(known))
    begin = requests[0].due_ns if requests else 0
    ended = [request for request in requests if request.end_ns is not None]
    busy = sum((request.end_ns or 0) - request.due_ns for request in ended) / 1e9
    return Stage(
        load,
        [(request.due_ns - begin) / 1e9 for request in requests],
        [strain(request, slos) for request in requests],
        seconds=seconds,
        missed={name: sum(not met(request, name, limit) for request in requests) for name, limit in slos.items()},
        overlap=busy / seconds if seconds > 0 else 0.0,
        aborted=aborted,
        ends=[_end(request, begin) for request in requests] if open_loop else (),
        failures=Counter(record.failure for record in records if record.failure not in (None, "cancelled")),
        fault=fault,
    )


def _end(request: Measured, begin_ns: int) -> float:
    if request.end_ns is None or not request.completed:
        return math.inf
    return (request.end_ns - begin_ns) / 1e9


async def _find(args: argparse.Namespace, argv: list[str]) -> int:
    hide = Hide(flags.secrets_of(args, os.environ))
    job = await prepare(args, {"a": flags.base_of(args)}, hide, choose_find)
    if args.concurrency:
        job = msgspec.structs.replace(job, max_in_flight=connection_limit(args.top_concurrency))
    run = new_run(args, argv, job, hide)
    folder = finish.make_folder(args.result_dir, args.label or "find", finish.now())
    async with scraping(sources_of(args, job.targets, job.http), folder) as run.scraped:
        with live.view(quiet=args.quiet) as view, store.EventsFile(folder / store.EVENTS) as file:
            warm, records, stages, found, _ = await searched(args, job, run, hide, view, file)
    run.warnings += [file.warning] if file.warning else []
    run.start_unix_ns = stages.start_unix_ns
    run.found = msgspec.to_builtins(found)
    run.focus = _nearest(found, [record.stage for record in records])
    run.sent_stats = sent_stats(open_workload(job.workload), job.num_prompts, len(records))
    reported = finished(args, folder, run, warm + records, stages.worker_errors, open_loop=found.by == "rate")
    return exit_code(run, found, lost=reported.lost)


class Searched(NamedTuple):
    """A search that has ended."""

    warm: list[Record]
    records: list[Record]
    stages: Stages
    found: Found
    unmeasured: dict[str, str]  # the objectives that were dropped, and why


async def searched(
    args: argparse.Namespace,
    job: Job,
    run: Run,
    hide: Hide,
    view: View,
    file: store.EventsFile,
    *,
    say: bool = True,
) -> Searched:
    """Warm-up and search. Raises UsageError for an objective that cannot be measured; `quick`, which does not
    `say` its stages, drops it from the run's."""
    by = "users" if args.concurrency else "rate"
    response = getattr(args, "probed_response", None) or 0.0
    search = Search(
        attainment=args.attainment,
        precision=args.precision,
        start=1.0 if by == "users" else args.start_rate or 1.0,
        top=float(args.top_concurrency if by == "users" else args.top_rate),
        seconds=args.max_minutes * 60,
        least=max(LEAST_SECONDS, RESPONSES * response),
        by="users" if args.concurrency else "rate",
    )
    warm: list[Record] = []

    def warmed(record: Record) -> None:
        warm.append(record)
        file.append(record)

    workload = open_workload(job.workload)
    async with session_of(job, hide, view) as session:
        stop_on_signals(session.stop, view.note)
        await warm_up(job, session, workload, warmed)
        stages = Stages(session, itertools.islice(workload.requests(), job.num_prompts), file.append)
        driver = Driver(args, search, stages, session, drops=not say)
        while not session.stopped and not stages.ran_out and driver.slos and (plan := search.next()) is not None:
            stage = await driver.stage(plan)
            if stage is not None:
                search.add(stage)
                if say:
                    view.note(line_of(stage, by, 1 - args.attainment))
        run.interrupted = session.stopped
    if driver.unmeasured:
        run.config["goodput"] = [f"{name}:{limit:g}" for name, limit in driver.slos.items()]
        run.warnings.append(unmeasured_text(driver.unmeasured))
    if stages.ran_out:
        run.warnings.append("the search ran out of prompts: raise --num-prompts")
    return Searched(warm, driver.records, stages, search.found(), driver.unmeasured)


def line_of(stage: Stage, by: str, allowed: float) -> str:
    unit = "req/s" if by == "rate" else "user" if stage.load == 1 else "users"
    load = f"{stage.load:8.4g} {unit}"
    cut = " (ended early)" if stage.aborted else ""
    verdict = "met" if stage.share <= allowed and not stage.aborted else "missed"
    return f"{load}: {percent(1 - stage.share)} of {amount(len(stage))} good, {verdict}{cut}"


def _nearest(found: Found, names: Sequence[str]) -> str:
    """The stage whose latency the report shows: the one at the highest load that is not above the limit."""
    loads = {name: float(name.split()[0]) for name in dict.fromkeys(names) if name}
    if not loads:
        return ""
    below = [name for name, load in loads.items() if found.load is None or load <= found.load * 1.0001]
    if below and found.state not in ("not met", "all missed"):
        return max(below, key=lambda name: loads[name])
    return min(loads, key=lambda name: loads[name])


def exit_code(run: Run, found: Found, *, lost: bool) -> int:
    """130 after Ctrl-C; 1 if no load met the objectives, the time ended on one side of the limit, the server
    failed, nothing was measured or a file was lost; 3 if the measurement is invalid; else 0, for an answer with an
    interval that is wider than asked too."""
    if run.interrupted:
        return finish.INTERRUPTED
    if (
        lost
        or found.state in ("not met", "all met", "all missed", "failed", "nothing")
        or (found.state == "unsure" and None in (found.low, found.high))
    ):
        return finish.FAILED
    return finish.INVALID if run.invalid else finish.OK

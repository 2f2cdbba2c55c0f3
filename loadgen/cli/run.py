"""`python -m loadgen run`: flags to a job, the job carried out here or by workers. `ab` and `sweep` use its
parts."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from loadgen import store
from loadgen.analysis import parse_goodput
from loadgen.cli import finish
from loadgen.cli.flags import common as flags
from loadgen.cli.flags import values
from loadgen.cli.flags.engine import add_engine, sources_of
from loadgen.cli.flags.loads import (
    add_cancel,
    add_conversation_rate,
    cancel_of,
    models_of,
)
from loadgen.cli.flags.workload import add_workload_flags, workload_options
from loadgen.cli.preflight import connection_limit, get_models, model_of, proxy_note
from loadgen.cli.runs.machines import add_machines, check_machines, end_of_share, run_on_machines
from loadgen.cli.runs.repeat import Once, check_repeat, repeat
from loadgen.cli.sizing import DEFAULT_USERS, PROBE_TOKENS, Choice, Speed, choose_run, needs_probe, probe
from loadgen.cli.terminal import live
from loadgen.cli.vllm.result_file import add_result_file, check_result_file, save_result_file
from loadgen.drive import (
    CancelWatch,
    Client,
    Job,
    Ramp,
    Schedule,
    WorkerError,
    job_schedule,
    new_loop,
    run_single,
    run_workers,
    scraping,
)
from loadgen.errors import UsageError
from loadgen.record import Record, Run
from loadgen.secrets import Hide, without_userinfo
from loadgen.spec import Http, Pace
from loadgen.workload import Workload, describe_sent, open_workload

Chooser = Callable[[argparse.Namespace, Job, Speed], Choice]
"""How a command's flags follow from the server's speed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_server(parser)
    add_workload(parser)
    arrivals = add_arrivals(parser)
    add_conversation_rate(arrivals)
    arrivals.add_argument(
        "--workers",
        type=values.whole(1, 256),
        default=1,
        metavar="N",
        help="processes that share the schedule (default 1)",
    )
    add_cancel(parser)
    flags.add_request(parser)
    flags.add_times(parser)
    flags.add_limits(parser)
    add_engine(parser)
    flags.add_output(parser)
    parser.add_argument(
        "--repeat",
        type=values.whole(1, 1000),
        default=1,
        metavar="K",
        help="run the load K times, with seeds from --seed on, and give each figure's interval over the runs",
    )
    add_result_file(parser)
    add_machines(parser)


def add_workload(parser: argparse.ArgumentParser) -> None:
    """The flags of the datasets and of the warm-up."""
    add_workload_flags(parser)
    parser.add_argument(
        "--num-warmups",
        type=values.whole(0),
        default=0,
        metavar="N",
        help="warm-up requests, with prompts that the run does not use and its concurrency (default 0)",
    )


def add_arrivals(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group(
        "arrivals", f"Without a rate: a closed loop with --max-concurrency users (default {DEFAULT_USERS})."
    )
    positive = values.number(0, above=True)
    group.add_argument(
        "--request-rate", type=positive, metavar="R", help="open loop, requests per second; inf: all at once"
    )
    group.add_argument(
        "--burstiness",
        type=positive,
        default=1.0,
        metavar="B",
        help="gamma shape of the gaps: 1 Poisson (default), less is burstier, inf constant",
    )
    group.add_argument(
        "--max-concurrency",
        type=values.whole(1),
        metavar="N",
        help="most requests in flight; with a rate, requests above it wait, which counts as latency from due",
    )
    group.add_argument(
        "--shed",
        action="store_true",
        help="drop requests above --max-concurrency instead of queueing them; they count as shed",
    )
    group.add_argument(
        "--ramp-up-strategy", choices=("linear", "exponential"), help="change the rate over the run"
    )
    group.add_argument("--ramp-up-start-rps", type=positive, metavar="R")
    group.add_argument("--ramp-up-end-rps", type=positive, metavar="R")
    group.add_argument(
        "--max-errors",
        type=values.error_limit,
        metavar="N|SHARE",
        help="end the run when N requests have failed, or more than a share such as 5%%; exit code 1",
    )
    group.add_argument(
        "--trace-speed",
        type=positive,
        default=1.0,
        metavar="X",
        help="replay a trace this many times as fast (default 1)",
    )
    return group


def main(args: argparse.Namespace, argv: list[str]) -> int:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_run(args, argv))


async def _run(args: argparse.Namespace, argv: list[str]) -> int:
    check_result_file(args)
    check_repeat(args)
    check_machines(args, os.environ)
    if args.repeat == 1:
        return (await _once(args, argv, None)).code
    folder = finish.make_folder(args.result_dir, args.label or "repeats", finish.now())
    return await repeat(args, folder, lambda place: _once(args, argv, place))


async def _once(args: argparse.Namespace, argv: list[str], folder: Path | None) -> Once:
    """One run, in this folder or in a new one of --result-dir."""
    hide = Hide(flags.secrets_of(args, os.environ))
    base = flags.base_of(args)
    job = await prepare(args, {"a": base}, hide)
    workload = open_workload(job.workload)
    run = new_run(args, argv, job, hide)
    n = job.body.extra.get("n")
    choices = n if isinstance(n, int) and n > 0 else 1  # an engine counts each of a request's choices
    async with cancel_watch(args, job) as watch:
        folder = folder or finish.make_folder(args.result_dir, args.label, finish.now())
        async with scraping(sources_of(args, job.targets, job.http), folder) as run.scraped:
            with live.view(quiet=args.quiet, silent=finish.silent(args)) as view:
                if args.machines > 1:
                    records, worker_errors = await run_on_machines(args, job, run, folder, hide, view)
                elif job.workers == 1:
                    records, worker_errors = await run_single(
                        job,
                        workload,
                        job_schedule(job, workload),
                        run,
                        folder,
                        hide,
                        view,
                        total=None if next(workload.requests()).then else job.num_prompts,
                        beside=lambda session: watch.during(
                            lambda since: choices * session.in_flight_since(since)
                        ),
                    )
                else:
                    records, worker_errors = await run_workers(job, run, folder, view)
        await watch.settle(sum(record.failure == "left" for record in records))
        run.cancel_checks = [
            msgspec.structs.replace(check, url=without_userinfo(check.url)) for check in watch.checks
        ]
    if run.share is not None:
        return Once(end_of_share(run, folder))
    run.sent_stats = sent_stats(workload, job.num_prompts, len(records))
    lateness_counts = job.schedule.open_loop and not job.schedule.all_at_once
    reported = finished(args, folder, run, records, worker_errors, open_loop=lateness_counts)
    code = finish.exit_code(run, records, args.max_error_rate, lost=reported.lost)
    try:
        written = save_result_file(args, reported.result, run)
    except OSError as error:
        print(f"could not write vLLM's result file: {error.filename}: {error.strerror}", file=sys.stderr)
        return Once(code or finish.FAILED, reported.result)
    if written is not None and not args.quiet:
        print(f"vLLM's result file: {written}", file=sys.stderr)
    return Once(code, reported.result)


def cancel_watch(args: argparse.Namespace, job: Job) -> CancelWatch:
    """Reads the engine's metrics where requests are cancelled, else nothing."""
    urls = (args.cancel_metrics or [f"{target}/metrics" for target in job.targets.values()]) if job.cancel else []
    targets = list(job.targets.values())
    return CancelWatch(urls, job.http, targets, within=args.cancel_within, asked=bool(args.cancel_metrics))


def end(
    args: argparse.Namespace,
    folder: Path,
    run: Run,
    records: list[Record],
    worker_errors: list[WorkerError],
    *,
    open_loop: bool,
) -> int:
    """Verdict, summary, files; returns the exit code."""
    reported = finished(args, folder, run, records, worker_errors, open_loop=open_loop)
    return finish.exit_code(run, records, args.max_error_rate, lost=reported.lost)


def finished(
    args: argparse.Namespace,
    folder: Path,
    run: Run,
    records: list[Record],
    worker_errors: list[WorkerError],
    *,
    open_loop: bool,
) -> finish.Reported:
    """Verdict, summary, files."""
    finish.judge(run, records, worker_errors, flags.limits_of(args), open_loop=open_loop)
    reported = finish.report(folder, run, records, args.goodput, as_json=args.json, brief=finish.silent(args))
    unwritten = any(text.startswith(store.UNWRITTEN) for text in run.warnings)
    return reported._replace(lost=reported.lost or unwritten)


async def prepare(
    args: argparse.Namespace, targets: dict[str, str], hide: Hide, choose: Chooser = choose_run
) -> Job:
    """The job, checked as far as possible before the load. Without --num-prompts its size is chosen by a probe and
    set in `args`. Raises UsageError."""
    finish.check_goodput(args.goodput)
    http = flags.http_of(args, os.environ)
    note = proxy_note(targets.values())
    if note and not finish.silent(args):
        print(note, file=sys.stderr)
    connection_limit(arrivals_of(args)[1].max_concurrency)
    advice = advice_of(args)
    client = Client(http, kernel=False)
    try:
        model = args.model
        for base in targets.values():
            wait = args.ready_check_timeout_sec
            if model is None:
                model = await model_of(client, base, http, wait=wait, advice=advice)
            elif wait:
                await get_models(client, base, http, wait=wait, advice=advice)
    finally:
        await client.close()
    job = job_of(args, targets, http, model)
    if needs_probe(args, job):
        await _size(args, job, hide, choose)
        job = job_of(args, targets, http, model)
    return job


def advice_of(args: argparse.Namespace) -> str:
    """What to give where the default address does not respond; empty if an address was given."""
    return "" if flags.servers_of(args) else "--base-url URL names another server"


async def _size(args: argparse.Namespace, job: Job, hide: Hide, choose: Chooser) -> None:
    """Choose flags by a probe, print what was measured and chosen, and set them in `args`."""
    if not finish.silent(args):
        print("probing the server's pace (--num-prompts N skips this)", file=sys.stderr)
    speed = await probe(job, hide, users=args.max_concurrency, advice=advice_of(args))
    choice = choose(args, job, speed)
    if not finish.silent(args):
        print(f"probed: {speed}\nchosen: {choice}", file=sys.stderr)
    for name, value in choice.flags.items():
        setattr(args, name, value)
    args.probe, args.chosen_by_probe = str(speed), list(choice.flags)
    args.probed_response = speed.request(args.max_tokens or PROBE_TOKENS)


def job_of(args: argparse.Namespace, targets: dict[str, str], http: Http, model: str) -> Job:
    """Raises UsageError."""
    endpoint = flags.endpoint_of(args)
    schedule, pace = arrivals_of(args)
    job = Job(
        run=f"lg{os.urandom(5).hex()}",
        targets=targets,
        endpoint=endpoint,
        path=flags.path_of(args),
        body=flags.body_of(args, args.served_model_name or model),
        http=http,
        pace=pace,
        schedule=schedule,
        workload=workload_options(args, endpoint),
        num_prompts=args.num_prompts,
        num_warmups=args.num_warmups,
        max_in_flight=connection_limit(pace.max_concurrency),
        kernel=args.clock == "kernel",
        id_prefix=args.request_id_prefix,
        secrets=flags.secrets_of(args, os.environ),
        objectives=parse_goodput(args.goodput or ()),
        workers=getattr(args, "workers", 1),
        cancel=cancel_of(args, endpoint),
        models=models_of(args),
        keep_answers=keeps_answers(args, targets),
    )
    if pace.max_concurrency is not None and pace.max_concurrency < job.workers:
        raise UsageError(
            f"--max-concurrency {pace.max_concurrency} is below --workers {job.workers}: each needs one"
        )
    return with_trace(args, job)


def keeps_answers(args: argparse.Namespace, targets: Mapping[str, str]) -> bool:
    """Whether records keep the responses' texts: for `--save-detailed`, or to compare those of `ab`'s sides."""
    greedy = 0 in (args.temperature, args.extra_body.get("temperature"))
    return getattr(args, "save_detailed", False) or (len(targets) > 1 and greedy)


def with_trace(args: argparse.Namespace, job: Job) -> Job:
    """Replay a workload that has times, unless a rate is set. Raises UsageError for an empty workload."""
    first = next(open_workload(job.workload).requests(), None)
    if first is None:
        raise UsageError("the workload has no requests")
    conversation_rate = getattr(args, "conversation_rate", None)
    if first.then and not hasattr(args, "conversation_rate"):
        raise UsageError(
            "conversations (--turns, traces of agents) are for `run`, `ab` and `sweep`; this command sends single "
            "requests"
        )
    if first.then and args.request_rate and not conversation_rate and not hasattr(args, "stage_seconds"):
        raise UsageError(
            "--request-rate does not apply to conversations, whose later requests wait for answers: give "
            "--conversation-rate, or --max-concurrency for so many users"
        )
    if conversation_rate and job.workload.turns is None and not first.then:
        raise UsageError("--conversation-rate needs conversations: --turns, or a trace of them")
    if job.schedule.open_loop or first.at_s is None:
        return job
    schedule = msgspec.structs.replace(job.schedule, trace_speed=args.trace_speed)
    pace = msgspec.structs.replace(job.pace, open_loop=True, max_concurrency=args.max_concurrency)
    return msgspec.structs.replace(
        job, schedule=schedule, pace=pace, max_in_flight=connection_limit(args.max_concurrency)
    )


def arrivals_of(args: argparse.Namespace) -> tuple[Schedule, Pace]:
    """Raises UsageError for flags that contradict each other."""
    ramp = None
    if args.ramp_up_strategy:
        if not (args.ramp_up_start_rps and args.ramp_up_end_rps):
            raise UsageError("--ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps")
        if args.request_rate:
            raise UsageError("--ramp-up-strategy sets the rate; remove --request-rate")
        start, stop = args.ramp_up_start_rps, args.ramp_up_end_rps
        ramp = Ramp(strategy=args.ramp_up_strategy, start=start, end=stop, over=args.num_prompts or 1000)
    elif args.ramp_up_start_rps or args.ramp_up_end_rps:
        raise UsageError("--ramp-up-start-rps and --ramp-up-end-rps need --ramp-up-strategy linear or exponential")
    rate = args.request_rate or getattr(args, "conversation_rate", None)
    infinite = rate == float("inf")
    schedule = Schedule(
        rate=None if infinite else rate,
        all_at_once=infinite,
        burstiness=None if args.burstiness == float("inf") else args.burstiness or 1.0,
        ramp=ramp,
        seed=args.seed,
    )
    if args.shed and not (schedule.open_loop and args.max_concurrency):
        raise UsageError("--shed needs an open loop (--request-rate) and --max-concurrency")
    cap = args.max_concurrency
    pace = Pace(
        max_concurrency=cap if schedule.open_loop else cap or DEFAULT_USERS,
        open_loop=schedule.open_loop,
        shed=args.shed,
        max_seconds=args.max_seconds,
        max_errors=getattr(args, "max_errors", None),
        grace_seconds=args.grace_seconds,
    )
    return schedule, pace


def new_run(args: argparse.Namespace, argv: list[str], job: Job, hide: Callable[[str], str]) -> Run:
    config = flags.config_of(args)
    if not job.schedule.open_loop:
        config["max_concurrency"] = job.pace.max_concurrency
    if job.schedule.trace_speed is not None:
        config["arrivals"] = "as recorded"
    if config.get("request_rate") is None:
        config["request_rate"] = "inf"  # vLLM's word for no rate
    return Run(
        date=finish.now().isoformat(timespec="seconds"),
        label=args.label,
        command=[hide(word) for word in ["python", "-m", "loadgen", *argv]],
        config=config,
        targets={name: without_userinfo(url) for name, url in job.targets.items()},
        model=args.model or job.body.model,
        endpoint=job.path,
        machine=finish.machine(),
        seed=args.seed,
        workers=job.workers,
    )


def sent_stats(workload: Workload, num_prompts: int | None, sent: int) -> dict[str, Any]:
    """Statistics of what was sent, without the warm-up."""
    limit = sent if num_prompts is None else min(sent, num_prompts)
    return describe_sent(itertools.islice(workload.requests(), limit))

"""The benchmark: each subject under each workload, in rounds, every time with fresh processes; then the table."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import msgspec
import uvloop

from ops.bench import subjects as start
from ops.bench.account import cpu_ns, rss_mb, user_share
from ops.bench.client import Load, Tally
from ops.bench.stage import StageError, choose, chosen_of, cpus, stage
from ops.bench.table import Part, Result, machine, picture, ran, render
from ops.bench.workloads import NAMES, Workload, workloads


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench",
        description="Compares gateways: CPU time per event and per request, added latency, memory. Engine, client "
        "and Redis run on one CPU, the subject on another with one worker. Needs Linux and 2 CPUs.",
    )
    parser.add_argument(
        "--subjects", default="gateway,gateway-private", metavar="NAME,…",
        help="gateway (sharing possible: each prompt costs key, look-up and store), gateway-private (sampled "
        "prompts: no sharing), direct (no gateway), those of --command, and the peers of `python -m "
        "ops.bench.peers`",
    )  # fmt: skip
    parser.add_argument("--workloads", default=",".join(NAMES), metavar="NAME,…", help=", ".join(NAMES))
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each with fresh processes (default 3)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor for the duration of every part (default 1)"
    )
    parser.add_argument("--out", type=Path, help="file for the figures of every part, as JSON; beside it a plot")
    choose(parser)
    args = parser.parse_args()
    began = time.monotonic()
    names = args.subjects.split(",")
    chosen = args.workloads.split(",")
    unknown = sorted(set(chosen) - set(NAMES))
    if unknown:
        parser.error(f"unknown workload {', '.join(unknown)}; choose from {', '.join(NAMES)}")
    try:
        choice, on = chosen_of(args, names), cpus(spare=False)
    except StageError as error:
        parser.error(str(error))
    os.sched_setaffinity(0, {on.client})
    parts: list[Part] = []
    versions: dict[str, str] = {}
    failures: list[str] = []
    for round_ in range(args.rounds):
        for name in names:
            print(f"round {round_ + 1} of {args.rounds}: {name}", file=sys.stderr, flush=True)
            try:
                with stage(name, choice, on) as staged:
                    versions[name] = staged.version
                    load = Load(staged.port, staged.headers, staged.check)
                    parts += [
                        _measure(name, round_, workload, args.scale, load, staged.subject)
                        for workload in workloads(shared=name != "gateway-private")
                        if workload.name in chosen and not (workload.ours_only and name != "gateway")
                    ]
            except (RuntimeError, OSError) as error:
                failures.append(f"round {round_ + 1}, {name}: {error}")
                print(f"bench: {failures[-1]}", file=sys.stderr, flush=True)
    result = Result(
        command=ran("ops.bench"), machine=machine(), seconds=time.monotonic() - began, subjects=names,
        versions=versions, parts=parts, failures=failures,
    )  # fmt: skip
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
        if (drawn := picture(result)) is not None:
            args.out.with_suffix(".svg").write_bytes(drawn)
    print(render(result))
    return 1 if failures or any(part.wrong for part in parts) else 0


def _measure(
    name: str, round_: int, workload: Workload, scale: float, load: Load, subject: start.Started | None
) -> Part:
    """A short warm-up that is not counted, then the measured part."""
    pid = subject.pid if subject is not None else None

    async def both() -> tuple[Tally, int, tuple[int, int]]:
        await workload.run(load, min(1.0, workload.seconds * scale / 4))
        before, ticks = (cpu_ns(pid), user_share(pid)) if pid else (0, (0, 0))
        tally = await workload.run(load, workload.seconds * scale)
        after, ticks_after = (cpu_ns(pid), user_share(pid)) if pid else (0, (0, 0))
        return tally, after - before, (ticks_after[0] - ticks[0], ticks_after[1] - ticks[1])

    tally, cpu, (user, system) = uvloop.run(both())
    units = tally.events if workload.per_event else tally.done
    return Part(
        subject=name,
        workload=workload.name,
        round=round_,
        done=tally.done,
        events=tally.events,
        seconds=tally.seconds,
        cpu_us=cpu / 1000 / max(1, units),
        user=user / max(1, user + system),
        busy=cpu / 1e9 / max(1e-9, tally.seconds),
        ttft_ms=Part.spread([1000 * value for value in tally.ttft]),
        gap_ms=Part.spread([1000 * value for value in tally.gaps]),
        rss_mb=rss_mb(pid) if pid else 0.0,
        start_s=subject.seconds if subject is not None else 0.0,
        verdicts=tally.verdicts,
        wrong=tally.wrong,
    )


if __name__ == "__main__":
    start.end_on_sigterm()
    sys.exit(main())

"""Compares the CPU of two checkouts of the gateway, or of two interpreters, for each request or event. One round
runs both in turns, in the opposite order of the round before, so that what slows the machine slows both."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import msgspec
import uvloop

from ops.bench import subjects as start
from ops.bench.account import cpu_ns
from ops.bench.client import Load
from ops.bench.vllm.tables import spread
from ops.bench.workloads import Workload, workloads

ROOT: Final = Path(__file__).parents[3]
WARM: Final = 0.7  # seconds, times the scale, before the count
EVERYWHERE: Final = frozenset(range(os.cpu_count() or 1))


class Pair(msgspec.Struct, frozen=True):
    """One workload in one round: CPU in microseconds a request or event."""

    workload: str
    before: float
    now: float


class Side(msgspec.Struct, frozen=True):
    """What is compared: a checkout, and the interpreter that runs it."""

    tree: Path = ROOT
    python: str = sys.executable


class Ground(msgspec.Struct, frozen=True):
    """What both run on: a folder, the engine's port and Redis' URL."""

    work: Path
    engine: int
    redis: str


def cpu_of(side: Side, ground: Ground, workload: Workload, scale: float) -> float:
    """Of a fresh gateway of this side. Raises RuntimeError for a wrong answer."""
    port = start.free_port()
    command = start.gateway(port, ground.engine, ground.redis)
    command = replace(
        command, argv=[side.python, *command.argv[1:]], env={"PYTHONPATH": str(side.tree)}, cwd=side.tree
    )
    ready = partial(start.answers, port, "/ready", {})
    with start.started(command, port, set(EVERYWHERE), ready=ready, log=ground.work / "gateway.log") as gateway:
        return uvloop.run(_counted(Load(port, {}), workload, scale, gateway.pid))


async def _counted(load: Load, workload: Workload, scale: float, pid: int) -> float:
    await workload.run(load, WARM * scale)
    before = cpu_ns(pid)
    tally = await workload.run(load, workload.seconds * scale)
    used = cpu_ns(pid) - before
    if tally.wrong:
        raise RuntimeError(f"a wrong answer: {tally.wrong[0]}")
    return used / 1000 / max(1, tally.events if workload.per_event else tally.done)


def compare(sides: Sequence[Side], names: Sequence[str], rounds: int, scale: float) -> list[Pair]:
    """`sides`: before and now."""
    chosen = [
        (f"{workload.name}, {'look-up and store' if shared else 'nothing shared'}", workload)
        for shared in (False, True)
        for workload in workloads(shared=shared)
        if workload.name in names
    ]
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = start.free_port()
        healthy = partial(start.answers, engine, "/health", {})
        on = set(EVERYWHERE)
        stack.enter_context(
            start.started(start.engine_command(engine), engine, on, ready=healthy, log=work / "engine.log")
        )
        redis, url = start.redis_command(work)
        there = (work / "redis.sock").exists
        stack.enter_context(start.started(redis, 0, on, ready=there, log=work / "redis.log"))
        ground, pairs = Ground(work, engine, url), []
        for number in range(rounds):
            for name, workload in chosen:
                first = number % 2  # which of the two runs first
                used = [cpu_of(sides[side], ground, workload, scale) for side in (first, 1 - first)]
                pairs.append(Pair(name, used[first], used[1 - first]))
    return pairs


def table(pairs: Sequence[Pair]) -> str:
    """In Markdown, with medians (least to most)."""
    lines = ["| CPU, µs | before | now | times |", "|---|---|---|---|"]
    for name in dict.fromkeys(pair.workload for pair in pairs):
        of = [pair for pair in pairs if pair.workload == name]
        ratios = [pair.now / pair.before for pair in of]
        times = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        sides = [spread([pair.before for pair in of], 1), spread([pair.now for pair in of], 1)]
        lines.append(f"| {name} | {sides[0]} | {sides[1]} | {times} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.micro.pair", description=__doc__)
    parser.add_argument("--against", type=Path, metavar="DIR", help="the checkout of before; default: this one")
    parser.add_argument(
        "--python",
        metavar="PATH",
        help="the interpreter of now, with the gateway's packages; default: this one, which is that of before",
    )
    parser.add_argument("--workloads", default="json", metavar="NAME,…", help="default: json")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=float, default=0.4, help="factor for the duration of each workload")
    args = parser.parse_args()
    names = args.workloads.split(",")
    if not args.against and not args.python:
        parser.error("name a checkout (--against), an interpreter (--python), or both")
    before = Side(args.against.resolve() if args.against else ROOT)
    now = Side(python=args.python or sys.executable)
    unknown = set(names) - {workload.name for workload in workloads(shared=False)}
    if unknown or not (before.tree / "proxy").is_dir():
        parser.error(f"unknown workload: {min(unknown)}" if unknown else f"{args.against} is no checkout")
    if shutil.which(now.python) is None:
        parser.error(f"{now.python} is no program")
    if args.rounds < 1 or not args.scale > 0:
        parser.error("--rounds and --scale must be above 0")
    print(table(compare((before, now), names, args.rounds, args.scale)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""1 against 2 workers on 2 CPUs: CPU time of the gateway (its supervisor included) for each request and event, and
throughput; the CPU of client and engine is counted apart. Each worker gets the same load: 2 have twice the
connections of 1, or twice the requests a second.

All share both CPUs. So at full load (`json`, `hit`) 2 workers have less than a CPU each, wake more often for fewer
requests, and slow each other down: these rows are for the throughput, which is a lower bound, and how many CPUs
each part used stands beside it. CPU is compared in the other rows, where the CPUs are not busy."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import msgspec
import uvloop

from ops.bench import subjects as start
from ops.bench.account import cpu_ns
from ops.bench.client import Load
from ops.bench.table import machine, ran
from ops.bench.vllm.tables import spread
from ops.bench.workloads import Workload, workloads

COUNTS: Final = (1, 2)
CHOSEN: Final = ("json-paced", "hit-paced", "burst", "c64", "json", "hit")
FULL: Final = ("json", "hit")  # for the throughput
BOUND: Final = 0.10  # more CPU of a unit with 2 workers than with 1


class Row(msgspec.Struct, kw_only=True):
    """One workload in one round."""

    workers: int
    workload: str
    round: int
    unit: str  # event or request
    cpu_us: float  # of the gateway, a unit
    per_s: float  # units
    gateway_busy: float  # CPUs
    client_busy: float
    engine_busy: float
    wrong: int


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway with an engine and a Redis of its own, all on the same CPUs."""

    port: int
    gateway: start.Started
    engine: start.Started
    redis: Path  # its socket


@contextmanager
def running(workers: int, on: set[int], *flags: str) -> Iterator[Running]:
    """Fresh processes until the block ends. Raises RuntimeError where one is not ready."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine_port, port = start.free_port(), start.free_port()
        engine = stack.enter_context(
            start.started(
                start.engine_command(engine_port), engine_port, on,
                ready=lambda: start.answers(engine_port, "/health", {}), log=work / "engine.log",
            )
        )  # fmt: skip
        redis, url = start.redis_command(work)
        socket = work / "redis.sock"
        stack.enter_context(start.started(redis, 0, on, ready=socket.exists, log=work / "redis.log"))
        gateway = stack.enter_context(
            start.started(
                start.gateway(port, engine_port, url, "--workers", str(workers), *flags), port, on,
                ready=partial(_ready, port, workers, work / "gateway.log"), log=work / "gateway.log",
            )
        )  # fmt: skip
        yield Running(port, gateway, engine, socket)


def measure(workers: int, round_: int, chosen: Sequence[str], scale: float) -> list[Row]:
    """All workloads with so many workers, in fresh processes. Raises RuntimeError where one is not ready."""
    with running(workers, set(sorted(os.sched_getaffinity(0))[: max(COUNTS)])) as now:
        load = Load(now.port, {})
        return [
            uvloop.run(_one(workload, round_, workers, scale, load, now.gateway.pid, now.engine.pid))
            for workload in workloads(shared=True, times=workers)
            if workload.name in chosen
        ]


def _ready(port: int, workers: int, log: Path) -> bool:
    """Whether every worker has found the engine."""
    return log.read_text("utf-8", "replace").count("engine up") >= workers and start.answers(port, "/ready", {})


async def _one(
    workload: Workload, round_: int, workers: int, scale: float, load: Load, gateway: int, engine: int
) -> Row:
    await workload.run(load, min(1.0, workload.seconds * scale / 4))
    before = cpu_ns(gateway), cpu_ns(engine), time.process_time_ns()
    tally = await workload.run(load, workload.seconds * scale)
    after = cpu_ns(gateway), cpu_ns(engine), time.process_time_ns()
    ours, engines, client = (b - a for a, b in zip(before, after, strict=True))
    units, ns = max(1, tally.events if workload.per_event else tally.done), tally.seconds * 1e9
    return Row(
        workers=workers, workload=workload.name, round=round_, unit="event" if workload.per_event else "request",
        cpu_us=ours / 1000 / units, per_s=units / tally.seconds, gateway_busy=ours / ns, client_busy=client / ns,
        engine_busy=engines / ns, wrong=len(tally.wrong),
    )  # fmt: skip


def ratio(rows: Sequence[Row], workload: str) -> float:
    """The CPU time of a unit with 2 workers by that with 1: the median of the rounds."""
    by = {(row.round, row.workers): row.cpu_us for row in rows if row.workload == workload}
    return median(by[n, COUNTS[1]] / by[n, COUNTS[0]] for n in {n for n, _ in by})


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| workload | workers | CPU of the gateway, µs | 2 by 1 | a second | CPUs: gateway | client | engine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row.workload for row in rows):
        for workers in COUNTS:
            of = [row for row in rows if (row.workload, row.workers) == (name, workers)]
            times = f"{ratio(rows, name):.2f}" if workers == COUNTS[1] else ""
            cells = [
                f"{name}, a {of[0].unit}", str(workers), spread([row.cpu_us for row in of], 1), times,
                spread([row.per_s for row in of], 0), f"{median(row.gateway_busy for row in of):.2f}",
                f"{median(row.client_busy for row in of):.2f}", f"{median(row.engine_busy for row in of):.2f}",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where an answer was wrong, or a unit costs over 10 % more with 2 workers."""
    parser = argparse.ArgumentParser(prog="python -m ops.bench.workers", description=__doc__)
    parser.add_argument("--workloads", default=",".join(CHOSEN), metavar="NAME,…", help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=4, help="rounds, each with fresh processes (default 4)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the duration of every part")
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    args = parser.parse_args(arguments)
    known = {workload.name for workload in workloads(shared=True)}
    chosen = args.workloads.split(",")
    if unknown := sorted(set(chosen) - known):
        parser.error(f"unknown workload {', '.join(unknown)}; choose from {', '.join(sorted(known))}")
    if args.rounds < 1 or not 0.01 <= args.scale <= 100:
        parser.error("--rounds is at least 1, --scale from 0.01 to 100")
    if len(os.sched_getaffinity(0)) < max(COUNTS):
        parser.error(f"{max(COUNTS)} CPUs are required")
    began = time.monotonic()
    rows: list[Row] = []
    for number in range(args.rounds):
        for workers in COUNTS if number % 2 == 0 else COUNTS[::-1]:
            print(f"round {number + 1} of {args.rounds}: {workers} workers", file=sys.stderr, flush=True)
            rows += measure(workers, number, chosen, args.scale)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_bytes(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
    print(
        f"`{ran('ops.bench.workers')}` ({time.monotonic() - began:.0f} s). {machine()}. Medians (least to most).\n"
    )
    print(table(rows))
    dear = [name for name in chosen if name not in FULL and ratio(rows, name) > 1 + BOUND]
    if dear:
        print(f"\nover {100 * BOUND:.0f} % more CPU with 2 workers: {', '.join(dear)}")
    return 1 if dear or any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    start.end_on_sigterm()
    sys.exit(main())

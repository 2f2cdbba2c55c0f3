"""How many cores and how much Redis a load needs: `measure` writes what requests, events and hits cost on this
machine, `plan` computes from such a file. The formulas are in ops/docs/capacity.md."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import redis
import uvloop

from ops.bench import subjects as start
from ops.bench.account import cpu_ns
from ops.bench.capacity import memory
from ops.bench.client import Load, same_bytes
from ops.bench.stage import Stage
from ops.bench.table import machine, ran
from ops.bench.workers import Running, running
from ops.bench.workloads import workloads

COSTS: Final = Path("out/sample/capacity/costs.json")
ALONE: Final = 1  # worker


class Costs(msgspec.Struct, kw_only=True):
    """What one of each costs. CPU in µs, of Redis too."""

    command: str
    machine: str
    request_us: float  # one that goes to an engine, with look-up and store, and one event
    event_us: float  # of a stream, at 64 streams of 100 events a second
    hit_us: float  # a stored stream of 128 events
    redis_miss_us: float  # look-up and store
    redis_hit_us: float
    redis_miss_commands: float
    redis_hit_commands: float
    redis_miss_bytes: float  # both directions
    redis_hit_bytes: float
    stored_bytes: float  # memory of Redis, a stream of 128 events
    idle_mb: float  # memory of a worker before its first stream
    stream_kb: float
    queued_kb: float


class Demand(msgspec.Struct, kw_only=True):
    """What is asked of the gateway."""

    requests: float  # a second
    events: float  # of an answer, tokens mostly
    seconds: float  # that an answer takes at the engine
    hits: float  # share of requests that are stored answers
    shared: float  # share of the others that may be stored (deterministic)
    ttl: float  # seconds that an answer is stored
    queued: float  # requests that wait for an engine
    busy: float  # share of a core that may be in use on average


class Needs(msgspec.Struct, kw_only=True):
    cores: float  # of CPU time in use
    workers: int
    streams: float  # at once
    memory_mb: float
    redis_cores: float
    redis_commands: float  # a second
    redis_mbit: float  # a second
    redis_mb: float


def plan(costs: Costs, load: Demand) -> Needs:
    """The formulas."""
    hits = load.requests * load.hits
    misses = load.requests - hits
    stored = misses * load.shared
    cores = (misses * (costs.request_us + max(0.0, load.events - 1) * costs.event_us)) / 1e6
    cores += hits * costs.hit_us * max(1.0, load.events / 128) / 1e6
    workers = max(1, math.ceil(cores / load.busy))
    streams = misses * load.seconds
    of_redis = {"miss": stored, "hit": hits}
    size = max(1.0, load.events / 128)
    return Needs(
        cores=cores,
        workers=workers,
        streams=streams,
        memory_mb=workers * costs.idle_mb + (streams * costs.stream_kb + load.queued * costs.queued_kb) / 1000,
        redis_cores=(of_redis["miss"] * costs.redis_miss_us + of_redis["hit"] * costs.redis_hit_us) / 1e6,
        redis_commands=of_redis["miss"] * costs.redis_miss_commands + of_redis["hit"] * costs.redis_hit_commands,
        redis_mbit=(of_redis["miss"] * costs.redis_miss_bytes + of_redis["hit"] * costs.redis_hit_bytes)
        * size * 8 / 1e6,
        redis_mb=stored * load.ttl * costs.stored_bytes * size / 1e6,
    )  # fmt: skip


# -- measuring --------------------------------------------------------------------------------------------


class _Figures(msgspec.Struct):
    """What one workload cost, a unit."""

    cpu_us: float
    redis: Mapping[str, float]  # a request


async def _one(name: str, now: Running, seconds: float) -> _Figures:
    (workload,) = (each for each in workloads(shared=True) if each.name == name)
    load = Load(now.port, {}, same_bytes)
    await workload.run(load, seconds / 4)
    before, cpu = _redis(now.redis), cpu_ns(now.gateway.pid)
    tally = await workload.run(load, seconds)
    cpu = cpu_ns(now.gateway.pid) - cpu
    if tally.wrong or not tally.done:
        raise RuntimeError(f"{name}: {len(tally.wrong)} wrong answers of {tally.done}: {tally.wrong[:1]}")
    after = _redis(now.redis)
    units = tally.events if workload.per_event else tally.done
    return _Figures(cpu / 1000 / units, {key: (after[key] - before[key]) / tally.done for key in after})


def _redis(path: Path) -> dict[str, float]:
    with redis.Redis(unix_socket_path=str(path)) as client:
        info = client.info("all")
        return {
            "us": 1e6 * (info["used_cpu_user"] + info["used_cpu_sys"]),
            "commands": info["total_commands_processed"],
            "bytes": info["total_net_input_bytes"] + info["total_net_output_bytes"],
            "memory": info["used_memory"],
        }


def measure(seconds: float, count: int) -> Costs:
    """With one worker, fresh for each kind, on a CPU of its own beside the rest."""
    on = {sorted(os.sched_getaffinity(0))[-1]}
    figures = {}
    for name in ("json", "burst", "c64", "hit"):
        with running(ALONE, on) as now:
            say(name)
            figures[name] = uvloop.run(_one(name, now, seconds))
    held = {}
    for what, flags in ((memory.STREAM, ()), (memory.QUEUED, memory.QUEUE)):
        with running(ALONE, on, *flags) as now:
            say(what)
            staged = Stage(now.port, 0, {}, same_bytes, now.gateway, "")
            held[what] = uvloop.run(memory.measure("gateway", what, 0, count, staged))
    miss, hit = figures["burst"].redis, figures["hit"].redis
    return Costs(
        command=ran("ops.bench.sizing"), machine=machine(), request_us=figures["json"].cpu_us,
        event_us=figures["c64"].cpu_us, hit_us=figures["hit"].cpu_us, redis_miss_us=miss["us"],
        redis_hit_us=hit["us"], redis_miss_commands=miss["commands"], redis_hit_commands=hit["commands"],
        redis_miss_bytes=miss["bytes"], redis_hit_bytes=hit["bytes"], stored_bytes=miss["memory"],
        idle_mb=held[memory.STREAM].before_mb, stream_kb=held[memory.STREAM].each_kb,
        queued_kb=held[memory.QUEUED].each_kb,
    )  # fmt: skip


def costs_table(costs: Costs) -> str:
    rows = [
        ("a request to an engine, with look-up and store", f"{costs.request_us:.0f} µs"),
        ("an event of a stream", f"{costs.event_us:.1f} µs"),
        ("a stored stream of 128 events", f"{costs.hit_us:.0f} µs"),
        ("Redis: look-up and store of 128 events", f"{costs.redis_miss_us:.0f} µs, "
         f"{costs.redis_miss_commands:.1f} commands, {costs.redis_miss_bytes / 1000:.1f} kB"),
        ("Redis: a hit of 128 events", f"{costs.redis_hit_us:.0f} µs, {costs.redis_hit_commands:.1f} commands, "
         f"{costs.redis_hit_bytes / 1000:.1f} kB"),
        ("Redis: memory of a stored stream of 128 events", f"{costs.stored_bytes / 1000:.1f} kB"),
        ("memory of a worker before its first stream", f"{costs.idle_mb:.0f} MB"),
        ("memory of an open stream", f"{costs.stream_kb:.0f} kB"),
        ("memory of a queued request", f"{costs.queued_kb:.0f} kB"),
    ]  # fmt: skip
    return "| what | cost |\n|---|---|\n" + "\n".join(f"| {what} | {cost} |" for what, cost in rows)


def needs_table(needs: Needs) -> str:
    rows = [
        ("CPU time in use", f"{needs.cores:.2f} cores"),
        ("workers, each with a core", str(needs.workers)),
        ("streams at once", f"{needs.streams:,.0f}"),
        ("memory of the gateway", f"{needs.memory_mb:,.0f} MB"),
        ("Redis: CPU", f"{needs.redis_cores:.2f} cores"),
        ("Redis: commands", f"{needs.redis_commands:,.0f} a second"),
        ("Redis: network", f"{needs.redis_mbit:,.1f} Mbit/s"),
        ("Redis: memory", f"{needs.redis_mb:,.0f} MB"),
    ]
    return "| what | needed |\n|---|---|\n" + "\n".join(f"| {what} | {need} |" for what, need in rows)


def say(text: str) -> None:
    print(f"sizing: {text}", file=sys.stderr, flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.sizing", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("measure", help="measure the costs on this machine")
    one.add_argument("--seconds", type=float, default=10.0, help="of load for each kind (default 10)")
    one.add_argument("--count", type=int, default=500, help="streams, and queued requests (default 500)")
    one.add_argument("--out", type=Path, default=COSTS, help="file of the costs (default %(default)s)")
    two = parts.add_parser("plan", help="compute what a load needs")
    two.add_argument("--costs", type=Path, default=COSTS, help="file of the costs (default %(default)s)")
    for flag, value, words in (
        ("--requests", 100.0, "requests a second"),
        ("--events", 300.0, "events (tokens) of an answer"),
        ("--seconds", 10.0, "that an answer takes at the engine"),
        ("--hits", 0.0, "share of requests that are stored answers, 0 to 1"),
        ("--shared", 1.0, "share of the others that may be stored, 0 to 1"),
        ("--ttl", 600.0, "seconds that an answer is stored"),
        ("--queued", 0.0, "requests that wait for an engine"),
        ("--busy", 0.6, "share of a core that may be in use on average, over 0 to 1"),
    ):
        two.add_argument(flag, type=float, default=value, help=f"{words} (default {value:g})")
    args = parser.parse_args(arguments)
    if args.part == "measure":
        if not 0.1 <= args.seconds <= 600 or not 1 <= args.count <= 8192:
            parser.error("--seconds is from 0.1 to 600, --count from 1 to 8192")
        return args
    for name in Demand.__struct_fields__:
        share = name in ("hits", "shared", "busy")
        if not 0 <= getattr(args, name) <= (1 if share else 1e9):
            parser.error(f"--{name} is from 0 to {1 if share else 1e9:g}")
    if not args.busy:
        parser.error("--busy is over 0")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    args = parsed(arguments)
    if args.part == "plan":
        try:
            costs = msgspec.json.decode(args.costs.read_bytes(), type=Costs)
        except (OSError, msgspec.MsgspecError) as error:
            say(f"{args.costs}: {error}; `python -m ops.bench.sizing measure` writes it")
            return 2
        load = Demand(**{name: getattr(args, name) for name in Demand.__struct_fields__})
        print(needs_table(plan(costs, load)))
        return 0
    began = time.monotonic()
    costs = measure(args.seconds, args.count)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(msgspec.json.format(msgspec.json.encode(costs)) + b"\n")
    print(f"`{costs.command}` ({time.monotonic() - began:.0f} s). {costs.machine}.\n\n{costs_table(costs)}")
    return 0


if __name__ == "__main__":
    start.end_on_sigterm()
    sys.exit(main())

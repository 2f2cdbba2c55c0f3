"""How much one worker carries: `python -m ops.bench.capacity streams`, `hits` or `memory`."""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from ops.bench.capacity import hits, memory, streams
from ops.bench.capacity.table import Result, markdown, picture
from ops.bench.stage import DIRECT, OURS, Choice, Cpus, StageError, choose, chosen_of, cpus, stage
from ops.bench.subjects import end_on_sigterm
from ops.bench.table import machine, ran

SUBJECTS: Final = {
    "streams": "direct,nginx,gateway",
    "hits": "gateway",
    "memory": "nginx,vllm-router-rr,gateway",
}

SPARE_FILES: Final = 200  # beside the two connections of a stream


def parsed(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Choice, Cpus]:
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench.capacity",
        description="Measures how much one worker carries. streams: 64 tokens, one every 20 ms, 1 to 1,024 "
        "streams: all bytes, no gap over twice the pace. hits: answers a second out of Redis. memory: of each "
        "open stream and each queued request. Writes PART.json, and streams.svg.",
    )
    add = parser.add_argument
    add("part", choices=[*SUBJECTS])
    add("--subjects", metavar="NAME,…", help="direct, gateway, gateway-private, those of --command, and the peers "
        "of `python -m ops.bench.peers` (default: direct,nginx,gateway; hits: gateway; memory: "
        "nginx,vllm-router-rr,gateway)")  # fmt: skip
    add("--counts", default=",".join(map(str, streams.COUNTS)), metavar="N,…",
        help="numbers of streams (default %(default)s)")  # fmt: skip
    add("--count", type=int, default=1000, help="memory: streams, or queued requests (default 1000)")
    add("--seconds", type=float, default=2.0, help="of load for each figure (default 2)")
    add("--rounds", type=int, default=3, help="rounds, each with fresh processes (default 3)")
    add("--out", type=Path, default=Path("out/capacity"), help="folder of the results (default %(default)s)")
    choose(parser)
    args = parser.parse_args(arguments)
    try:
        args.counts = sorted({int(text) for text in args.counts.split(",")})
    except ValueError:
        args.counts = []
    if not args.counts or args.counts[0] < 1 or args.counts[-1] > 8192:
        parser.error("--counts: whole numbers from 1 to 8192, separated by commas")
    if not 1 <= args.count <= 8192 or args.rounds < 1 or not 0.1 <= args.seconds <= 60:
        parser.error("--count is from 1 to 8192, --rounds at least 1, --seconds from 0.1 to 60")
    args.names = (args.subjects or SUBJECTS[args.part]).split(",")
    if args.part == "hits" and args.names != ["gateway"]:
        parser.error("hits: only `gateway` stores answers")
    if args.part == "memory" and DIRECT in args.names:
        parser.error("memory: `direct` has no process of its own to measure")
    most = args.count if args.part == "memory" else args.counts[-1]
    need = 2 * most + SPARE_FILES
    if open_files() < need:
        parser.error(
            f"{most} streams need {need} file descriptors in one process; this system allows {open_files()}: run "
            f"`ulimit -n {need}` first (as root, or raise the hard limit), or measure fewer"
        )
    try:
        return args, chosen_of(args, args.names), cpus(spare=True)
    except StageError as error:
        parser.error(str(error))


def measure(args: argparse.Namespace, choice: Choice, on: Cpus) -> Result:
    """All rounds of the part. A subject that fails in a round is named in the result's failures."""
    began = time.monotonic()
    result = Result(
        command=ran("ops.bench.capacity"), machine=machine(), versions={}, seconds=0.0,
    )  # fmt: skip
    os.sched_setaffinity(0, {on.client})
    for round_ in range(args.rounds):
        for name in args.names:
            say(f"round {round_ + 1} of {args.rounds}: {name}")
            try:
                PARTS[args.part](args, name, round_, choice, on, result)
            except (RuntimeError, OSError) as error:
                result.failures.append(f"round {round_ + 1}, {name}: {error}")
                say(result.failures[-1])
    return msgspec.structs.replace(result, seconds=time.monotonic() - began)


def _streams(args: argparse.Namespace, name: str, round_: int, choice: Choice, on: Cpus, result: Result) -> None:
    with stage(name, choice, on) as staged:
        result.versions[name] = staged.version
        for count in args.counts:
            row = uvloop.run(streams.measure(name, count, round_, args.seconds, staged, on))
            result.streams.append(row)
            if not row.whole:
                say(f"{name}, {count} streams: {row.stalls} stalls, {row.broken} broken {row.words[:1]}")


def _hits(args: argparse.Namespace, name: str, round_: int, choice: Choice, on: Cpus, result: Result) -> None:
    with stage(name, choice, on) as staged:
        result.versions[name] = staged.version
        for kind in hits.KINDS:
            result.hits.append(uvloop.run(hits.measure(kind, round_, args.seconds, staged)))


def _memory(args: argparse.Namespace, name: str, round_: int, choice: Choice, on: Cpus, result: Result) -> None:
    for what in (memory.STREAM, memory.QUEUED) if name in OURS else (memory.STREAM,):
        with stage(name, choice, on, memory.QUEUE if what == memory.QUEUED else ()) as staged:
            result.versions[name] = staged.version
            result.memory.append(uvloop.run(memory.measure(name, what, round_, args.count, staged)))


PARTS: Final = {"streams": _streams, "hits": _hits, "memory": _memory}


def open_files() -> int:
    """The most file descriptors that a process of this user may have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 65536 if hard == resource.RLIM_INFINITY else hard


def say(text: str) -> None:
    print(f"capacity: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every answer was right, 1 if one was not or a process failed, 2 for a wrong command line."""
    args, choice, on = parsed(arguments)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files(), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    result = measure(args, choice, on)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.part}.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    drawn = picture(result.streams)
    if drawn is not None:
        (args.out / f"{args.part}.svg").write_bytes(drawn)
    print(markdown(result))
    wrong = sum(row.broken for row in result.streams) + sum(row.wrong for row in result.hits)
    return 1 if wrong or result.failures else 0


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())

"""Counts what a request and a token cost, without the noise of times: user instructions of the main thread
(valgrind's callgrind) and system calls (strace) of a subject, for a fixed number of requests after a warm-up.

An idle subject's instructions in the same time are taken off. Two runs differ by 1 to 2 %. Instructions are no
time: one that waits for memory counts as much as any other, the kernel's are not seen, and valgrind's CPU has no
instructions for SHA-256, which counts ten times its cost there."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import uvloop

from ops.bench import subjects as start
from ops.bench.client import Client, Load
from ops.bench.wire import Spec
from ops.bench.workloads import unique

SUBJECTS: Final = ("naive", "gateway-private", "gateway")
TOOLS: Final = ("valgrind", "callgrind_control", "strace", "setarch")
PATIENCE: Final = 300.0  # seconds until a subject under valgrind is ready
REDIS_MS: Final = 10_000  # a gateway under valgrind is too slow for the default: it would leave Redis alone
EVERYWHERE: Final = frozenset(range(os.cpu_count() or 1))
_TOTAL: Final = re.compile(rb"^(?:summary|totals): (\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of a subject."""

    unit: str
    spec: Spec
    connections: int
    number: int  # requests that are counted

    @property
    def units(self) -> int:
        return self.number * (self.spec.events if self.spec.stream else 1)


@dataclass(frozen=True, slots=True)
class Ground:
    """What a subject runs on: a folder, the engine's port, Redis' URL, and the checkout of its code."""

    work: Path
    engine: int
    redis: str
    tree: Path


def cases(scale: float) -> dict[str, Case]:
    """By name. Tokens come so slowly that a subject under valgrind reads them one by one."""
    return {
        "json": Case("a small JSON request", Spec(0, 1, 0, stream=False), 32, max(1, round(300 * scale))),
        "token": Case("a token, 16 streams", Spec(0, 64, 100_000), 16, max(1, round(16 * scale))),
    }


async def ask(port: int, case: Case, number: int) -> None:
    """Send so many requests, each connection one after the other. Raises RuntimeError for a wrong answer."""
    load = Load(port, {})
    specs, left = unique(case.spec), number
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    clients = [await load.open() for _ in range(min(number, case.connections))]
    running = len(clients)

    def again(client: Client) -> None:
        nonlocal left, running
        if left > 0 and not load.tally.wrong:
            left -= 1
            client.send(next(specs), again)
            return
        running -= 1
        if not running:
            over.set_result(None)

    for client in clients:
        again(client)
    await over
    for client in clients:
        client.close()
    if load.tally.wrong:
        raise RuntimeError(f"a wrong answer: {load.tally.wrong[0]}")


@contextmanager
def subject(name: str, ground: Ground, tool: Sequence[str] = ()) -> Iterator[start.Started]:
    """A subject under a tool, with its memory at the same addresses in each run."""
    port, ready = start.free_port(), "/ready"
    command = list(start.gateway(port, ground.engine, ground.redis, "--redis-timeout-ms", str(REDIS_MS)).argv)
    if name == "naive":
        ready = "/v1/models"
        engine = f"http://127.0.0.1:{ground.engine}"
        command = [sys.executable, "-m", "ops.bench.peers.naive_proxy", "--port", str(port), "--engine", engine]
    env = {"PYTHONHASHSEED": "0", "PYTHONPATH": str(ground.tree)}
    with start.started(
        start.Command(["setarch", "-R", *tool, *command], env=env, cwd=ground.tree), port, set(EVERYWHERE),
        ready=partial(start.answers, port, ready, {}), log=ground.work / "subject.log", patience=PATIENCE,
    ) as one:  # fmt: skip
        yield one


def instructions(name: str, case: Case, ground: Ground, profile: Path | None = None) -> float:
    """User instructions of the subject's main thread for each unit. `profile`: where callgrind's goes."""
    out = ground.work / "callgrind.out"
    tool = [
        "valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", "--separate-threads=yes",
        f"--callgrind-out-file={out}",
    ]  # fmt: skip

    def control(what: str, pid: int) -> None:
        subprocess.run(["callgrind_control", what, str(pid)], check=True, capture_output=True)

    async def counted(port: int, pid: int) -> None:
        await ask(port, case, case.connections)
        control("--instr=on", pid)
        await ask(port, case, case.connections)
        control("--zero", pid)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await ask(port, case, case.number)
        control("--dump", pid)
        await asyncio.sleep(loop.time() - began)
        control("--dump", pid)

    with subject(name, ground, tool) as one:
        uvloop.run(counted(one.port, one.pid))
    busy, idle = (Path(f"{out}.{number}-01").read_bytes() for number in (1, 2))
    if profile is not None:
        profile.write_bytes(busy)
    return (total(busy) - total(idle)) / case.units


def total(dump: bytes) -> int:
    """The instructions of one of callgrind's dumps."""
    return int(_TOTAL.findall(dump)[-1])


def system_calls(name: str, case: Case, ground: Ground) -> dict[str, float]:
    """System calls of the subject for each unit, by name, the most frequent first."""
    out = ground.work / "strace.out"

    with subject(name, ground) as one:
        uvloop.run(ask(one.port, case, case.number))
        tracer = subprocess.Popen(
            ["strace", "-c", "-f", "-o", str(out), "-p", str(one.pid)], stderr=subprocess.PIPE, text=True
        )
        assert tracer.stderr is not None
        tracer.stderr.readline()  # that it is attached, or why not
        uvloop.run(ask(one.port, case, case.number))
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=30)
    counts = calls_in(out.read_text("ascii"))
    return {call: count / case.units for call, count in sorted(counts.items(), key=lambda item: -item[1])}


def calls_in(summary: str) -> dict[str, int]:
    """The calls of `strace -c`, by name."""
    rows = [line.split() for line in summary.splitlines()]
    return {row[-1]: int(row[3]) for row in rows if len(row) >= 5 and row[0][0].isdigit() and row[-1] != "total"}


def _row(name: str, case: Case, trees: Sequence[Path], ground: Ground, profile: Path | None) -> str:
    """One line of the table: this checkout, and after it the other one."""
    case = replace(case, spec=replace(case.spec, shared=name == "gateway"))
    cells, first, words = [case.unit, name], 0.0, ""
    for tree in trees:
        there = replace(ground, tree=tree)
        count, calls = instructions(name, case, there, profile), system_calls(name, case, there)
        cells += [f"{count:,.0f}", f"{sum(calls.values()):.1f}"]
        if first:
            cells.append(f"{first / count:.3f}")
        else:
            first = count
            words = ", ".join(f"{call} {each:.2f}" for call, each in calls.items() if each >= 0.05)
        profile = None
    return f"| {' | '.join([*cells, words])} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench.micro.instructions", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--subjects", default=",".join(SUBJECTS), metavar="NAME,…", help=", ".join(SUBJECTS))
    parser.add_argument("--cases", default=",".join(cases(1)), metavar="NAME,…", help=", ".join(cases(1)))
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the number of requests (default 1)")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout, measured after this one")
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="callgrind's profile of the last subject, for callgrind_annotate",
    )
    args = parser.parse_args()
    chosen = cases(args.scale)
    for known, given in ((SUBJECTS, args.subjects), (tuple(chosen), args.cases)):
        unknown = sorted(set(given.split(",")) - set(known))
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        parser.error(f"not installed: {', '.join(absent)} (apt-get install valgrind strace util-linux)")
    trees = [Path.cwd(), *([args.against.resolve()] if args.against else [])]
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = start.free_port()
        stack.enter_context(
            start.started(
                start.engine_command(engine), engine, set(EVERYWHERE),
                ready=lambda: start.answers(engine, "/health", {}), log=work / "engine.log",
            )
        )  # fmt: skip
        redis, url = start.redis_command(work)
        ready = (work / "redis.sock").exists
        stack.enter_context(start.started(redis, 0, set(EVERYWHERE), ready=ready, log=work / "redis.log"))
        ground = Ground(work, engine, url, trees[0])
        head = "| | subject | instructions | system calls |"
        print(f"{head}{' there | calls there | here ÷ there |' if args.against else ''} by name |")
        print("|---|---|---|---|---|" + ("---|---|---|" if args.against else ""))
        for case in args.cases.split(","):
            for name in args.subjects.split(","):
                print(_row(name, chosen[case], trees, ground, args.profile), flush=True)
    return 0


if __name__ == "__main__":
    start.end_on_sigterm()
    sys.exit(main())

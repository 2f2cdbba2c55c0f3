"""Counts what a request and a token cost where the load of the machine does not matter: user instructions
(valgrind's callgrind) and system calls (strace) of the subject's process, for a fixed number of requests after a
warm-up."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
PATIENCE: Final = 300.0  # seconds until a subject under valgrind is ready
CONNECTIONS: Final = 32
TOKENS: Final = 64  # of a stream
ITL_US: Final = 2000
"""Between two tokens. A subject under valgrind is some 40 times slower: a token a read, as with 10 ms and more."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of a subject."""

    name: str
    spec: Spec
    connections: int
    number: int  # requests that are counted

    @property
    def units(self) -> int:
        return self.number * self.spec.events if self.spec.stream else self.number


def cases(scale: float) -> tuple[Case, ...]:
    return (
        Case("a small JSON request", Spec(0, 1, 0, stream=False), CONNECTIONS, int(1000 * scale)),
        Case("a token, 16 streams", Spec(0, TOKENS, 100_000), 16, int(16 * max(1, scale))),
    )


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


@dataclass(frozen=True, slots=True)
class Ground:
    """What a subject runs on: engine, Redis, a folder, and the checkout that it is taken from."""

    work: Path
    engine: int
    redis: str
    tree: Path


def command(name: str, ground: Ground, port: int) -> list[str]:
    if name == "naive":
        program = "ops.bench.peers.naive_proxy"
        return [sys.executable, "-m", program, str(port), f"http://127.0.0.1:{ground.engine}"]
    return list(start.gateway(port, ground.engine, ground.redis).argv)


@contextmanager
def subject(name: str, ground: Ground, before: list[str]) -> Iterator[start.Started]:
    """A subject under a tool. Its Python objects are where they are in each run: no address-space randomization."""
    port = start.free_port()
    argv = ["setarch", "-R", *before, *command(name, ground, port)]
    env = {"PYTHONHASHSEED": "0", "PYTHONPATH": str(ground.tree)}
    with start.started(
        start.Command(argv, env=env, cwd=ground.tree), port, set(range(os.cpu_count() or 1)),
        ready=partial(start.answers, port, "/ready" if name != "naive" else "/v1/models", {}), log=ground.work / "subject.log",
        patience=PATIENCE,
    ) as one:  # fmt: skip
        yield one


def instructions(name: str, case: Case, ground: Ground, keep: Path | None) -> float:
    """User instructions of the subject's main thread for each unit, less those of an idle subject in that time."""
    out = ground.work / "callgrind.out"
    tool = [
        "valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", "--separate-threads=yes",
        f"--callgrind-out-file={out}",
    ]  # fmt: skip
    with subject(name, ground, tool) as one:
        uvloop.run(ask(one.port, case, case.connections))
        _control("--instr=on", one.pid)
        uvloop.run(ask(one.port, case, case.connections))
        _control("--zero", one.pid)
        began = time.monotonic()
        uvloop.run(ask(one.port, case, case.number))
        _control("--dump", one.pid)
        took = time.monotonic() - began
        time.sleep(took)
        _control("--dump", one.pid)
    busy, idle = (Path(f"{out}.{number}-01") for number in (1, 2))
    if keep is not None:
        keep.write_bytes(busy.read_bytes())
    return (_total(busy) - _total(idle)) / case.units


def _control(what: str, pid: int) -> None:
    subprocess.run(["callgrind_control", what, str(pid)], check=True, capture_output=True)


def _total(dump: Path) -> int:
    return int(re.findall(rb"^(?:summary|totals): (\d+)", dump.read_bytes(), re.M)[-1])


def system_calls(name: str, case: Case, ground: Ground) -> dict[str, float]:
    """System calls of the subject for each unit, by name."""
    out = ground.work / "strace.out"
    with subject(name, ground, []) as one:
        uvloop.run(ask(one.port, case, case.number))
        tracer = subprocess.Popen(["strace", "-c", "-f", "-q", "-o", str(out), "-p", str(one.pid)])
        while "TracerPid:\t0\n" in Path(f"/proc/{one.pid}/status").read_text("ascii"):
            time.sleep(0.01)
        uvloop.run(ask(one.port, case, case.number))
        tracer.send_signal(signal.SIGINT)
        tracer.wait(10)
    counts = {}
    for line in out.read_text("ascii").splitlines():
        fields = line.split()
        if len(fields) >= 5 and fields[0][0].isdigit() and fields[-1] != "total":
            counts[fields[-1]] = int(fields[3]) / case.units
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.instructions", description=__doc__)
    parser.add_argument("--subjects", default=",".join(SUBJECTS), metavar="NAME,…")
    parser.add_argument("--cases", default="json,token")
    parser.add_argument("--only", default="instructions,calls")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="another checkout, measured in turn with this one"
    )
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    here = Path.cwd()
    trees = {"": here, **({"against": args.against.resolve()} if args.against else {})}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = start.free_port()
        everywhere = set(range(os.cpu_count() or 1))
        stack.enter_context(
            start.started(
                start.engine_command(engine), engine, everywhere,
                ready=lambda: start.answers(engine, "/health", {}), log=work / "engine.log",
            )
        )  # fmt: skip
        redis, url = start.redis_command(work)
        stack.enter_context(
            start.started(redis, 0, everywhere, ready=(work / "redis.sock").exists, log=work / "redis.log")
        )
        for case in cases(args.scale):
            if ("token" in case.name) != ("token" in args.cases) and ("JSON" in case.name) != (
                "json" in args.cases
            ):
                continue
            for name in args.subjects.split(","):
                for label, tree in trees.items():
                    ground = Ground(work, engine, url, tree)
                    one = replace(case, spec=replace(case.spec, shared=name == "gateway"))
                    row = [case.name, name, label]
                    if "instructions" in args.only:
                        row.append(f"{instructions(name, one, ground, args.keep):.0f}")
                    if "calls" in args.only:
                        found = system_calls(name, one, ground)
                        row.append(f"{sum(found.values()):.2f}")
                        row.append(
                            json.dumps(
                                {
                                    k: round(v, 2)
                                    for k, v in sorted(found.items(), key=lambda i: -i[1])
                                    if v >= 0.005
                                }
                            )
                        )
                    print("| " + " | ".join(row) + " |", flush=True)
    return 0


if __name__ == "__main__":
    start.end_on_sigterm()
    sys.exit(main())

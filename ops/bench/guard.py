"""Counts the Python calls per token and per request with `cProfile`, and compares them with fixed bounds: unlike a
time, a count does not vary with the load of the machine. Exits 1 if a bound is exceeded."""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Final

import uvloop

from ops.bench import subjects as start
from ops.bench.client import Load
from ops.bench.wire import Spec
from ops.bench.workloads import unique
from proxy.app import running
from proxy.config.settings import Settings
from proxy.telemetry.log import Log

HARNESS: Final = ("ops/bench", "cProfile", "/asyncio/", "dataclasses.py")


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    spec: Spec
    connections: int
    per_event: bool
    bound: float  # Python calls per event or request: measured, plus some per cent
    fleet: bool = False  # with claims, as where several gateways share one Redis


CASES: Final = (
    Case("a token, nothing shared", Spec(0, 128, 10_000), 16, True, 6.8),
    Case("a token, sharing possible", Spec(0, 128, 10_000, shared=True), 16, True, 7.8),
    Case("a small JSON request, nothing shared", Spec(0, 1, 0, stream=False), 8, False, 99.0),
    Case(
        "a small JSON request, with look-up and store", Spec(0, 1, 0, stream=False, shared=True), 8, False, 127.0
    ),
    Case("the same in a fleet", Spec(0, 1, 0, stream=False, shared=True), 8, False, 130.0, fleet=True),
    Case("a stream of one token, nothing shared", Spec(0, 1, 0), 8, False, 155.0),
    Case("the same, with look-up and store", Spec(0, 1, 0, shared=True), 8, False, 218.0),
    Case("the same in a fleet, claimed", Spec(0, 1, 0, shared=True), 8, False, 221.0, fleet=True),
)


async def count(case: Case, port: int, seconds: float) -> tuple[float, list[tuple[float, str]]]:
    """Python calls per unit of the gateway, aiohttp and other libraries; and the functions, most calls first."""
    load = Load(port, {})
    await load.closed(case.connections, unique(case.spec), 0.5)
    profile = cProfile.Profile()
    profile.enable()
    tally = await load.closed(case.connections, unique(case.spec), seconds)
    profile.disable()
    if tally.wrong:
        raise SystemExit(f"wrong answers: {tally.wrong[:3]}")
    units = tally.events if case.per_event else tally.done
    found = [
        (entry.callcount / units, f"{Path(code.co_filename).name}:{code.co_firstlineno} {code.co_qualname}")
        for entry in profile.getstats()  # not `pstats`: it keeps one of all functions with the same file and line
        if isinstance(code := entry.code, CodeType) and not any(part in code.co_filename for part in HARNESS)
    ]
    return sum(calls for calls, _ in found), sorted(found, reverse=True)


async def guard(engine: int, redis: str, seconds: float, show: int) -> bool:
    kept = True
    print("| | Python calls | bound | |\n|---|---|---|---|")
    for case in CASES:
        settings = Settings(
            backends=(f"http://127.0.0.1:{engine}",), port=0, redis=redis, fleet="auto" if case.fleet else "off"
        )
        log = Log(os.open(os.devnull, os.O_WRONLY), settings.log_format, settings.log_level)
        try:
            async with running(settings, log) as app:
                calls, dearest = await count(case, app.port, seconds)
                fine = calls <= case.bound
                kept = kept and fine
                print(
                    f"| {case.name} | {calls:.1f} | {case.bound:g} | {'ok' if fine else 'EXCEEDED'} |", flush=True
                )
                for each, name in dearest[:show]:
                    print(f"    {each:6.2f}  {name}")
        finally:
            log.close()
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.guard", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each case")
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="also print the N functions with the most calls"
    )
    args = parser.parse_args()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = start.free_port()
        stack.enter_context(
            start.started(
                start.engine_command(port), port, set(range(os.cpu_count() or 1)),
                ready=lambda: start.answers(port, "/health", {}), log=work / "engine.log",
            )
        )  # fmt: skip
        redis, url = start.redis_command(work)
        everywhere = set(range(os.cpu_count() or 1))
        stack.enter_context(
            start.started(redis, 0, everywhere, ready=(work / "redis.sock").exists, log=work / "redis.log")
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return 0 if runner.run(guard(port, url, args.seconds, args.show)) else 1


if __name__ == "__main__":
    sys.exit(main())

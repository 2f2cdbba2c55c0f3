"""Counts the Python calls and the bytecodes of a small JSON request, by room of the gateway and for aiohttp.
Neither varies with the load of the machine. C functions are not counted."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, Final

import uvloop

from ops.bench import subjects as start
from ops.bench.client import Load
from ops.bench.wire import Spec
from ops.bench.workloads import unique
from proxy.app import running
from proxy.config.settings import Settings
from proxy.telemetry.log import Log

CONNECTIONS: Final = 8
LIBRARIES: Final = ("aiohttp", "yarl")


def room_of(path: str) -> str:
    """The room of a source file: `proxy/…`, a library's name, or empty for the harness."""
    parts = Path(path).parts
    for name in LIBRARIES:
        if name in parts:
            return "aiohttp"
    if "proxy" not in parts[:-1] or "ops" in parts:
        return ""
    rest = parts[len(parts) - parts[::-1].index("proxy") :]
    return f"proxy/{rest[0]}" if len(rest) > 1 else "proxy"


class Tracer:
    """Counts by source file, for `sys.settrace`."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.bytecodes: Counter[str] = Counter()

    def __call__(self, frame: FrameType, event: str, value: Any) -> Any:
        if not room_of(frame.f_code.co_filename):
            return None
        self.calls[frame.f_code.co_filename] += 1
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.step

    def step(self, frame: FrameType, event: str, value: Any) -> Any:
        if event == "opcode":
            self.bytecodes[frame.f_code.co_filename] += 1
        return self.step

    def by_room(self, requests: int) -> dict[str, tuple[float, float]]:
        """Calls and bytecodes of a request."""
        calls: Counter[str] = Counter()
        bytecodes: Counter[str] = Counter()
        for path, count in self.calls.items():
            calls[room_of(path)] += count
            bytecodes[room_of(path)] += self.bytecodes[path]
        return {room: (calls[room] / requests, count / requests) for room, count in bytecodes.most_common()}


async def count(engine: int, redis: str, *, shared: bool, seconds: float) -> dict[str, tuple[float, float]]:
    """By room, of the gateway in this process."""
    settings = Settings(backends=(f"http://127.0.0.1:{engine}",), port=0, redis=redis, fleet="off")
    log = Log(os.open(os.devnull, os.O_WRONLY), settings.log_format, settings.log_level)
    specs = unique(Spec(0, 1, 0, stream=False, shared=shared))
    tracer = Tracer()
    try:
        async with running(settings, log) as app:
            load = Load(app.port, {})
            await load.closed(CONNECTIONS, specs, seconds / 4)
            sys.settrace(tracer)
            try:
                tally = await load.closed(CONNECTIONS, specs, seconds)
            finally:
                sys.settrace(None)
    finally:
        log.close()
    if tally.wrong:
        raise SystemExit(f"wrong answers: {tally.wrong[:3]}")
    return tracer.by_room(tally.done)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.micro.rooms", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="duration of each of the two cases")
    seconds = parser.parse_args().seconds
    everywhere = set(range(os.cpu_count() or 1))
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = start.free_port()
        stack.enter_context(
            start.started(
                start.engine_command(port), port, everywhere,
                ready=lambda: start.answers(port, "/health", {}), log=work / "engine.log",
            )
        )  # fmt: skip
        redis, url = start.redis_command(work)
        ready = (work / "redis.sock").exists
        stack.enter_context(start.started(redis, 0, everywhere, ready=ready, log=work / "redis.log"))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            private = runner.run(count(port, url, shared=False, seconds=seconds))
            shared = runner.run(count(port, url, shared=True, seconds=seconds))
    print(
        "| room | nothing shared: calls | bytecodes | look-up and store: calls | bytecodes |\n"
        "|---|---|---|---|---|"
    )
    nothing = (0.0, 0.0)
    sums = [sum(each[at] for each in of.values()) for of in (private, shared) for at in (0, 1)]
    rows = {room: [*private.get(room, nothing), *shared.get(room, nothing)] for room in {**private, **shared}}
    for room, numbers in {**rows, "all": sums}.items():
        print(f"| {room} | {' | '.join(f'{number:,.0f}' for number in numbers)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

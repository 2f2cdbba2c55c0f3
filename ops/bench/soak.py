"""Runs mixed load against the gateway for a long time, samples its memory, and reports the slope with its
error."""

from __future__ import annotations

import argparse
import asyncio
import csv
import itertools
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import uvloop

from ops.bench import subjects as start
from ops.bench.account import open_fds, rss_mb
from ops.bench.client import Client, Load, Tally
from ops.bench.table import machine
from ops.bench.wire import Spec

Point = tuple[float, float, int]
"""Seconds, RSS in MB, open file descriptors."""
SAMPLE_SECONDS: Final = 5.0
WARM_SHARE: Final = 0.2  # share of the time in which pools and caches still fill; excluded from the slope


def specs(seed: int) -> itertools.chain[Spec]:
    """A mix as agents send it: mostly streams; some repeated, some sampled, some not streamed."""
    pick = random.Random(seed)  # noqa: S311 - a workload, not a secret
    nonces = itertools.count(1)
    known = [Spec(next(nonces), 64, 5_000, shared=True) for _ in range(50)]

    def one() -> Spec:
        kind = pick.random()
        if kind < 0.3:
            return pick.choice(known)
        fresh = Spec(next(nonces), pick.choice((8, 32, 128)), pick.choice((0, 5_000, 10_000)), shared=kind < 0.6)
        return replace(fresh, stream=False, itl_us=0) if kind > 0.9 else fresh

    return itertools.chain.from_iterable([one()] for _ in itertools.count())


async def leavers(load: Load, wanted: itertools.chain[Spec], until: float) -> int:
    """Clients that disconnect during the answer, several a second: the most likely cause of a leak."""
    left = 0
    pick = random.Random(1)  # noqa: S311 - a workload, not a secret
    while time.monotonic() < until:
        client: Client = await load.open()
        client.send(replace(next(wanted), stream=True, tokens=128, itl_us=10_000), lambda _: None)
        await asyncio.sleep(pick.random() * 0.2)
        client.close()
        left += 1
        await asyncio.sleep(0.1)
    return left


async def sample(pid: int, until: float, path: Path) -> list[Point]:
    """Samples of seconds, RSS in MB and open file descriptors, also written to `path`."""
    began, found = time.monotonic(), []
    with path.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["seconds", "rss_mb", "fds"])
        while (now := time.monotonic()) < until:
            found.append((now - began, rss_mb(pid), open_fds(pid)))
            rows.writerow([f"{value:.2f}" for value in found[-1]])
            out.flush()
            await asyncio.sleep(min(SAMPLE_SECONDS, max(0.0, until - now)))
    return found


def slope(points: list[Point]) -> tuple[float, float]:
    """MB per hour after the warm-up, and its standard error from the means of ten blocks of time."""
    settled = points[int(len(points) * WARM_SHARE) :]
    if len(settled) < 20:
        return (0.0, float("inf"))

    def of(part: list[Point]) -> float:
        return statistics.linear_regression([p[0] for p in part], [p[1] for p in part]).slope * 3600

    size = len(settled) // 10
    blocks = [statistics.mean(p[1] for p in settled[at * size : (at + 1) * size]) for at in range(10)]
    times = [statistics.mean(p[0] for p in settled[at * size : (at + 1) * size]) for at in range(10)]
    fit = statistics.linear_regression(times, blocks)
    rest = [y - fit.intercept - fit.slope * x for x, y in zip(times, blocks, strict=True)]
    spread = sum((x - statistics.mean(times)) ** 2 for x in times)
    error = (sum(r * r for r in rest) / 8 / spread) ** 0.5 * 3600
    return of(settled), error


def plot(points: list[Point], path: Path) -> bool:
    """Plot memory over time. False if matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3))
    axes.plot([p[0] / 60 for p in points], [p[1] for p in points], linewidth=1)
    axes.set(xlabel="minutes", ylabel="RSS, MB", ylim=(0, None), title="The gateway's memory under mixed load")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return True


async def soak(pid: int, port: int, connections: int, minutes: float, out: Path) -> tuple[Tally, int, list[Point]]:
    until = time.monotonic() + minutes * 60
    load, going = Load(port, {}), Load(port, {})
    steady = asyncio.create_task(load.closed(connections, specs(0), minutes * 60))
    leaving = asyncio.create_task(leavers(going, specs(1), until))
    points = await sample(pid, until, out / "soak.csv")
    return await steady, await leaving, points


def other_output(log: Path) -> bytes:
    """The gateway's output without the request lines: its events, and warnings of Python."""
    with log.open("rb") as lines:
        return b"".join(line for line in lines if b'"msg":"request"' not in line)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument(
        "--out", type=Path, default=Path("out/soak"), help="folder for soak.csv and soak.svg (default %(default)s)"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kept = args.out / "gateway.err"
        engine_port, port = start.free_port(), start.free_port()
        stack.enter_context(
            start.started(
                start.engine_command(engine_port), engine_port, {0},
                ready=lambda: start.answers(engine_port, "/health", {}), log=work / "engine.log",
            )
        )  # fmt: skip
        redis, url = start.redis_command(work)
        stack.enter_context(start.started(redis, 0, {0}, ready=(work / "redis.sock").exists, log=work / "r.log"))
        subject = stack.enter_context(
            start.started(
                start.gateway(port, engine_port, url), port, {1},
                ready=lambda: start.answers(port, "/ready", {}), log=work / "subject.log",
            )
        )  # fmt: skip
        stack.callback(lambda: kept.write_bytes(other_output(work / "subject.log")))
        tally, left, points = uvloop.run(soak(subject.pid, port, args.connections, args.minutes, args.out))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            (args.out / "metrics.txt").write_bytes(answer.read())
    drawn = plot(points, args.out / "soak.svg")
    per_hour, error = slope(points)
    print(
        f"{machine()}. {args.minutes:g} minutes, {args.connections} connections: {tally.done} answers correct, "
        f"{len(tally.wrong)} wrong, {left} clients disconnected during their answer.\n"
        f"RSS {points[0][1]:.1f} MB at the start, {max(p[1] for p in points):.1f} peak, "
        f"{points[-1][1]:.1f} at the end; "
        f"slope {per_hour:+.2f} ± {error:.2f} MB/h after the first {WARM_SHARE:.0%}. "
        f"File descriptors {points[-1][2]} at the end, {max(p[2] for p in points)} peak.\n"
        f"{args.out}/soak.csv{f' and {args.out}/soak.svg' if drawn else ''}"
    )
    for text in tally.wrong[:5]:
        print(f"WRONG: {text}")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""One scenario: start the processes, warm up, load with faults, recover, check that nothing is left over. Bounded
in time, whatever the gateway does."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ops.bench.account import open_fds, rss_mb
from ops.chaos.acts import Chaos
from ops.chaos.faults import FAULTS
from ops.chaos.load import Load, Result, assess
from ops.chaos.report import KINDS, Row
from ops.chaos.stage import Stage, generations, known, stage
from ops.chaos.verdict import USAGE, Verdict

SCENARIOS: Final[dict[str, tuple[float, float, Mapping[str, float]]]] = {
    "engines killed, ended, stopped, slowed, reset": (0.2, 0.25, {
        "engine killed": 3, "engine ended": 1, "engine stopped": 3, "engine slowed": 2, "engine resets": 3,
    }),
    "Redis killed, stopped, flushed, poisoned": (0.15, 0.15, {
        "redis killed": 1, "redis stopped": 1, "redis flushed": 1, "redis poisoned": 6,
    }),
    "engines that lie on the wire": (0.3, 0.15, {"engine lies": 1}),
    "clients leave, stall, reset, send halves and poison": (0.18, 0.15, {
        "clients leave": 2, "clients stall": 1, "half heads": 1, "half bodies": 1, "pipelined": 1, "poison": 5,
    }),
    "the gateway stopped for seconds": (0.03, 0.12, {"gateway stopped": 1, "clients leave": 0.5}),
    "everything at once": (0.14, 0.18, dict.fromkeys(FAULTS, 1) | {"engine lies": 4, "gateway stopped": 0.3}),
}  # fmt: skip
"""The share of the faults, the share of the time, and the weights of the faults."""
SOAK: Final = "soak"
WEIGHTS: Final = {name: weights for name, (_, _, weights) in SCENARIOS.items()} | {
    SOAK: dict.fromkeys(FAULTS, 1.0) | {"engine lies": 4.0, "poison": 3.0, "gateway stopped": 0.3},
}
"""The weights of the faults in each scenario, and in the soak."""
FLAGS: Final = (
    *("--refresh-seconds", "1"),
    *("--breaker-max-seconds", "2"),
    *("--client-stall-timeout", "3"),
    *("--first-token-timeout", "10"),
    *("--token-timeout", "5"),
    *("--body-timeout", "5"),
    *("--max-inflight", "64"),
    *("--max-connections", "512"),
    *("--log-level", "warning"),
)
OPTIONAL: Final = {"--head-timeout": "3"}
LONGEST: Final = 10  # times the seconds of load, where too few results have come by then
WARM: Final = 200  # requests before the first measurement
WAVE: Final = 200  # requests after the last fault
SETTLE_SECONDS: Final = 20.0  # for breakers to close and engines to be up again
EMPTY_SECONDS: Final = 15.0  # for resources to be released
LONGER: Final = 8.0  # seconds by which one outage outlasts the bound, so that requests that wait for it hang
RSS_SLACK_MB: Final = 48.0  # of the main process only: the child for large requests ends by itself
FD_SLACK: Final = 24
GAUGE: Final = re.compile(
    r"^gateway_(flights|subscribers|queue_depth|queue_waiting|backend_inflight|client_connections|memory_held_bytes)"
    r"(?:\{[^}]*\})? (\S+)$",
    re.MULTILINE,
)
TASKS: Final = re.compile(r"^gateway_tasks (\S+)$", re.MULTILINE)
TASK_SLACK: Final = 8
ODD_USAGE: Final = "of odd usage"


@dataclass(frozen=True, slots=True)
class Options:
    seed: int
    events: int  # faults in this scenario
    seconds: float  # of load
    clients: int
    engines: int
    bound: float  # seconds after which a request counts as hung
    out: Path | None
    least: int = 0  # results, for which the load may take `LONGEST` times its seconds


async def play(scenario: str, options: Options, logs: Path) -> Row:
    """Play one scenario against a fresh gateway."""
    row = Row(scenario)
    seconds = options.seconds * (LONGEST if options.least else 1)
    waits = 4 + WAVE / options.clients  # waits of up to the bound: end of the load, breakers, last wave
    limit = seconds + waits * options.bound + LONGER + SETTLE_SECONDS + EMPTY_SECONDS + 30
    began = time.monotonic()
    flags = list(FLAGS)
    for option, value in OPTIONAL.items():
        if await known(option):
            flags += [option, value]
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        log = logs / f"gateway-{list(WEIGHTS).index(scenario)}.log"
        try:
            async with asyncio.timeout(limit), stage(folder, options.engines, flags, log) as on:
                await _scene(row, on, folder, options, WEIGHTS[scenario], logs)
        except TimeoutError:
            row.left_behind.append(f"the scenario did not finish within {limit:.0f} s")
    row.seconds = time.monotonic() - began
    errors = Counter(re.findall(r'"level":"error".*?"msg":"([^"]*)"', log.read_text(errors="replace")))
    if errors:
        row.notes.append(f"errors in the gateway's log: {dict(errors.most_common(8))}")
    return row


async def _scene(
    row: Row,
    on: Stage,
    folder: Path,
    options: Options,
    weights: Mapping[str, float],
    logs: Path,
) -> None:
    load = Load(on.host, on.port, options.seed, options.bound)
    await load.wave(WARM, options.clients)
    before = await _held(on)
    load.results.clear()
    longs = 1 if options.seconds > options.bound + LONGER else 0
    chaos = Chaos(on, random.Random(options.seed), load.mix.recent, options.bound + LONGER, longs)  # noqa: S311
    now = time.monotonic()
    until, last = now + options.seconds, now + LONGEST * options.seconds
    running = asyncio.create_task(load.run(options.clients, until, options.least, last))
    telling = asyncio.create_task(_tell(row, on, load))
    results: list[Result] = []
    try:
        await _faults(row, chaos, options.events, until, weights, logs)
        await running
        results = list(load.results)
        if not on.alive:
            row.left_behind.append(f"the gateway exited with {on.gateway.child.returncode}")
        else:
            await _heal(row, on, load)
            await _last_wave(row, on, load, options.clients)
            await _left_behind(row, on, before)
    finally:
        running.cancel()
        telling.cancel()
        _conclude(row, results or list(load.results), on, folder, options)


def _conclude(row: Row, results: list[Result], on: Stage, folder: Path, options: Options) -> None:
    """Assess and count the results, whether or not the scenario failed."""
    assess(results, on.faults, generations(folder), options.engines, options.bound)
    _count(row, results)
    if options.out is not None:
        with (options.out / "not-exact.jsonl").open("a") as lines:
            for result in results:
                if result.verdict.kind not in ("exact", "left"):
                    lines.write(json.dumps(_told(row, result)) + "\n")


def _told(row: Row, result: Result) -> dict[str, object]:
    ask, verdict = result.ask, result.verdict
    return {
        "scenario": row.scenario, "kind": verdict.kind, "why": verdict.why, "touched": result.touched,
        "start": result.start, "end": result.end, "tag": f"{ask.tag:x}", "endpoint": ask.endpoint,
        "stream": ask.stream, "n": ask.n, "sampled": ask.sampled, "usage": ask.usage, "tokens": ask.tokens,
    }  # fmt: skip


async def _faults(
    row: Row, chaos: Chaos, events: int, until: float, weights: Mapping[str, float], logs: Path
) -> None:
    """Cause `events` faults, spread over the time; a fault without a target is drawn again."""
    pick = chaos.pick
    start = time.monotonic()
    times = sorted(pick.uniform(0, until - start) for _ in range(events))
    tasks: list[asyncio.Task[None]] = []

    async def one() -> None:
        while True:
            name = pick.choices(list(weights), list(weights.values()))[0]
            began = time.monotonic()
            try:
                what = await FAULTS[name](chaos)
            except (OSError, TimeoutError) as e:
                row.notes.append(f"{name}: {e!r}")
                return
            if what:
                row.events[name] += 1
                told = {"scenario": row.scenario, "event": name, "what": what}
                with (logs / "events.jsonl").open("a") as lines:
                    lines.write(json.dumps({"at": began - start, "took": time.monotonic() - began, **told}) + "\n")
                return
            if time.monotonic() > until:
                return
            await asyncio.sleep(pick.uniform(0.05, 0.4))

    for at in times:
        await asyncio.sleep(max(0.0, start + at - time.monotonic()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)


async def _heal(row: Row, on: Stage, load: Load) -> None:
    """Bring everything back: all processes run, engines are truthful, and the gateway sees every engine up with a
    closed breaker; or the time for that is over."""
    on.gateway.send(signal.SIGCONT)
    for child in (*on.engines, on.redis):
        child.send(signal.SIGCONT)
        if not await child.listens():
            await child.kill()
            await child.start()
    for engine in on.engines:
        await engine.order(well=True)
    until = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < until:
        try:
            state = json.loads(await on.get("/-/state"))
            if all(one["up"] and one["breaker"] == "closed" for one in state["backends"]):
                return
        except (OSError, ValueError, KeyError, TypeError):
            pass
        await load.wave(6, 6)
        await asyncio.sleep(0.25)
    row.notes.append(f"not all engines were up within {SETTLE_SECONDS:.0f} s")


async def _last_wave(row: Row, on: Stage, load: Load, clients: int) -> None:
    found = await load.wave(WAVE, clients)
    reasons = Counter(result.verdict.why for result in found if result.verdict.kind != "exact")
    row.wave = f"{len(found) - reasons.total()} of {len(found)} exact"
    if reasons:
        row.left_behind.append(f"last wave: {dict(reasons.most_common(5))}")


async def _tell(row: Row, on: Stage, load: Load) -> None:
    """Print a line of progress every minute."""
    for minute in itertools.count(1):
        await asyncio.sleep(60)
        kinds = Counter(_so_far(result.verdict) for result in load.results)
        told = ", ".join(f"{kinds[kind]:,} {kind}" for kind in (*KINDS, ODD_USAGE))
        held = f"RSS {rss_mb(on.pid, children=False):.0f} MB, descriptors {open_fds(on.pid)}"
        line = f"minute {minute}: {row.events.total():,} faults, {len(load.results):,} requests: {told}; {held}"
        print(line, file=sys.stderr, flush=True)
        whys = Counter(
            result.verdict.why for result in load.results if _so_far(result.verdict) in ("wrong", "hung")
        )
        if whys:
            print(f"  {dict(whys.most_common(8))}", file=sys.stderr, flush=True)


def _so_far(verdict: Verdict) -> str:
    """The kind of a verdict. Odd usage is only decided at the end, with the engines' logs."""
    return ODD_USAGE if verdict.kind == "wrong" and verdict.why.startswith(USAGE) else verdict.kind


async def _held(on: Stage) -> tuple[float, int, int]:
    """RSS in MB, descriptors, tasks."""
    found = TASKS.search((await on.get("/metrics")).decode())
    return rss_mb(on.pid, children=False), open_fds(on.pid), int(float(found[1])) if found else 0


async def _left_behind(row: Row, on: Stage, before: tuple[float, int, int]) -> None:
    until = time.monotonic() + EMPTY_SECONDS
    found: dict[str, float] = {"no answer from /metrics": 1}
    while found and time.monotonic() < until:
        try:
            page = (await on.get("/metrics")).decode()
        except OSError:
            continue
        gauges: Counter[str] = Counter()
        for name, value in GAUGE.findall(page):
            gauges[name] += float(value)  # type: ignore[assignment]
        gauges["client_connections"] -= 1  # our own connection
        found = {name: value for name, value in gauges.items() if value > 0}
        await asyncio.sleep(0.2)
    row.left_behind += [f"{name} {value:g}" for name, value in found.items()]
    try:
        after = await _held(on)
    except OSError:
        return  # reported above
    row.rss_mb, row.descriptors = (before[0], after[0]), (before[1], after[1])
    row.tasks = (before[2], after[2])
    if after[2] > before[2] + TASK_SLACK:
        row.left_behind.append(f"tasks {before[2]} before, {after[2]} after")
    if after[0] > before[0] + RSS_SLACK_MB:
        row.left_behind.append(f"RSS {before[0]:.0f} MB before, {after[0]:.0f} after")
    if after[1] > before[1] + FD_SLACK:
        row.left_behind.append(f"descriptors {before[1]} before, {after[1]} after")


def _count(row: Row, results: list[Result]) -> None:
    for result in results:
        verdict = result.verdict
        row.kinds[verdict.kind] += 1
        why = f"{verdict.kind}: {verdict.why}"
        if verdict.kind not in ("exact", "left"):
            row.reasons[why] += 1
        if result.ask.stream and not result.touched and verdict.kind != "left":
            row.untouched += 1
            if verdict.kind == "exact":
                row.untouched_exact += 1
            else:
                row.untouched_reasons[why] += 1

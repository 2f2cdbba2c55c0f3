"""One drill: faults while clients read, then everybody leaves, and what is left behind is counted."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from ops.drill.fleet.faults import TWINS, Fault, Injection, Scene
from ops.drill.fleet.readers import Burst, Readers
from ops.drill.fleet.stage import Stage, until
from ops.drill.fleet.verdict import Answer

AT_ONCE: Final = {"gateway": 2, "engine": 1, "redis": 1}  # faults of a group
BETWEEN: Final = (0.1, 1.2)  # seconds between two faults
SETTLES: Final = 1.5  # seconds behind a fault that still count as its own: health checks, the Cluster's view
IDLE_SECONDS: Final = 6.0  # from the last reader anywhere to an idle engine: 5.25 s and a round trip, and a margin
IDLE_PATIENCE: Final = 30.0
READING: Final = 3.0  # seconds of reading between the last fault and the end


@dataclass
class Findings:
    """What a drill has seen."""

    answers: list[Answer] = field(default_factory=list)
    injections: list[Injection] = field(default_factory=list)
    bursts: list[Burst] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)  # seconds from the last reader to idle engines, at each pause
    leaks: list[str] = field(default_factory=list)  # keys without expiry
    faults: list[str] = field(default_factory=list)  # log lines of a gateway that report a fault of its own
    trouble: list[str] = field(default_factory=list)  # faults that could not be undone


async def drill(
    stage: Stage, seed: int, faults: Sequence[Fault], *, events: int, readers: int, pause_after: int
) -> Findings:
    """Make so many faults, or none but let clients read. Every `pause_after` faults all clients leave, and the
    engines must become idle."""
    findings = Findings()
    rng, of_readers = Random(seed), Random(seed + 1)  # noqa: S311 - repeatable, not secret
    faults = [fault for fault in faults if stage.networks or not fault.networks]
    while True:
        clients = Readers(stage.nodes, of_readers, readers, len(findings.injections))
        clients.start()
        try:
            await _inject(
                stage, clients, rng, faults, findings, min(events, len(findings.injections) + pause_after)
            )
            await stage.settled()
            await asyncio.sleep(SETTLES)
            await clients.together(TWINS)
            await asyncio.sleep(READING)
            left = await clients.leave()
        finally:
            await clients.close()
        findings.answers += clients.answers
        findings.bursts += clients.bursts
        await _idle(stage, findings, left)
        print(f"  {len(findings.injections)} faults, {len(findings.answers)} answers", file=sys.stderr, flush=True)
        if len(findings.injections) >= events:
            break
    keys = await stage.keys()
    findings.leaks += sorted(key.decode(errors="replace") for key, ms in keys.items() if ms < 0)
    for node in stage.nodes:
        log = (stage.folder / f"{node.name}.log").read_text(errors="replace").splitlines()
        findings.faults += [line for line in log if '"msg":"fault"' in line or "Traceback" in line]
    return findings


async def _idle(stage: Stage, findings: Findings, left: float) -> None:
    async def idle() -> bool:
        return await stage.running() == 0

    try:
        await until(idle, IDLE_PATIENCE, "engines idle")
    except TimeoutError as e:
        findings.trouble.append(str(e))
    findings.idle.append(time.monotonic() - left)


async def _inject(
    stage: Stage, clients: Readers, rng: Random, faults: Sequence[Fault], findings: Findings, most: int
) -> None:
    """Make faults until there are `most`, and wait until all are undone."""
    under_way: dict[asyncio.Task[None], tuple[Fault, Injection]] = {}
    try:
        while len(findings.injections) < most or under_way:
            if len(findings.injections) < most:
                await asyncio.sleep(rng.uniform(*BETWEEN))
                await _one(stage, clients, rng, findings, under_way, faults)
            else:
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in under_way if task.done()]:
                _, injection = under_way.pop(task)
                injection.ended = time.monotonic() + SETTLES
                if (e := task.exception()) is not None:
                    findings.trouble.append(f"{injection.kind} {injection.targets}: {type(e).__name__}: {e}")
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _one(
    stage: Stage,
    clients: Readers,
    rng: Random,
    findings: Findings,
    under_way: dict[asyncio.Task[None], tuple[Fault, Injection]],
    faults: Sequence[Fault],
) -> None:
    fault = rng.choices(faults, [each.weight for each in faults])[0]
    groups = [each.group for each, _ in under_way.values()]
    if groups.count(fault.group) >= AT_ONCE[fault.group]:
        return
    affected = frozenset(name for _, injection in under_way.values() for name in injection.targets)
    scene = Scene(stage, clients, rng, affected)
    targets = await fault.choose(scene)
    if not targets:
        return
    injection = Injection(fault.kind, fault.group, tuple(each.name for each in targets), time.monotonic())
    findings.injections.append(injection)
    under_way[asyncio.create_task(fault.make(scene, targets))] = fault, injection

"""The workloads: which requests, how many connections, for how long, and the name of the figure."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from ops.bench.client import Load, Tally
from ops.bench.wire import Spec

_NONCES = itertools.count(1)
PACE: Final = 1500  # requests a second that one process answers with a fifth of a CPU


def unique(spec: Spec) -> Iterator[Spec]:
    """Prompts that never repeat in this process: nothing can be shared or found in Redis."""
    while True:
        yield replace(spec, nonce=next(_NONCES))


def repeated(spec: Spec, count: int) -> Iterator[Spec]:
    """The same `count` prompts over and over."""
    specs = [replace(spec, nonce=next(_NONCES)) for _ in range(count)]
    return itertools.cycle(specs)


@dataclass(frozen=True, slots=True)
class Workload:
    """One part of the benchmark."""

    name: str
    words: str
    run: Callable[[Load, float], Awaitable[Tally]]
    per_event: bool  # the figure is CPU µs per event, else per request
    seconds: float
    ours_only: bool = False  # measures sharing, which the peers do not have


def _closed(connections: int, spec: Spec) -> Callable[[Load, float], Awaitable[Tally]]:
    return lambda load, seconds: load.closed(connections, unique(spec), seconds)


def _fan(connections: int, spec: Spec) -> Callable[[Load, float], Awaitable[Tally]]:
    return lambda load, seconds: load.waves(connections, unique(spec), seconds)


def workloads(*, shared: bool, times: int = 1) -> list[Workload]:
    """All workloads. `shared`: prompts that could be shared, so each costs key, look-up and store. `times`: so
    many times the connections of json, burst, c64 and hit, or requests a second of the paced ones."""
    few, many = 32 * times, 64 * times

    def ask(tokens: int, itl_us: int, *, stream: bool = True) -> Spec:
        return Spec(0, tokens, itl_us, stream=stream, shared=shared)

    async def hits(load: Load, seconds: float) -> Tally:
        return await load.closed(few, repeated(Spec(0, 128, 0, shared=True), 32), seconds)

    async def paced(specs: Iterator[Spec], load: Load, seconds: float) -> Tally:
        return await load.opened(PACE * times, specs, seconds, in_turn=True)

    return [
        Workload("json", f"small JSON, {few} connections", _closed(few, ask(1, 0, stream=False)), False, 4),
        Workload("burst", f"128 tokens at once, {few} streams", _closed(few, ask(128, 0)), True, 4),
        Workload("c64", f"{many} streams × 10 ms", _closed(many, ask(128, 10_000)), True, 6),
        Workload("c256", "256 streams × 20 ms", _closed(256, ask(128, 20_000)), True, 6),
        Workload("c1000", "1,000 streams × 20 ms", _closed(1000, ask(128, 20_000)), True, 8),
        Workload(
            "ttft", "50 requests/s, 8 tokens × 10 ms",
            lambda load, seconds: load.opened(50, unique(ask(8, 10_000)), seconds), False, 8,
        ),
        Workload("fan64", "64 readers of one flight × 10 ms", _fan(64, replace(ask(128, 10_000), shared=True)),
                 True, 6, ours_only=True),
        Workload("fan1000", "1,000 readers of one flight × 10 ms",
                 _fan(1000, replace(ask(128, 10_000), shared=True)), True, 6, ours_only=True),
        Workload("fanburst", "64 readers of one flight, all at once",
                 _fan(64, replace(ask(128, 0), shared=True)), True, 4, ours_only=True),
        Workload("json-paced", f"small JSON, {PACE * times:,} a second",
                 lambda load, seconds: paced(unique(ask(1, 0, stream=False)), load, seconds), False, 4,
                 ours_only=True),
        Workload("hit-paced", f"128-token stream out of Redis, {PACE * times:,} a second",
                 lambda load, seconds: paced(repeated(Spec(0, 128, 0, shared=True), 32), load, seconds), False, 4,
                 ours_only=True),
        Workload("hit", f"128-token stream out of Redis, {few} connections", hits, False, 4, ours_only=True),
    ]  # fmt: skip


NAMES: Final = tuple(workload.name for workload in workloads(shared=True))

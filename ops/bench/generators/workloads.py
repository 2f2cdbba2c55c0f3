"""The workloads: the server's schedule, the arrivals, and how much the tool's event loop is slowed down."""

from __future__ import annotations

from typing import Final

import msgspec

from ops.bench.generators.server import Schedule

WARM_UPS: Final = 20  # opens the connections, since some tools include connecting in TTFT


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """One workload: either `rate` (Poisson arrivals) or `concurrency` (closed loop)."""

    name: str
    group: str
    words: str
    schedule: Schedule
    requests: int
    rate: float | None = None  # requests a second
    concurrency: int | None = None
    hog_ms: float = 0.0  # added to each iteration of the sending event loop: a busy loop
    one_core: bool = False  # run the whole tool on one CPU, to get its rate per core


def _hogged(name: str, words: str, hog_ms: float, *, tokens: int = 8, itl_ms: float = 25.0) -> Workload:
    return Workload(
        name=name, group="hogged", words=words, schedule=Schedule(tokens, 100.0, itl_ms), requests=120, rate=40.0,
        hog_ms=hog_ms,
    )  # fmt: skip


def _rate(rate: int) -> Workload:
    return Workload(
        name=f"rate{rate}", group="rates", words=f"{rate} requests/s, {8 * rate:,} events/s",
        schedule=Schedule(8, 20.0, 5.0), requests=max(150, 3 * rate // 2), rate=float(rate), one_core=True,
    )  # fmt: skip


def _cost(name: str, words: str, schedule: Schedule, requests: int) -> Workload:
    return Workload(
        name=name, group="cost", words=words, schedule=schedule, requests=requests, concurrency=16, one_core=True
    )


ONE_TOKEN: Final = Schedule(1)
STREAMED: Final = Schedule(100, 10.0, 10.0)
WORKLOADS: Final = {
    workload.name: workload
    for workload in (
        _hogged("idle", "not slowed down", 0.0),
        _hogged("hog5", "5 ms per iteration", 5.0),
        _hogged("hog20", "20 ms per iteration", 20.0),
        _hogged("merge20", "20 ms per iteration, tokens 5 ms apart", 20.0, tokens=32, itl_ms=5.0),
        *map(_rate, (100, 200, 400, 800)),
        # Two sizes of each: the difference has no start-up and no constant cost of a report.
        _cost("requests400", "400 requests of one token", ONE_TOKEN, 400),
        _cost("requests1600", "1,600 requests of one token", ONE_TOKEN, 1600),
        _cost("events32", "32 streams of 100 tokens × 10 ms", STREAMED, 32),
        _cost("events128", "128 streams of 100 tokens × 10 ms", STREAMED, 128),
    )
}
GROUPS: Final = tuple(dict.fromkeys(workload.group for workload in WORKLOADS.values()))


def chosen(names: str) -> list[Workload]:
    """The workloads of comma-separated names and groups. Raises ValueError listing the known ones."""
    found: dict[str, Workload] = {}
    for name in names.split(","):
        group = [workload for workload in WORKLOADS.values() if name in (workload.name, workload.group)]
        if not group:
            raise ValueError(f"unknown workload {name!r}: choose from {', '.join((*GROUPS, *WORKLOADS))}")
        found |= {workload.name: workload for workload in group}
    return list(found.values())

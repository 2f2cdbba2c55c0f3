"""Stages at one load after another, side by side: a table, and what each user and each GPU gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from loadgen.analysis import Group, Summary, amount, cell, percent, rate, rate_of
from loadgen.record import Run
from loadgen.report.tables import Table


class Point(NamedTuple):
    """A stage in the picture of output per GPU against output per user, both in tokens per second."""

    name: str
    load: float
    user: float  # the median stream's rate after its first token
    gpu: float  # output of all users, divided by the GPUs
    good: float | None  # share of requests that met the objectives


def load_of(name: str) -> float | None:
    """8.0 for "8 users", "8 users (2)", "8 req/s" and "rate=8"; None for another stage."""
    requested = rate_of(name)
    if requested is not None:
        return requested
    number, _, unit = name.partition(" ")
    try:
        return float(number) if unit.partition(" ")[0] in ("user", "users", "req/s") else None
    except ValueError:
        return None


def by_load(stages: Mapping[str, Group]) -> list[tuple[str, Group]]:
    """The stages that have a load, ascending."""
    known = [(load, name, group) for name, group in stages.items() if (load := load_of(name)) is not None]
    return [(name, group) for _, name, group in sorted(known, key=lambda each: (each[0], each[1]))]


def users_tables(run: Run, summary: Summary) -> list[Table]:
    """By number of users; empty for another kind of run."""
    stages = [(name, group) for name, group in by_load(summary.by_stage) if "user" in name]
    if not stages or run.found is not None:
        return []
    gpus = gpus_of(run)
    rows = [
        [
            name, amount(group.requests), rate(group.request_throughput),
            *(cell(group.stats["ttft"].at(p)) for p in (50, 95)),
            cell(group.stats["tokens_per_second"].at(50)),
            rate(group.output_throughput), *([rate(group.output_throughput / gpus)] if gpus != 1 else []),
            percent(group.error_rate), *([percent(group.goodput.attainment)] if group.goodput else []),
        ]
        for name, group in stages
    ]  # fmt: skip
    columns = [
        "at once", "n", "req/s", "TTFT p50", "p95", "tok/s of a user", "tok/s",
        *(["of a GPU"] if gpus != 1 else []),
        "errors", *(["goodput"] if stages[0][1].goodput else []),
    ]  # fmt: skip
    return [Table("By number of users: TTFT in ms", columns, rows)]


def points_of(run: Run, summary: Summary) -> list[Point]:
    gpus = gpus_of(run)
    points = []
    for name, group in by_load(summary.by_stage):
        user = group.stats["tokens_per_second"].at(50)
        if user is None or user.value is None or not group.output_tokens:
            continue
        good = None if group.goodput is None else group.goodput.attainment
        points.append(Point(name, load_of(name) or 0.0, user.value, group.output_throughput / gpus, good))
    return points


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other one exceeds in both figures, by output per user."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.user, -point.gpu)):
        if not best or point.gpu > best[-1].gpu:
            best.append(point)
    return best[::-1]


def gpus_of(run: Run) -> int:
    return int(run.config.get("gpus") or 1)

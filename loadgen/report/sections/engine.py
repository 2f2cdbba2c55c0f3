"""The engine's own figures beside the client's: what its /metrics said during the run, and how it divides the
time to the first token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from loadgen.analysis import SECOND, Measured, amount, digits, interpolated, percent
from loadgen.record import Run, Scraped
from loadgen.report.tables import Table

GROUPS = 10


class Split(NamedTuple):
    """Mean times of a group of requests, in milliseconds: TTFT is the sum of the three."""

    network: float  # and the server's front: what the engine did not count
    queue: float
    prefill: float
    n: int

    @property
    def ttft(self) -> float:
        return self.network + self.queue + self.prefill


def series_of(run: Run, source: Scraped, name: str) -> tuple[list[float], list[float]]:
    """(seconds since the run's start, values) of one figure."""
    start = run.start_unix_ns / SECOND
    known = [
        (reading.at_s - start, reading.figures[name]) for reading in source.readings if name in reading.figures
    ]
    return [at for at, _ in known], [value for _, value in known]


def rate_series(run: Run, source: Scraped, name: str) -> tuple[list[float], list[float]]:
    """As `series_of`, for a counter: its growth per second. A counter that fell was restarted: no growth then."""
    at, values = series_of(run, source, name)
    steps = pairwise(zip(at, values, strict=True))
    return at[1:], [max(after - before, 0.0) / max(t1 - t0, 1e-6) for (t0, before), (t1, after) in steps]


def growth(run: Run, source: Scraped, name: str) -> float | None:
    """How much a counter grew from the first reading to the last, restarts left out."""
    _, values = series_of(run, source, name)
    if len(values) < 2:
        return None
    return sum(max(after - before, 0.0) for before, after in pairwise(values))


def hit_rate(run: Run, source: Scraped) -> float | None:
    queries, hits = growth(run, source, "prefix_queries"), growth(run, source, "prefix_hits")
    return hits / queries if queries and hits is not None else None


def engine_tables(run: Run, requests: Sequence[Measured] = ()) -> list[Table]:
    """What the engine says; empty without readings and without times of its own."""
    tables = []
    rows = [row for source in run.scraped for row in [_row(run, source)] if source.readings]
    if rows:
        columns = (
            "metrics of",
            "running",
            "most",
            "waiting",
            "most",
            "KV use, most",
            "preemptions",
            "prefix hits",
            "readings",
        )
        missed = sum(source.missed for source in run.scraped)
        notes = [f"{amount(missed)} readings failed or came too late."] if missed else []
        tables.append(Table("The engine's own figures: means over the readings", columns, rows, notes))
    split = splits(requests, 1)
    if split:
        tables.append(_split_table(requests, split[0]))
    return tables


def _row(run: Run, source: Scraped) -> list[str]:
    cells = [f"{source.name} ({source.kind})"]
    for name in ("running", "waiting"):
        _, values = series_of(run, source, name)
        cells += [digits(sum(values) / len(values)), digits(max(values))] if values else ["–", "–"]
    _, kv = series_of(run, source, "kv_use")
    preempted, hits = growth(run, source, "preemptions"), hit_rate(run, source)
    return [
        *cells, percent(max(kv)) if kv else "–", "–" if preempted is None else f"{preempted:,.0f}",
        "–" if hits is None else percent(hits), amount(len(source.readings)),
    ]  # fmt: skip


def splits(requests: Sequence[Measured], groups: int = GROUPS) -> list[Split]:
    """Requests in the order of their TTFT, in equal groups, each with its mean times; empty where the engine tells
    none (vLLM from 0.32 on, with --enable-per-request-metrics)."""
    known = [
        (request.ttft.value, request.engine_queue, request.engine_prefill)
        for request in requests
        if request.ttft is not None and request.engine_queue is not None and request.engine_prefill is not None
    ]
    known.sort()
    count = min(groups, len(known))
    parts = [known[len(known) * place // count : len(known) * (place + 1) // count] for place in range(count)]
    return [
        Split(
            network=sum(ttft - queue - prefill for ttft, queue, prefill in part) / len(part),
            queue=sum(queue for _, queue, _ in part) / len(part),
            prefill=sum(prefill for *_, prefill in part) / len(part),
            n=len(part),
        )
        for part in parts
    ]


def _split_table(requests: Sequence[Measured], mean: Split) -> Table:
    known = [request for request in requests if request.engine_queue is not None and request.ttft is not None]
    queues = sorted(request.engine_queue for request in known if request.engine_queue is not None)
    prefills = sorted(request.engine_prefill for request in known if request.engine_prefill is not None)
    nets = sorted(
        request.ttft.value - request.engine_queue - request.engine_prefill
        for request in known
        if request.ttft is not None and request.engine_queue is not None and request.engine_prefill is not None
    )

    def row(name: str, value: float, values: Sequence[float]) -> list[str]:
        share = percent(value / mean.ttft) if mean.ttft > 0 and value >= 0 else "–"
        return [name, digits(value), share, *(digits(interpolated(values, p)) for p in (0.5, 0.95))]

    rows = [
        row("network and the server's front", mean.network, nets),
        row("the engine's queue", mean.queue, queues),
        row("prefill, to the first token", mean.prefill, prefills),
    ]
    notes = [f"By the engine's own times, of {amount(mean.n)} requests. The first is what is left of our TTFT."]
    return Table("TTFT = network + queue + prefill, ms", ("", "mean", "of TTFT", "p50", "p95"), rows, notes)

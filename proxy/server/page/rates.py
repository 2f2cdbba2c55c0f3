"""Rates and quantiles of the recent past, from two snapshots of the counters that /metrics shows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import Any, Final, Protocol

from proxy.flights import Flight
from proxy.telemetry import VERDICTS, Sample
from proxy.wire import PATHS

QUANTILES: Final = {"p50": 0.5, "p95": 0.95}


@dataclass(frozen=True, slots=True)
class CounterSnapshot:
    """Sums since the start of the process, at one moment. Of generations only: chats, completions, embeddings."""

    at: float = 0.0  # seconds, monotonic
    verdicts: Mapping[str, float] = field(default_factory=dict)  # requests answered, by verdict
    refused: float = 0.0  # 4xx
    failed: float = 0.0  # 5xx
    left: float = 0.0  # the client did
    generated: float = 0.0  # tokens, each counted once
    delivered: float = 0.0  # tokens, counted for each client
    ttft: Mapping[float, float] = field(default_factory=dict)  # upper bound in seconds: how many not over it


class Counters(Protocol):
    """Where the counters are read: `Metrics`, or `Totals` of several processes."""

    def samples(self, name: str) -> list[Sample]: ...


def read(metrics: Counters, flights: Collection[Flight], now: float) -> CounterSnapshot:
    """The counters, plus the tokens of flights under way, which the counters get at their end."""
    verdicts = dict.fromkeys(VERDICTS, 0.0)
    refused = failed = left = 0.0
    for labels, count in metrics.samples("requests_total"):
        status = int(labels["status"]) if labels["status"].isdigit() else 0
        if labels["endpoint"] not in PATHS:
            continue
        if status == 499:
            left += count
        elif status >= 500:
            failed += count
        elif status >= 400:
            refused += count
        elif labels["verdict"] in verdicts:
            verdicts[labels["verdict"]] += count
    out = sum(n for labels, n in metrics.samples("tokens_total") if labels["direction"] == "out")
    made = sum(n for _, n in metrics.samples("generated_tokens_total"))
    return CounterSnapshot(
        at=now,
        verdicts=verdicts,
        refused=refused,
        failed=failed,
        left=left,
        # One that has ended is counted already, though it may stay among them until it is stored; what another
        # gateway generates is counted there.
        generated=made
        + sum(
            flight.content_events
            for flight in flights
            if not flight.ended and (not flight.leader or flight.continued is not None)
        ),
        delivered=out + sum(flight.content_events * flight.clients for flight in flights),
        ttft=_added(metrics.samples("time_to_first_token_seconds")),
    )


class Rising:
    """A total as it is shown. It never falls: the tokens of a stream that has ended are counted when its client
    has read all of it, and the engine may count fewer than were counted here."""

    def __init__(self) -> None:
        self._shown = 0.0

    def shown(self, total: float) -> float:
        """The greatest total until now."""
        self._shown = max(self._shown, total)
        return self._shown


def _added(samples: Iterable[Sample]) -> dict[float, float]:
    """The histograms of all generations as one."""
    total: dict[float, float] = {}
    for labels, told in samples:
        if labels["endpoint"] in PATHS:
            for bound, count in told.items():
                if isinstance(bound, float):
                    total[bound] = total.get(bound, 0) + count
    return total


def quantile(counts: Mapping[float, float], q: float) -> float | None:
    """Seconds, by linear interpolation inside the bucket, as Prometheus' `histogram_quantile` does; above the
    largest bound, that bound; None of nothing."""
    bounds = sorted(counts)
    if not bounds or counts[bounds[-1]] <= 0:
        return None
    rank = q * counts[bounds[-1]]
    for low, bound in pairwise([0.0, *bounds]):
        below = counts.get(low, 0.0) if low else 0.0
        if counts[bound] >= rank and counts[bound] > below:
            return low if bound == inf else low + (bound - low) * (rank - below) / (counts[bound] - below)
    return None


def rates_between(before: CounterSnapshot, after: CounterSnapshot) -> dict[str, Any]:
    """Between two snapshots: requests, verdicts, tokens a second, quantiles of TTFT in ms."""
    seconds = max(after.at - before.at, 1e-9)
    counts = {name: max(0.0, n - before.verdicts.get(name, 0.0)) for name, n in after.verdicts.items()}
    answered = sum(counts.values())
    ttft = {bound: n - before.ttft.get(bound, 0.0) for bound, n in after.ttft.items()}
    times = {name: quantile(ttft, q) for name, q in QUANTILES.items()}
    return {
        "seconds": round(seconds, 3),
        "answered": int(answered),
        "refused": int(after.refused - before.refused),
        "failed": int(after.failed - before.failed),
        "left": int(after.left - before.left),
        "verdicts": {name: int(n) for name, n in counts.items()},
        "generated_per_s": round(max(0.0, after.generated - before.generated) / seconds, 2),
        "delivered_per_s": round(max(0.0, after.delivered - before.delivered) / seconds, 2),
        "generated": int(max(0.0, after.generated - before.generated)),
        "delivered": int(max(0.0, after.delivered - before.delivered)),
        "ttft_ms": {name: None if s is None else round(s * 1000, 2) for name, s in times.items()},
    }


def window(readings: Sequence[CounterSnapshot], seconds: float) -> CounterSnapshot:
    """The snapshot at the start of the last `seconds`: the latest that is old enough, else the first."""
    newest = readings[-1].at
    old = [reading for reading in readings if newest - reading.at >= seconds]
    return old[-1] if old else readings[0]

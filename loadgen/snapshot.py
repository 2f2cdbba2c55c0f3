"""Where a run stands: the data that measuring hands to the live view, twice a second."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

import msgspec


class Snapshot(msgspec.Struct, kw_only=True):
    """The state of a run. TTFT is by the program's clock, of the last requests; rates are per second, over the
    last seconds."""

    stage: str = ""
    seconds: float = 0.0  # since the run's start; negative before it
    seconds_left: float | None = None  # about; None: unknown
    total: int | None = None  # requests in total, if known
    due: int = 0
    sent: int = 0
    done: int = 0
    good: int | None = None  # of those done: met all objectives; None: there are none
    under_way: int = 0
    waiting: int = 0
    requested_rate: float | None = None
    sent_rate: float = 0.0
    done_rate: float = 0.0
    token_rate: float = 0.0
    failed: dict[str, int] = {}
    tokens: int = 0  # by usage, of requests that have ended; of those in flight, and without usage, reads
    ttft_ms: dict[str, list[float]] = {}  # by target
    lag_ms: float | None = None  # of the loop, p99 so far


class View(Protocol):
    """Shows where a run stands. Called on the measuring loop, so it must return at once."""

    def __call__(self, snapshot: Snapshot) -> None: ...

    def note(self, text: str) -> None:
        """A line that stays."""


def time_left(snapshot: Snapshot, max_seconds: float | None) -> float | None:
    """About how many seconds a phase will still take, by its arrivals or by its pace so far."""
    s = snapshot
    left = [] if max_seconds is None else [max(max_seconds - s.seconds, 0.0)]
    if s.total is not None:
        if s.requested_rate and s.due < s.total:
            left.append((s.total - s.due) / s.requested_rate)
        elif s.done_rate:
            left.append((s.total - s.done) / s.done_rate)
    return min(left, default=None)


def merged(parts: list[Snapshot]) -> Snapshot:
    """The workers' snapshots as one."""
    if len(parts) == 1:
        return parts[0]
    failed: Counter[str] = Counter()
    ttft: dict[str, list[float]] = {}
    for part in parts:
        failed.update(part.failed)
        for target, values in part.ttft_ms.items():
            ttft.setdefault(target, []).extend(values)
    totals = [part.total for part in parts if part.total is not None]
    lags = [part.lag_ms for part in parts if part.lag_ms is not None]
    goods = [part.good for part in parts if part.good is not None]
    return Snapshot(
        stage=parts[0].stage if parts else "",
        seconds=max((part.seconds for part in parts), default=0.0),
        seconds_left=max((part.seconds_left for part in parts if part.seconds_left is not None), default=None),
        total=sum(totals) if totals else None,
        due=sum(part.due for part in parts),
        sent=sum(part.sent for part in parts),
        done=sum(part.done for part in parts),
        good=sum(goods) if goods else None,
        under_way=sum(part.under_way for part in parts),
        waiting=sum(part.waiting for part in parts),
        requested_rate=parts[0].requested_rate if parts else None,
        sent_rate=sum(part.sent_rate for part in parts),
        done_rate=sum(part.done_rate for part in parts),
        token_rate=sum(part.token_rate for part in parts),
        failed=dict(failed),
        tokens=sum(part.tokens for part in parts),
        ttft_ms=ttft,
        lag_ms=max(lags, default=None),
    )

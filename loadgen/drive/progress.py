"""Owns what is known while a run is going on: counters, and a snapshot of them a few times a second.
Must not know terminals (`live.py`) nor how anything is measured. The live figures are rough; the report's are not.
Filled by `session.py` at each request's end; its snapshots go to a view, through a pipe where workers run."""

from __future__ import annotations

import re
from collections import Counter, deque
from typing import Final

import msgspec

from loadgen.drive.capture.exchange import Exchange

RECENT: Final = 200
_TOKENS: Final = re.compile(rb'"completion_tokens": ?(\d+)')


class Snapshot(msgspec.Struct, kw_only=True):
    """Where a run stands. TTFT is by the program's clock, over the last requests."""

    stage: str = ""
    seconds: float = 0.0  # since the run's start; below 0: it has not begun
    total: int | None = None  # requests in all, where known
    due: int = 0
    sent: int = 0
    done: int = 0
    under_way: int = 0
    waiting: int = 0
    asked_rate: float | None = None
    failed: dict[str, int] = {}
    tokens: int = 0  # by usage, of requests that have ended
    ttft_ms: list[float] = []
    lag_ms: float | None = None  # of the loop, p99 so far

    @property
    def ttft_p50_ms(self) -> float | None:
        ordered = sorted(self.ttft_ms)
        return ordered[len(ordered) // 2] if ordered else None

    @property
    def rate(self) -> float:
        """Requests sent per second so far."""
        return self.sent / self.seconds if self.seconds > 0 else 0.0


class Progress:
    """Counts as requests end. 2 µs a request."""

    def __init__(self) -> None:
        self.done = 0
        self.failed: Counter[str] = Counter()
        self.tokens = 0
        self._ttft: deque[float] = deque(maxlen=RECENT)

    def ended(self, exchange: Exchange) -> None:
        self.done += 1
        if exchange.failure is not None:
            self.failed[exchange.failure] += 1
        elif exchange.status is not None and not 200 <= exchange.status < 300:
            self.failed["status"] += 1
        if exchange.first_ns and exchange.wrote_ns:
            self._ttft.append((exchange.first_ns - exchange.wrote_ns) // 1000 / 1e3)
        counts = _TOKENS.findall(b"".join(exchange.parts[-2:])[-4096:])
        if counts:
            self.tokens += int(counts[-1])

    def snapshot(self) -> Snapshot:
        return Snapshot(done=self.done, failed=dict(self.failed), tokens=self.tokens, ttft_ms=list(self._ttft))


def merged(parts: list[Snapshot]) -> Snapshot:
    """Workers' snapshots as one."""
    if len(parts) == 1:
        return parts[0]
    failed: Counter[str] = Counter()
    for part in parts:
        failed.update(part.failed)
    totals = [part.total for part in parts if part.total is not None]
    lags = [part.lag_ms for part in parts if part.lag_ms is not None]
    return Snapshot(
        stage=parts[0].stage if parts else "",
        seconds=max((part.seconds for part in parts), default=0.0),
        total=sum(totals) if totals else None,
        due=sum(part.due for part in parts),
        sent=sum(part.sent for part in parts),
        done=sum(part.done for part in parts),
        under_way=sum(part.under_way for part in parts),
        waiting=sum(part.waiting for part in parts),
        asked_rate=parts[0].asked_rate if parts else None,
        failed=dict(failed),
        tokens=sum(part.tokens for part in parts),
        ttft_ms=[value for part in parts for value in part.ttft_ms],
        lag_ms=max(lags, default=None),
    )

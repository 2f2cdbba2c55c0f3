"""Where a run stands: the data that measuring hands to the live view, twice a second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

OWN_ENDS: Final = frozenset({"cancelled", "left", "shed"})
"""Failures that are not the server's."""


class Snapshot(msgspec.Struct, kw_only=True):
    """The state of a run. TTFT is by the program's clock, of the last requests."""

    stage: str = ""
    seconds: float = 0.0  # since the run's start; negative before it
    total: int | None = None  # requests in total, if known
    due: int = 0
    sent: int = 0
    done: int = 0
    under_way: int = 0
    waiting: int = 0
    requested_rate: float | None = None
    failed: dict[str, int] = {}
    tokens: int = 0  # by usage, of requests that have ended
    ttft_ms: list[float] = []
    lag_ms: float | None = None  # of the loop, p99 so far

    @property
    def errors(self) -> int:
        """Failed requests, without those that the generator itself ended or did not send."""
        return sum(number for kind, number in self.failed.items() if kind not in OWN_ENDS)

    @property
    def ttft_p50_ms(self) -> float | None:
        ordered = sorted(self.ttft_ms)
        return ordered[len(ordered) // 2] if ordered else None

    @property
    def rate(self) -> float:
        """Requests sent per second so far."""
        return self.sent / self.seconds if self.seconds > 0 else 0.0


View = Callable[[Snapshot], None]
"""Shows a snapshot. Called on the measuring loop, so it must return at once."""


def merged(parts: list[Snapshot]) -> Snapshot:
    """The workers' snapshots as one."""
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
        requested_rate=parts[0].requested_rate if parts else None,
        failed=dict(failed),
        tokens=sum(part.tokens for part in parts),
        ttft_ms=[value for part in parts for value in part.ttft_ms],
        lag_ms=max(lags, default=None),
    )

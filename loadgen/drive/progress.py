"""Counters while a run is going on. The live figures are rough; those of the report are not."""

from __future__ import annotations

import re
from collections import Counter, deque
from typing import Final

from loadgen.drive.capture.exchange import Exchange
from loadgen.record import CUT_OFF
from loadgen.snapshot import Snapshot

RECENT: Final = 200
_TOKENS: Final = re.compile(rb'"completion_tokens": ?(\d+)')


class Progress:
    """Counts requests as they end, 2 µs each."""

    def __init__(self) -> None:
        self.done = 0
        self.failed: Counter[str] = Counter()
        self.tokens = 0
        self._ttft: deque[float] = deque(maxlen=RECENT)

    def ended(self, exchange: Exchange) -> None:
        self.done += 1
        if exchange.failure is not None and exchange.failure not in CUT_OFF:
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

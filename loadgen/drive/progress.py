"""Counters while a run is going on. The live figures are rough; those of the report are not."""

from __future__ import annotations

import re
from collections import Counter, deque
from typing import Final

from loadgen.drive.capture.exchange import Exchange
from loadgen.snapshot import OWN_ENDS, Snapshot

RECENT: Final = 200
_ERROR: Final = re.compile(rb'^data: ?\{"error"', re.MULTILINE)
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
        if exchange.failure is not None:
            self.failed[exchange.failure] += 1
        elif exchange.status is not None and not 200 <= exchange.status < 300:
            self.failed["status"] += 1
        if exchange.first_ns and exchange.wrote_ns:
            self._ttft.append((exchange.first_ns - exchange.wrote_ns) // 1000 / 1e3)
        tail = b"".join(exchange.parts[-2:])[-4096:]
        if exchange.failure is None and exchange.status == 200 and _ERROR.search(tail):
            self.failed["error_frame"] += 1
        counts = _TOKENS.findall(tail)
        if counts:
            self.tokens += int(counts[-1])

    @property
    def errors(self) -> int:
        """As `Snapshot.errors`."""
        return sum(number for kind, number in self.failed.items() if kind not in OWN_ENDS)

    def snapshot(self) -> Snapshot:
        return Snapshot(done=self.done, failed=dict(self.failed), tokens=self.tokens, ttft_ms=list(self._ttft))

"""Counters while a run is going on. The live figures are rough; those of the report are not."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Final

from loadgen.drive.capture.dialects import error_in
from loadgen.drive.capture.exchange import Exchange
from loadgen.record import CUT_OFF, Failure
from loadgen.snapshot import OWN_ENDS, Snapshot

RECENT: Final = 200
LARGEST_ERROR: Final = 65_536  # bytes of a body
WINDOW: Final = 5.0  # seconds over which the live rates are means
_ERROR: Final = re.compile(rb'^data: ?\{"error"', re.MULTILINE)
_TOKENS: Final = re.compile(rb'"completion_tokens": ?(\d+)')
_DURATIONS: Final = ("ttft", "ttft_due", "tpot", "e2el", "e2el_due")


def _failure_of_body(exchange: Exchange) -> Failure | None:
    """What is wrong with one JSON body: it is an error, or a stream was requested. Large bodies are not read."""
    if "text/event-stream" in exchange.content_type.lower() or not exchange.parts:
        return None
    if not exchange.parts[0].lstrip().startswith(b"{"):
        return None
    body = exchange.body if exchange.size <= LARGEST_ERROR else b""
    if b'"error"' in body and error_in(body) is not None:
        return "error_frame"
    return "garbage" if exchange.record.stream else None


class Progress:
    """Counts requests as they end, 2 µs each, and looks at those in flight for a snapshot.

    `objectives`: limits in milliseconds, as of `--goodput`. `zero_ns`: the run's start on CLOCK_MONOTONIC.
    """

    def __init__(self, objectives: Mapping[str, float] | None = None, zero_ns: int = 0) -> None:
        self._objectives = dict(objectives or {})
        self._zero_ns = zero_ns
        self.done = 0
        self.good = 0
        self.failed: Counter[str] = Counter()
        self.tokens = 0
        self._ttft: deque[tuple[str, float]] = deque(maxlen=RECENT)
        self._earlier: deque[tuple[float, int, int, int]] = deque()  # seconds, sent, done, tokens

    def ended(self, exchange: Exchange) -> None:
        self.done += 1
        failure = exchange.failure
        if failure is None and exchange.status is not None and not 200 <= exchange.status < 300:
            failure = "status"
        tail = b"".join(exchange.parts[-2:])[-4096:]
        if failure is None and _ERROR.search(tail):
            failure = "error_frame"
        elif failure is None:
            failure = _failure_of_body(exchange)
        if failure is not None and failure not in CUT_OFF:
            self.failed[failure] += 1
        if exchange.first_ns and exchange.wrote_ns:
            self._ttft.append((exchange.record.target, (exchange.first_ns - exchange.wrote_ns) // 1000 / 1e3))
        counts = _TOKENS.findall(tail)
        tokens = int(counts[-1][:9]) if counts else exchange.read_count if failure is None else 0
        self.tokens += tokens
        if self._objectives and failure is None:
            self.good += self._met(exchange, tokens)

    @property
    def errors(self) -> int:
        """As `Snapshot.errors`."""
        return sum(number for kind, number in self.failed.items() if kind not in OWN_ENDS)

    def _met(self, exchange: Exchange, tokens: int) -> bool:
        """By the program's clock."""
        sent, last = exchange.wrote_ns, exchange.body_ns
        first = exchange.first_ns or last
        queued = sent - self._zero_ns - exchange.record.due_ns
        took = (
            first - sent,
            first - sent + queued,
            (last - first) / max(tokens - 1, 1),
            last - sent,
            last - sent + queued,
        )
        limits = ((self._objectives.get(name), ns) for name, ns in zip(_DURATIONS, took, strict=True))
        return all(limit is None or ns <= limit * 1e6 for limit, ns in limits)

    def snapshot(self, in_flight: Iterable[Exchange] = (), *, seconds: float = 0.0, sent: int = 0) -> Snapshot:
        """The state now. Of requests in flight each read counts as a token."""
        tokens = self.tokens
        ttft: dict[str, list[float]] = {}
        for target, value in self._ttft:
            ttft.setdefault(target, []).append(value)
        for exchange in in_flight:
            if exchange.first_ns:
                tokens += exchange.read_count
                if exchange.wrote_ns and not self._ttft:
                    value = (exchange.first_ns - exchange.wrote_ns) // 1000 / 1e3
                    ttft.setdefault(exchange.record.target, []).append(value)
        while self._earlier and self._earlier[0][0] < seconds - WINDOW:
            self._earlier.popleft()
        before = self._earlier[0] if self._earlier else (0.0, 0, 0, 0)
        self._earlier.append((seconds, sent, self.done, tokens))
        span = seconds - before[0]

        def rate(now: int, then: int) -> float:
            return max(now - then, 0) / span if span > 0 else 0.0

        return Snapshot(
            seconds=seconds,
            sent=sent,
            done=self.done,
            good=self.good if self._objectives else None,
            failed=dict(self.failed),
            tokens=tokens,
            sent_rate=rate(sent, before[1]),
            done_rate=rate(self.done, before[2]),
            token_rate=rate(tokens, before[3]),
            ttft_ms={target: values[-RECENT:] for target, values in ttft.items()},
        )

"""Ended exchanges that wait to be decoded: after the run, or earlier if they hold too much memory. Decoding in
the loop would make it late for the requests that are still being measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from loadgen.drive.capture.exchange import Exchange
from loadgen.record import Record

MAX_HELD: Final = 256 * 1024 * 1024
"""Bytes of answers held back: about a million events of vLLM. Beyond it they are read while the run goes on."""


class Backlog:
    """Holds exchanges until `flush`, or until their weight is more than `max_held`; then the oldest are read."""

    def __init__(
        self, read: Callable[[Exchange], Record], emit: Callable[[Record], None], max_held: int = MAX_HELD
    ) -> None:
        self._read = read
        self._emit = emit
        self._max = max_held
        self._held: deque[Exchange] = deque()
        self.weight = 0
        self.early = 0  # read before the run's end

    def __repr__(self) -> str:
        return (
            f"<Backlog: {len(self._held)} exchanges, {self.weight} of {self._max} bytes, {self.early} read early>"
        )

    def take(self, exchange: Exchange) -> None:
        self._held.append(exchange)
        self.weight += exchange.weight
        while self.weight > self._max:
            self.early += 1
            self._one()

    def flush(self) -> None:
        while self._held:
            self._one()

    def _one(self) -> None:
        exchange = self._held.popleft()
        self.weight -= exchange.weight
        self._emit(self._read(exchange))

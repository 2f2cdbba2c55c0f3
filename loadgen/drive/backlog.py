"""Ended exchanges that wait to be decoded: after the run, or earlier if they hold too much memory. Decoding in
the loop would make it late for the requests that are still being measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from loadgen.drive.capture.exchange import Exchange
from loadgen.record import Record

MAX_HELD: Final = 256 * 1024 * 1024
"""Bytes of responses kept undecoded: about a million events of vLLM. Beyond it they are decoded during the run."""


class Backlog:
    """Keeps exchanges until `flush`; beyond `max_held` bytes the oldest are decoded at once."""

    def __init__(
        self, decode: Callable[[Exchange], Record], emit: Callable[[Record], None], max_held: int = MAX_HELD
    ) -> None:
        self._decode = decode
        self._emit = emit
        self._max = max_held
        self._held: deque[Exchange] = deque()
        self.weight = 0
        self.early = 0  # decoded during the run

    def __repr__(self) -> str:
        return f"<Backlog: {len(self._held)} exchanges, {self.weight} of {self._max} bytes, {self.early} early>"

    def add(self, exchange: Exchange) -> None:
        self._held.append(exchange)
        self.weight += exchange.weight
        while self.weight > self._max:
            self.early += 1
            self._decode_oldest()

    def flush(self) -> None:
        while self._held:
            self._decode_oldest()

    def _decode_oldest(self) -> None:
        exchange = self._held.popleft()
        self.weight -= exchange.weight
        self._emit(self._decode(exchange))

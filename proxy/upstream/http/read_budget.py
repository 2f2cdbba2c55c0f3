"""How many bytes of engines' answers are handled in one event loop iteration, over all connections. Each
connection asks for reads of more than a few bytes, and pays more for those with many short lines."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final, Protocol

from proxy.telemetry import contained, raised

TURN_BYTES: Final = 256 * 1024
"""Bytes handled per event loop iteration. libuv reads up to 32 times 256 KiB from each readable socket in one, so
without a bound a few engines that send at once hold the loop for seconds."""
SMALL: Final = 2048
"""Smaller reads are not counted: a token is one, and a short read empties the socket, so each connection has at
most one per iteration."""


SHORT: Final = 48
"""Bytes of a line, on average, below which each line is charged: the smallest event takes as long as a token."""
LINE_BYTES: Final = 150  # charged for one of them
PIECE: Final = 8 * 1024  # bytes of such input that are handled at once


class Waiting(Protocol):
    """A connection with input over the budget of this iteration."""

    def deliver(self) -> int:
        """Handle the deferred input, or a piece of it, and resume reading once nothing is left. Returns what it is
        charged."""


def admit(data: bytes) -> tuple[bytes, int]:
    """The part of a read that may be handled at once, and what it is charged in bytes."""
    if data.count(b"\n") * SHORT <= len(data):
        return data, len(data)
    piece = data[:PIECE]
    return piece, max(len(piece), piece.count(b"\n") * LINE_BYTES)


class ReadBudget:
    """The bytes left in this iteration, and the connections that wait for the next one, first come first
    served."""

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int = TURN_BYTES) -> None:
        self._loop = loop
        self._size = size
        self._left = size
        self._waiting: dict[Waiting, None] = {}
        self._due: asyncio.Handle | None = None
        self._number = 0  # of the iteration that is scheduled
        self.most = 0  # largest number of bytes handled in one iteration so far

    def __repr__(self) -> str:
        return f"<ReadBudget {self._left} of {self._size} left, {len(self._waiting)} wait>"

    def take(self, size: int) -> bool:
        """Whether this many bytes may be handled now. The last read admitted may exceed the budget."""
        if self._due is None:
            self._again()
        if self._left <= 0 or self._waiting:
            return False
        self._spend(size)
        return True

    def wait(self, connection: Waiting) -> None:
        """Call `deliver` of this connection in a later iteration."""
        self._waiting[connection] = None
        if self._due is None:
            self._again()

    def drop(self, connection: Waiting) -> None:
        """The connection does not wait any more."""
        self._waiting.pop(connection, None)

    def _spend(self, size: int) -> None:
        self._left -= size
        self.most = max(self.most, self._size - self._left)

    def _turn(self) -> None:
        """A new iteration: refill the budget and serve the waiting connections."""
        self._left = self._size
        while self._waiting and self._left > 0:
            connection = next(iter(self._waiting))
            del self._waiting[connection]
            self._spend(connection.deliver())

    def _go_on(self, number: int) -> None:
        """The end of that iteration: schedule another one where there is work for it."""
        if number == self._number:
            self._due = None
            if self._waiting or self._left < self._size:
                self._again()

    def _again(self) -> None:
        self._number += 1
        over = partial(self._go_on, self._number)  # twice: a lost iteration would stop all responses
        self._due = self._loop.call_soon(contained, raised, "reading", self._turn, over, over)

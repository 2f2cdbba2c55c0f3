"""How many bytes of engines' answers are handled in one event loop iteration, over all connections. Each
connection asks for reads of more than a few bytes."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final, Protocol

from proxy.telemetry import contained, raised

TURN_BYTES: Final = 256 * 1024
"""Handled in one turn of the loop. libuv reads up to 32 times 256 KiB of each readable socket in a turn, so
without a bound a few engines that send at once hold the loop for seconds."""
SMALL: Final = 2048
"""Reads below this are not counted: a token is one, and a socket that gave less than was asked for is empty, so
there is one at most of each connection in a turn."""


class Waiting(Protocol):
    """A connection that has read more than there was room for in this turn."""

    def deliver(self) -> int:
        """Handle what was read, and read on. The bytes that were handled."""


class ReadBudget:
    """The bytes left in this turn, and the connections that wait for the next one, first come first served."""

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int = TURN_BYTES) -> None:
        self._loop = loop
        self._size = size
        self._left = size
        self._waiting: dict[Waiting, None] = {}
        self._due: asyncio.Handle | None = None
        self._number = 0  # of the turn that is due
        self.most = 0  # bytes handled in one turn, at most so far

    def __repr__(self) -> str:
        return f"<ReadBudget {self._left} of {self._size} left, {len(self._waiting)} wait>"

    def take(self, size: int) -> bool:
        """Whether so many bytes may be handled now. The last to be let through may pass the bound."""
        if self._due is None:
            self._again()
        if self._left <= 0 or self._waiting:
            return False
        self._spend(size)
        return True

    def wait(self, connection: Waiting) -> None:
        """It has read more than may be handled now: `deliver` is called in a later turn."""
        self._waiting[connection] = None
        if self._due is None:
            self._again()

    def drop(self, connection: Waiting) -> None:
        """It does not wait any more."""
        self._waiting.pop(connection, None)

    def _spend(self, size: int) -> None:
        self._left -= size
        self.most = max(self.most, self._size - self._left)

    def _turn(self) -> None:
        """The loop has turned."""
        self._left = self._size
        while self._waiting and self._left > 0:
            connection = next(iter(self._waiting))
            del self._waiting[connection]
            self._spend(connection.deliver())

    def _go_on(self, number: int) -> None:
        """That turn is over: another one follows, where anything is to be done in it."""
        if number == self._number:
            self._due = None
            if self._waiting or self._left < self._size:
                self._again()

    def _again(self) -> None:
        self._number += 1
        over = partial(self._go_on, self._number)  # tried twice: for a turn that is lost all answers would wait
        self._due = self._loop.call_soon(contained, raised, "reading", self._turn, over, over)

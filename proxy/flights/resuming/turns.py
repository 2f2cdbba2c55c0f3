"""How many slices of resumed streams are written in one event loop iteration: clients whose connections were lost
together come back together, and a slice with ids takes 1 ms."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

TURNS: Final = 16
"""In one iteration: 18 ms of slices with ids. 1,000 clients that came back at once held the loop for 170 ms with
50 events each."""


class Turns:
    """So many in each event loop iteration; the others wait for the next ones, first come first served."""

    def __init__(self, most: int = TURNS) -> None:
        self._most = most
        self._left = most
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<Turns {self._left} of {self._most} left, {len(self._waiting)} wait>"

    async def take(self) -> None:
        loop = asyncio.get_running_loop()
        if self._left == self._most and not self._waiting:
            loop.call_soon(self._renew, loop)
        if self._left and not self._waiting:
            self._left -= 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _renew(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = self._most
        while self._left and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its client has left
                turn.set_result(None)
                self._left -= 1
        if self._left < self._most:
            loop.call_soon(self._renew, loop)

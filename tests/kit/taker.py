"""Owns a Receiver that keeps what it is given, and lets a test wait for it.
Must not know connections.
Called by tests of connections, pools and their faults."""

from __future__ import annotations

import asyncio

from proxy.errors import GatewayError
from proxy.wire import chunk
from tests.kit.engine_turn import PATIENCE
from tests.kit.patience import patience


class Taker:
    """Receives one answer and keeps it."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.data = b""
        self.reads = 0  # how often `body` was called
        self.endings: list[GatewayError | None] = []  # None: a clean end
        self._changed = asyncio.Event()

    def head(self, status: int, headers: list[tuple[str, str]], known: object = None) -> None:
        assert not self.status, "a second head"
        assert not self.endings, "a head after the end"
        self.status, self.headers = status, headers
        self._changed.set()

    def body(self, data: bytes, wired: bytes = b"") -> None:
        assert wired in (b"", chunk(data)), "another chunk than that of its data"
        assert data, "a body of nothing"
        assert self.status, "a body before its head"
        assert not self.endings, "a body after the end"
        self.data += data
        self.reads += 1
        self._changed.set()

    def end(self) -> None:
        self.endings.append(None)
        self._changed.set()

    def lost(self, error: GatewayError) -> None:
        self.endings.append(error)
        self._changed.set()

    async def until(self, data: bytes) -> None:
        async with patience(PATIENCE):
            while not self.data.endswith(data) or not self.status:
                self._changed.clear()
                await self._changed.wait()

    async def ended(self) -> GatewayError | None:
        async with patience(PATIENCE):
            while not self.endings:
                self._changed.clear()
                await self._changed.wait()
        (ending,) = self.endings
        return ending

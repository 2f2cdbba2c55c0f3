"""Log lines queued for a slow reader, shared fairly: one client's lines do not push out another's. The log
calls it under its lock."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from typing import Final

SHARES: Final = 64  # owners are hashed into these: many owners cost no memory


class FairLines:
    """At most `most` bytes of lines, in order of arrival. Beyond that the newest lines of the owner with the
    most bytes are dropped first: stochastic fairness queueing (McKenney 1990)."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.size = 0  # bytes
        self._number = 0
        self._sizes = [0] * SHARES
        self._lines: list[deque[tuple[int, bytes]]] = [deque() for _ in range(SHARES)]

    def put(self, line: bytes, owner: Hashable) -> list[bytes]:
        """Add a line; returns the lines dropped for it, or the line itself."""
        own = hash(owner) % SHARES
        gone: list[bytes] = []
        while self.size + len(line) > self._most:
            heaviest = max(range(SHARES), key=self._sizes.__getitem__)
            if self._sizes[heaviest] <= self._sizes[own] + len(line):
                return [*gone, line]
            gone.append(self._drop(heaviest))
        self._number += 1
        self._lines[own].append((self._number, line))
        self._sizes[own] += len(line)
        self.size += len(line)
        return gone

    def take(self, most: int) -> list[bytes]:
        """Remove and return the oldest lines, about `most` bytes."""
        heads = [(lines[0][0], share) for share, lines in enumerate(self._lines) if lines]
        heapq.heapify(heads)
        taken: list[bytes] = []
        size = 0
        while heads and size < most:
            _, share = heads[0]
            lines = self._lines[share]
            line = lines.popleft()[1]
            taken.append(line)
            size += len(line)
            self._sizes[share] -= len(line)
            if lines:
                heapq.heapreplace(heads, (lines[0][0], share))
            else:
                heapq.heappop(heads)
        self.size -= size
        return taken

    def _drop(self, share: int) -> bytes:
        line = self._lines[share].pop()[1]
        self._sizes[share] -= len(line)
        self.size -= len(line)
        return line

"""Which streams are held for clients that may come back, for how long, and how many.

Pure: `now` is an argument, and every decision is returned."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final

import msgspec

MOST_READERS: Final = 8
"""Clients that may read one stream at a time."""


class Entry(msgspec.Struct, eq=False):
    """A stream under its key: tenant and name."""

    tenant: bytes
    name: str
    caller: Hashable  # whom it counts for: without API keys a client chooses its tenant
    grace: float  # seconds
    readers: int = 0
    read: bool = False  # a client was sent all of it
    lapses: float = math.inf  # when it is dropped; never while a client reads


class Ledger:
    """Streams by tenant and name. Of a caller that has as many as it may have, the oldest one that a client was
    sent to its end and that nobody reads makes room for a new one."""

    def __init__(self, most: int, most_each: int) -> None:
        """`most`: streams in all; `most_each`: of one caller."""
        self._most, self._most_each = most, most_each
        self._entries: dict[tuple[bytes, str], Entry] = {}  # the oldest first
        self._counts: dict[Hashable, int] = {}

    def __repr__(self) -> str:
        return f"<Ledger {len(self._entries)} of {self._most} streams, {len(self._counts)} callers>"

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, tenant: bytes, name: str) -> Entry | None:
        return self._entries.get((tenant, name))

    def room(self, caller: Hashable) -> tuple[bool, Entry | None]:
        """Whether one more stream of this caller fits, and the entry that is to be removed first."""
        if len(self._entries) < self._most and self._counts.get(caller, 0) < self._most_each:
            return True, None
        for entry in self._entries.values():
            if entry.caller == caller and entry.read and not entry.readers:
                return True, entry
        return False, None

    def add(self, tenant: bytes, name: str, caller: Hashable, grace: float) -> Entry:
        """A new entry, with one reader. There is room."""
        entry = Entry(tenant, name, caller, grace, readers=1)
        self._entries[tenant, name] = entry
        self._counts[caller] = self._counts.get(caller, 0) + 1
        return entry

    def joins(self, entry: Entry) -> bool:
        """One more client reads it. False: as many do as may."""
        if entry.readers >= MOST_READERS:
            return False
        entry.readers += 1
        entry.lapses = math.inf
        return True

    def leaves(self, entry: Entry, now: float, *, read: bool) -> None:
        """A client reads it no longer. `read`: it was sent all of it."""
        entry.readers -= 1
        entry.read = entry.read or read
        if not entry.readers:
            entry.lapses = now + entry.grace

    def remove(self, entry: Entry) -> None:
        """Forget it. Safe to call again."""
        if self._entries.get((entry.tenant, entry.name)) is entry:
            del self._entries[entry.tenant, entry.name]
            self._counts[entry.caller] -= 1
            if not self._counts[entry.caller]:
                del self._counts[entry.caller]

    def due(self, now: float) -> list[Entry]:
        """Entries whose grace has passed."""
        return [entry for entry in self._entries.values() if entry.lapses <= now]

    def next_due(self) -> float:
        """When the next one lapses; inf: none does."""
        return min((entry.lapses for entry in self._entries.values()), default=math.inf)

"""Batches of store look-ups: which items wait for one, and which are being looked up now.

Reads no clock: `now` is passed in."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class LookupBatcher(Generic[T]):
    """One round trip at a time, a batch each: items that arrive meanwhile are the next batch."""

    def __init__(self, *, max_batch: int, window: float = 0.0) -> None:
        self.max_batch = max_batch
        self.window = window  # seconds that an item waits for others
        self.arrived: dict[T, float] = {}
        self.looking: dict[T, None] = {}

    def __len__(self) -> int:
        return len(self.arrived) + len(self.looking)

    def __contains__(self, item: T) -> bool:
        return item in self.arrived or item in self.looking

    def add(self, item: T, now: float) -> None:
        """Look the item up with the next batch."""
        self.arrived[item] = now

    def due(self, now: float) -> list[T]:
        """The next batch: at most `max_batch`, empty while one is under way or the window is open."""
        if self.looking or not self.arrived:
            return []
        deadline = self.next_deadline()
        if len(self.arrived) < self.max_batch and deadline is not None and now < deadline:
            return []
        batch = list(islice(self.arrived, self.max_batch))
        for item in batch:
            del self.arrived[item]
            self.looking[item] = None
        return batch

    def next_deadline(self) -> float | None:
        """When the window of the oldest item closes; None if there is none."""
        oldest = next(iter(self.arrived.values()), None)
        return None if oldest is None else oldest + self.window

    def over(self, batch: Iterable[T]) -> None:
        """The look-up of these items has ended. Only of these: if all of a batch was discarded meanwhile, the next
        look-up is under way already."""
        for item in batch:
            self.looking.pop(item, None)

    def clear(self) -> None:
        self.arrived.clear()
        self.looking.clear()

    def looked(self, item: T) -> bool:
        """The look-up of this item has ended. True if it was not discarded."""
        return self.looking.pop(item, self) is None

    def discard(self, item: T) -> bool:
        """Remove an item. True if it was here."""
        for line in (self.arrived, self.looking):
            if item in line:
                del line[item]
                return True
        return False

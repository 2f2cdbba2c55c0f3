"""Batches of store look-ups: which items wait for one, and which are being looked up now.

Reads no clock: `now` is passed in."""

from __future__ import annotations

from collections import OrderedDict, deque
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

    def discard(self, item: T) -> bool:
        """Remove an item. True if it was here."""
        for line in (self.arrived, self.looking):
            if item in line:
                del line[item]
                return True
        return False


class FairLookups(Generic[T]):
    """The same for any number of items, without a window: callers take turns, item by item, so that 300,000 inputs
    of one do not delay those of others."""

    def __init__(self, *, max_batch: int) -> None:
        self.max_batch = max_batch
        self.arrived: dict[T, Hashable] = {}  # with the caller in whose turn each is
        self.looking: dict[T, None] = {}
        self._turns: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._stale = 0  # entries of turns whose items are there no more

    def __len__(self) -> int:
        return len(self.arrived) + len(self.looking)

    def __contains__(self, item: T) -> bool:
        return item in self.arrived or item in self.looking

    def add(self, item: T, caller: Hashable) -> None:
        """Look the item up in this caller's turn."""
        turn = self._turns.get(caller)
        if turn is None:
            turn = self._turns[caller] = deque()
        turn.append(item)
        self.arrived[item] = caller

    def move(self, item: T, caller: Hashable) -> None:
        """Look it up in another caller's turn, if it waits for a look-up."""
        if self.arrived.get(item, caller) != caller:
            self.add(item, caller)
            self._stale += 1

    def due(self) -> list[T]:
        """The next batch; empty while one is under way."""
        batch: list[T] = []
        if self.looking:
            return batch
        turns, arrived = self._turns, self.arrived
        while turns and len(batch) < self.max_batch:
            caller, turn = next(iter(turns.items()))
            turns.move_to_end(caller)
            while turn:
                item = turn.popleft()
                if item in arrived and arrived[item] == caller:
                    del arrived[item]
                    self.looking[item] = None
                    batch.append(item)
                    break
                self._stale -= 1
            if not turn:
                del turns[caller]
        return batch

    def looked(self, item: T) -> bool:
        """The look-up of this item has ended. True if it was not discarded."""
        return self.looking.pop(item, self) is None

    def discard(self, item: T) -> bool:
        """Remove an item. True if it was here."""
        if item not in self.arrived:
            return self.looking.pop(item, self) is None
        del self.arrived[item]
        self._stale += 1
        if self._stale > len(self.arrived) + 16:  # else removed items would be kept
            turns = OrderedDict((caller, deque[T]()) for caller in self._turns)
            for other, caller in self.arrived.items():
                turns[caller].append(other)
            self._turns = OrderedDict((caller, turn) for caller, turn in turns.items() if turn)
            self._stale = 0
        return True

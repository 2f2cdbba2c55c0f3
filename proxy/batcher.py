"""Owns the queue: what waits for a look-up, what waits for a place at an engine, and when a batch is due.
Must not know Redis, engines, flights' insides or clocks: `now` is passed in, items are opaque.
Called by the scheduler only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from proxy.errors import Code, GatewayError

T = TypeVar("T")


class Batcher(Generic[T]):
    """Two lines, first come first served, bounded together.

    `arrived` waits for a store look-up (a batch a round trip), `missed` for a place at an engine. By default
    (`window` 0) nobody waits for company: a batch is what arrived in the same turn of the loop, or while the
    round trip before it was under way.
    """

    def __init__(self, *, limit: int, max_batch: int, window: float = 0.0) -> None:
        self.limit = limit  # items that may wait, in both lines and in a look-up under way
        self.max_batch = max_batch
        self.window = window  # seconds
        self._arrived: dict[T, float] = {}
        self._looking: dict[T, None] = {}
        self._missed: dict[T, None] = {}

    def __len__(self) -> int:
        return len(self._arrived) + len(self._looking) + len(self._missed)

    def __repr__(self) -> str:
        return f"<Batcher arrived={len(self._arrived)} looking={len(self._looking)} missed={len(self._missed)}>"

    @property
    def waits(self) -> bool:
        """Whether anything waits for a place already: a later one must not overtake it."""
        return bool(self._missed)

    def offer(self, item: T, now: float, *, lookup: bool) -> None:
        """Queue an item. Raises GatewayError 503 with Retry-After when the queue is full."""
        if len(self) >= self.limit:
            raise GatewayError(
                Code.QUEUE_FULL,
                f"The gateway's queue is full ({self.limit} requests wait); try again shortly.",
                retry_after=1,
            )
        if lookup:
            self._arrived[item] = now
        else:
            self._missed[item] = None

    def put(self, item: T) -> None:
        """Have an item wait for a place again that had one already: no bound is asked."""
        self._missed[item] = None

    def due(self, now: float) -> list[T]:
        """The next batch of look-ups: at most `max_batch`, empty while one is under way or the window is open."""
        if self._looking or not self._arrived:
            return []
        deadline = self.next_deadline()
        if len(self._arrived) < self.max_batch and deadline is not None and now < deadline:
            return []
        batch = list(self._arrived)[: self.max_batch]
        for item in batch:
            del self._arrived[item]
            self._looking[item] = None
        return batch

    def next_deadline(self) -> float | None:
        """When the oldest arrival's window closes; None when nothing waits."""
        oldest = next(iter(self._arrived.values()), None)
        return None if oldest is None else oldest + self.window

    def looked(self, batch: Iterable[T], misses: Iterable[T]) -> None:
        """The look-up of this batch has ended. Its misses wait for an engine, but for those discarded meanwhile.

        Of this batch only: where all of one was discarded while it was looked up, the next is under way already.
        """
        for item in misses:
            if item in self._looking:
                self._missed[item] = None
        for item in batch:
            self._looking.pop(item, None)

    def looking(self, item: T) -> bool:
        """Whether the item is still wanted from the look-up under way."""
        return item in self._looking

    def place(self, take: Callable[[T], bool]) -> None:
        """Offer each waiting item to `take`, in order; it leaves the queue where `take` says so."""
        for item in list(self._missed):
            if take(item):
                self._missed.pop(item, None)

    def waiting(self) -> tuple[T, ...]:
        """What waits for a place at an engine, in order."""
        return tuple(self._missed)

    def discard(self, item: T) -> bool:
        """Forget an item whose reader left. True if it was waiting."""
        for line in (self._arrived, self._looking, self._missed):
            if item in line:
                del line[item]
                return True
        return False

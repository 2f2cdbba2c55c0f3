"""Delivery of vectors to the requests that want them, and the composition of answers, a slice in each turn of the
event loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from proxy.flights.embeddings.items import EmbeddingItem, EmbeddingRequest, Result
from proxy.wire import SLICE

BYTES_A_UNIT = 16 * 1024
"""Bytes of a stored vector whose copying takes as long as handing out one item."""


class Delivery:
    """Hands out vectors and composes answers. An exception in one request's part ends that request alone."""

    def __init__(
        self,
        *,
        soon: Callable[[], None],
        landed: Callable[[EmbeddingRequest], None],
        failed: Callable[[EmbeddingRequest, Exception], None],
        lost: Callable[[EmbeddingItem, Exception], None],
        handed_out: Callable[[EmbeddingItem, Result], None],
    ) -> None:
        """`soon` requests another turn. `landed` is called with a request that has its answer, `failed` with one
        that cannot have one; `handed_out` with an item and its result once all its requests have it, `lost` with
        an item that none can have."""
        self._soon = soon
        self._landed = landed
        self._failed = failed
        self._lost = lost
        self._handed_out = handed_out
        self._come: deque[EmbeddingItem] = deque()
        self._landing: tuple[EmbeddingRequest, Iterator[None]] | None = None  # the answer under composition
        self._left = SLICE  # units of work left in this turn
        self._working = False

    def __len__(self) -> int:
        return len(self._come) + (self._landing is not None)

    def __repr__(self) -> str:
        return f"<Delivery items={len(self._come)} answers={int(self._landing is not None)}>"

    def add(self, item: EmbeddingItem) -> None:
        """The vector of an item has come."""
        self._come.append(item)

    def clear(self) -> None:
        self._come.clear()
        self._landing = None

    def turn(self) -> None:
        """Begin a turn of the event loop."""
        self._left = SLICE
        self.work()

    def work(self) -> None:
        """Do as much as this turn may do."""
        if self._working:
            return
        self._working = True
        try:
            while self._left > 0 and (self._landing or self._come):
                self._left -= 1
                if self._landing is not None:
                    self._compose(*self._landing)
                else:
                    self._give()
        finally:
            self._working = False
            if self._landing or self._come:
                self._soon()

    # -- inside -----------------------------------------------------------------------------------

    def _give(self) -> None:
        """Hand one item to one request."""
        item, request = self._come[0], None
        try:
            request = item.first()
            if request is not None and item.result is not None:
                item.drop(request)
                if not request.over and request.gets(item, item.result):
                    self._landing = request, request.land()
        except Exception as e:  # noqa: BLE001 - one request's part must not end the others'
            if request is not None:
                self._failed(request, e)
                item.drop(request)
            else:
                self._lost(item, e)
        if item.waiting is None or item.result is None:
            self._come.popleft()
            try:
                self._over(item)
            except Exception as e:  # noqa: BLE001 - its requests have it, though it is not stored
                self._lost(item, e)

    def _over(self, item: EmbeddingItem) -> None:
        first = item.disown()  # an item joined later is handed out again, but not stored again
        if first and item.result is not None and item.result.stored_at is None:
            self._left -= item.result.vector.size // BYTES_A_UNIT
            self._handed_out(item, item.result)

    def _compose(self, request: EmbeddingRequest, slices: Iterator[None]) -> None:
        """Compose a slice of one answer."""
        try:
            if not request.over:  # it may have left, or failed, meanwhile
                self._left -= request.step
                if next(slices, self) is None:
                    return
                self._landed(request)
        except Exception as e:  # noqa: BLE001 - the failure of one request
            self._failed(request, e)
        self._landing = None

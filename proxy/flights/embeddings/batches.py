"""Arrays of embedding items: which items go together, how many calls at a time, and when.

Reads no clock: `now` is passed in. Groups, callers, owners and items are opaque."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

G = TypeVar("G", bound=Hashable)  # items of one group may be in one array
T = TypeVar("T", bound=Hashable)  # an item


class _Waiting(NamedTuple):
    tokens: int
    since: float


class _Turn(Generic[T]):
    """One owner's items in the order of arrival. A removed item stays in `order` until that is rebuilt."""

    __slots__ = ("live", "order")

    def __init__(self) -> None:
        self.order: deque[T] = deque()
        self.live: dict[T, _Waiting] = {}

    def head(self) -> tuple[T, _Waiting]:
        while self.order[0] not in self.live:
            self.order.popleft()
        return self.order[0], self.live[self.order[0]]

    def drop(self, item: T) -> _Waiting | None:
        waiting = self.live.pop(item, None)
        if len(self.order) > 2 * len(self.live) + 16:
            self.order = deque(dict.fromkeys(item for item in self.order if item in self.live))
        return waiting


class _Line(Generic[T]):
    """One group's items by caller and owner, and parts of arrays that are requested again."""

    __slots__ = ("again", "callers", "count", "last", "parts", "tokens", "under_way")

    def __init__(self) -> None:
        self.callers: OrderedDict[Hashable, OrderedDict[Hashable, _Turn[T]]] = OrderedDict()
        self.again: deque[dict[T, None]] = deque()
        self.parts: dict[T, dict[T, None]] = {}  # in which of `again` an item is
        self.count = self.tokens = 0  # of the items by caller
        self.last = _Waiting(0, 0.0)  # of the last item: most of a request weigh the same
        self.under_way = 0


class ArrayBatcher(Generic[G, T]):
    """Items of one group become arrays of at most `items` items and `tokens` tokens; one item alone may have more.

    The calls of a group under way are limited, see `due`; items that arrive meanwhile are sent together. With a
    `window` (seconds) an array that is not full also waits until its oldest item has waited so long. Callers take
    turns, item by item, and so do each caller's owners (its requests): neither many requests nor a large one delay
    those of others.
    """

    def __init__(self, *, items: int, tokens: int, window: float = 0.0) -> None:
        self.items = items
        self.tokens = tokens
        self.window = window
        self._lines: dict[G, _Line[T]] = {}

    def __len__(self) -> int:
        return sum(line.count + len(line.parts) for line in self._lines.values())

    def __repr__(self) -> str:
        under_way = sum(line.under_way for line in self._lines.values())
        return f"<Arrays waiting={len(self)} under_way={under_way} groups={len(self._lines)}>"

    def offer(self, group: G, owner: Hashable, item: T, tokens: int, now: float, caller: Hashable = None) -> None:
        """Enqueue an item in the turn of its owner, which is one of the caller's. `tokens` is its weight."""
        line = self._lines.get(group) or _Line()
        owners = line.callers.get(caller)
        turn = owners.get(owner) if owners is not None else None
        if turn is None:
            turn = _Turn()
            if owners is None:
                owners = line.callers[caller] = OrderedDict()
            owners[owner] = turn
        self._lines[group] = line
        if line.last.tokens != tokens or line.last.since != now:
            line.last = _Waiting(tokens, now)
        turn.order.append(item)
        turn.live[item] = line.last
        line.count += 1
        line.tokens += tokens

    def discard(self, group: G, owner: Hashable, item: T, caller: Hashable = None) -> None:
        """Remove an item."""
        line = self._lines.get(group)
        if line is None:
            return
        part = line.parts.pop(item, None)
        if part is not None:
            part.pop(item, None)
            if not line.parts:
                line.again.clear()
        self.leave(group, owner, item, caller)

    def leave(self, group: G, owner: Hashable, item: T, caller: Hashable = None) -> bool:
        """Remove an item from this turn, to be queued in another one. True if it was in it; an item that is
        requested again is in no turn."""
        line = self._lines.get(group)
        if line is None:
            return False
        waited = self._drop(line, caller, owner, item)
        if not (line.callers or line.parts or line.under_way):
            del self._lines[group]
        return waited is not None

    def waits(self, group: G, owner: Hashable, item: T, caller: Hashable = None) -> bool:
        """Whether it is queued in that turn, or in a part to be requested again."""
        line = self._lines.get(group)
        if line is None:
            return False
        owners = line.callers.get(caller)
        turn = owners.get(owner) if owners is not None else None
        return item in line.parts or (turn is not None and item in turn.live)

    def due(self, now: float, calls: Callable[[G], int], most: int = 1 << 30) -> list[tuple[G, list[T]]]:
        """The arrays to send now, at most `most`; they count as under way. `calls` says how many of a group may be
        under way."""
        arrays: list[tuple[G, list[T]]] = []
        try:
            for group, line in self._lines.items():
                room = calls(group) - line.under_way
                while room > 0 and len(arrays) < most and self._ready(line, now):
                    array: list[T] = []
                    arrays.append((group, array))
                    line.under_way += 1
                    room -= 1
                    self._take(line, array)
        except BaseException:
            for group, array in arrays:  # they are queued again, so that no item is lost
                self.ended(group, [array])
            raise
        return arrays

    def ended(self, group: G, again: Iterable[list[T]] = ()) -> None:
        """A call of this group has ended. `again`: parts of it to be requested by themselves, before others."""
        line = self._lines[group]
        line.under_way -= 1
        for array in again:
            part = dict.fromkeys(array)
            line.again.append(part)
            for item in part:
                line.parts[item] = part
        if not (line.callers or line.parts or line.under_way):
            del self._lines[group]

    def next_deadline(self, calls: Callable[[G], int]) -> float | None:
        """When the next window closes of a group that has room for a call; None where none does."""
        return min(
            (
                self._deadline(line)
                for group, line in self._lines.items()
                if line.callers and line.under_way < calls(group)
            ),
            default=None,
        )

    # -- inside -----------------------------------------------------------------------------------

    def _ready(self, line: _Line[T], now: float) -> bool:
        if line.parts:
            return True
        return bool(line.callers) and (self.window <= 0 or now >= self._deadline(line) or self._full(line))

    def _take(self, line: _Line[T], array: list[T]) -> None:
        """Fill the next array."""
        while line.again:
            part = line.again.popleft()
            array += part
            for item in part:
                del line.parts[item]
            if array:
                return  # a part may be empty by now
        tokens = 0
        while line.callers and len(array) < self.items:
            caller, owners = next(iter(line.callers.items()))
            owner, turn = next(iter(owners.items()))
            item, waiting = turn.head()
            if array and tokens + waiting.tokens > self.tokens:
                break
            tokens += waiting.tokens
            line.callers.move_to_end(caller)
            owners.move_to_end(owner)
            self._drop(line, caller, owner, item)
            array.append(item)

    def _drop(self, line: _Line[T], caller: Hashable, owner: Hashable, item: T) -> _Waiting | None:
        owners = line.callers.get(caller)
        turn = owners.get(owner) if owners is not None else None
        waiting = turn.drop(item) if turn is not None else None
        if owners is None or turn is None or waiting is None:
            return None
        line.count -= 1
        line.tokens -= waiting.tokens
        if not turn.live:
            del owners[owner]
            if not owners:
                del line.callers[caller]
        return waiting

    def _deadline(self, line: _Line[T]) -> float:
        turns = (turn for owners in line.callers.values() for turn in owners.values())
        return min(turn.head()[1].since for turn in turns) + self.window

    def _full(self, line: _Line[T]) -> bool:
        return line.count >= self.items or line.tokens >= self.tokens


def halves(items: Sequence[T], owners_of: Callable[[T], frozenset[Hashable]]) -> list[list[T]]:
    """Bisect a refused array, until the request with the bad input is isolated. Empty if there is nothing to
    isolate: one item, or all items for the same owner alone. An array of n items takes 2n-1 calls at most; with
    one bad item about 2 log2(n)."""
    owners = [owners_of(item) for item in items]
    if len(items) < 2 or (len(owners[0]) == 1 and all(one == owners[0] for one in owners)):
        return []
    first: dict[frozenset[Hashable], list[T]] = {}
    for item, who in zip(items, owners, strict=True):
        first.setdefault(who, []).append(item)  # an owner's items side by side: bisection separates owners sooner
    sorted_ = [item for mine in first.values() for item in mine]
    middle = len(sorted_) // 2
    return [sorted_[:middle], sorted_[middle:]]

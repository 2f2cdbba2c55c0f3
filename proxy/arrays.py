"""Owns the embedding items that wait: which of them go up together, how many calls at a time, and when.
Must not know engines, Redis, flights or clocks: `now` is passed in; groups, owners and items are opaque.
Called by the embedder only."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

G = TypeVar("G", bound=Hashable)  # what may be asked as one array
T = TypeVar("T", bound=Hashable)  # an item


class _Waiting(NamedTuple):
    tokens: int
    since: float


class _Line(Generic[T]):
    """One group's items by owner, each in its order; and parts of arrays that are asked again."""

    __slots__ = ("again", "owners", "under_way")

    def __init__(self) -> None:
        self.owners: OrderedDict[Hashable, OrderedDict[T, _Waiting]] = OrderedDict()
        self.again: deque[list[T]] = deque()
        self.under_way = 0

    @property
    def idle(self) -> bool:
        return not (self.owners or self.again or self.under_way)


class Arrays(Generic[G, T]):
    """Items of one group become arrays of at most `items` items and `tokens` tokens; one item alone may have more.

    At most so many calls of a group are under way as `due` is told; what comes meanwhile goes up together. With a
    `window` (seconds) an array that is not full also waits until its oldest item has waited so long. Owners take
    turns, item by item, so that a large request is not in a small one's way.
    """

    def __init__(self, *, items: int, tokens: int, window: float = 0.0) -> None:
        self.items = items
        self.tokens = tokens
        self.window = window
        self._lines: dict[G, _Line[T]] = {}

    def __len__(self) -> int:
        return sum(
            sum(map(len, line.owners.values())) + sum(map(len, line.again)) for line in self._lines.values()
        )

    def __repr__(self) -> str:
        under_way = sum(line.under_way for line in self._lines.values())
        return f"<Arrays waiting={len(self)} under_way={under_way} groups={len(self._lines)}>"

    def offer(self, group: G, owner: Hashable, item: T, tokens: int, now: float) -> None:
        """Have an item wait. `tokens` is what it weighs."""
        line = self._lines.get(group)
        if line is None:
            line = self._lines[group] = _Line()
        line.owners.setdefault(owner, OrderedDict())[item] = _Waiting(tokens, now)

    def discard(self, group: G, owner: Hashable, item: T) -> None:
        """Forget an item that nobody wants any more."""
        line = self._lines.get(group)
        if line is None:
            return
        mine = line.owners.get(owner)
        if mine is not None and mine.pop(item, None) is not None and not mine:
            del line.owners[owner]
        for array in line.again:
            if item in array:
                array.remove(item)
        line.again = deque(array for array in line.again if array)
        self._tidy(group, line)

    def due(self, now: float, calls: Callable[[G], int]) -> list[tuple[G, list[T]]]:
        """The arrays that go up now, and are under way from now on; `calls` says how many of a group may be."""
        found: list[tuple[G, list[T]]] = []
        for group, line in self._lines.items():
            if not line.owners and not line.again:
                continue
            room = calls(group) - line.under_way
            while room > 0:
                if line.again:
                    array = line.again.popleft()
                elif line.owners and (self.window <= 0 or now >= self._deadline(line) or self._full(line)):
                    array = self._take(line)
                else:
                    break
                found.append((group, array))
                line.under_way += 1
                room -= 1
        return found

    def ended(self, group: G, again: Iterable[list[T]] = ()) -> None:
        """A call of this group is over. `again`: parts of it that are to be asked by themselves, first of all."""
        line = self._lines[group]
        line.under_way -= 1
        line.again.extend(array for array in again if array)
        self._tidy(group, line)

    def next_deadline(self, calls: Callable[[G], int]) -> float | None:
        """When the next window closes of a group that has room for a call; None where none does."""
        return min(
            (
                self._deadline(line)
                for group, line in self._lines.items()
                if line.owners and line.under_way < calls(group)
            ),
            default=None,
        )

    # -- inside -----------------------------------------------------------------------------------

    def _take(self, line: _Line[T]) -> list[T]:
        array: list[T] = []
        tokens = 0
        while line.owners and len(array) < self.items:
            owner, mine = next(iter(line.owners.items()))
            item, waiting = next(iter(mine.items()))
            if array and tokens + waiting.tokens > self.tokens:
                break
            array.append(item)
            tokens += waiting.tokens
            del mine[item]
            if mine:
                line.owners.move_to_end(owner)
            else:
                del line.owners[owner]
        return array

    def _deadline(self, line: _Line[T]) -> float:
        return min(next(iter(mine.values())).since for mine in line.owners.values()) + self.window

    def _full(self, line: _Line[T]) -> bool:
        waiting = [one for mine in line.owners.values() for one in mine.values()]
        return len(waiting) >= self.items or sum(one.tokens for one in waiting) >= self.tokens

    def _tidy(self, group: G, line: _Line[T]) -> None:
        if line.idle:
            self._lines.pop(group, None)


def halves(items: Sequence[T], wanted_by: Callable[[T], frozenset[Hashable]]) -> list[list[T]]:
    """How a refused array is asked again: in two parts, until whoever spoiled it is alone. Nothing where there is
    nobody to keep apart: one item, or all for one owner and nobody else. An array of n items takes 2n-1 calls at
    most; with one bad item some 2 log2(n)."""
    owners = [wanted_by(item) for item in items]
    if len(items) < 2 or (len(owners[0]) == 1 and all(one == owners[0] for one in owners)):
        return []
    first: dict[frozenset[Hashable], list[T]] = {}
    for item, who in zip(items, owners, strict=True):
        first.setdefault(who, []).append(item)  # an owner's items side by side: fewer cuts through them
    sorted_ = [item for mine in first.values() for item in mine]
    middle = len(sorted_) // 2
    return [sorted_[:middle], sorted_[middle:]]

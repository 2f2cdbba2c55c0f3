"""Owns which requests are twins: a stated share of duplicates, their popularity by Zipf's law."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from corpus.draw import Draw


class Zipf:
    """Ranks 0..count-1 with probability proportional to (rank + 1) ** -exponent."""

    def __init__(self, count: int, exponent: float) -> None:
        self._sums = list(accumulate((rank + 1) ** -exponent for rank in range(count)))

    def draw(self, chance: Draw) -> int:
        return min(bisect_right(self._sums, chance.unit() * self._sums[-1]), len(self._sums) - 1)


def mixed(count: int, duplicates: float, zipf: float, chance: Draw) -> list[int]:
    """A prompt's number for each of `count` requests, numbers from 0 in the order of their first request.

    Exactly round(duplicates * count) requests repeat an earlier one (at most count - 1 can). What is repeated is
    drawn by Zipf from a pool of popular prompts; the others are asked once. A Zipf draw over all prompts could not
    do it: its duplicate share follows from the exponent (1.1 gives at least a third of 1,000 requests).
    """
    repeats = min(round(duplicates * count), count - 1)
    if repeats <= 0:
        return list(range(count))
    popular = Zipf(min(count - repeats, repeats), zipf)
    drawn: list[int] = []
    seen: set[int] = set()
    while len(drawn) - len(seen) < repeats:
        rank = popular.draw(chance)
        drawn.append(rank)
        seen.add(rank)
    drawn += range(repeats + count, repeats + 2 * count - len(drawn))  # numbers beyond every rank
    chance.shuffle(drawn)
    order: dict[int, int] = {}
    return [order.setdefault(number, len(order)) for number in drawn]

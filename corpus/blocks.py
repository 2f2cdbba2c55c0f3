"""Prompts as chains of prefix-cache blocks: which blocks requests share, and the text of each block."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from corpus.bank import BYTES_PER_TOKEN, block
from corpus.draw import Draw

BLOCK_TOKENS: Final = 512

_text = lru_cache(maxsize=4096)(block)  # about 8 MB; most reuse is of few blocks


def block_bytes(tokens: int = BLOCK_TOKENS) -> int:
    return round(tokens * BYTES_PER_TOKEN)


def block_prompt(seed: int, blocks: Sequence[int], tokens: int, block_tokens: int = BLOCK_TOKENS) -> str:
    """The text of a chain of blocks, the last cut to what `tokens` leaves for it."""
    size = block_bytes(block_tokens)
    whole = "".join([_text(seed, name, size) for name in blocks])
    return whole[: max(1, min(round(tokens * BYTES_PER_TOKEN), len(whole)))]


@dataclass(frozen=True, slots=True)
class Sharing:
    """How requests come to share blocks: some continue an earlier request, as a conversation's next turn does.

    `hit_rate` is the wanted share of blocks that an infinite cache has. Whoever continues takes up the earlier
    request whose prompt is the longest that fits before its own among `candidates` that are offered; those are old
    requests in `popular` of cases (documents, agents, favourites) and recent ones otherwise. `common` blocks open
    every prompt.
    """

    hit_rate: float
    candidates: int = 16
    popular: float = 0.2
    common: int = 1

    def chains(self, lengths: Sequence[int], seed: int) -> list[tuple[int, ...]]:
        """Blocks for prompts of these lengths in tokens. Found by bisection: the share of those that continue."""
        counts = [math.ceil(tokens / BLOCK_TOKENS) for tokens in lengths]
        low, high = 0.0, 1.0
        for _ in range(12):
            middle = (low + high) / 2
            if self._links(counts, middle, seed)[1] < self.hit_rate:
                low = middle
            else:
                high = middle
        parents = self._links(counts, (low + high) / 2, seed)[0]
        chains: list[tuple[int, ...]] = []
        fresh = self.common
        for count, (parent, shared) in zip(counts, parents, strict=True):
            start = chains[parent][:shared] if parent >= 0 else tuple(range(min(self.common, count)))
            chains.append((*start, *range(fresh, fresh + count - len(start))))
            fresh += count - len(start)
        return chains

    def _links(self, counts: list[int], continuing: float, seed: int) -> tuple[list[tuple[int, int]], float]:
        """For each prompt whom it continues (-1: nobody) and for how many blocks; and the hit rate of that."""
        chance = Draw(seed, "links")
        links: list[tuple[int, int]] = []
        hits = 0
        old: list[tuple[int, int]] = []  # (blocks, place) of the first requests, sorted: the popular ones
        for place, count in enumerate(counts):
            parent, shared = -1, min(self.common, count) if place else 0
            continues, is_popular = chance.unit() < continuing, chance.unit() < self.popular
            if continues and place and count > 1:
                if is_popular:
                    at = max(0, bisect_right(old, (count - 1, place)) - 1)
                    parent = old[at][1]
                else:
                    recent = min(place, 512)
                    offered = [place - 1 - chance.below(recent) for _ in range(self.candidates)]
                    parent = max(offered, key=lambda p: (min(counts[p], count - 1), -counts[p]))
                shared = max(shared, min(counts[parent], count - 1))
            if place < 64:
                old.insert(bisect_left(old, (count, place)), (count, place))
            hits += shared
            links.append((parent, shared))
        return links, hits / sum(counts)

"""Duplicates in a stated share, with popularity by Zipf's law, and the nonce that keeps a prompt from sharing a
cached prefix with any other."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from itertools import accumulate
from typing import Any

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


def nonce(salt: str, *names: object) -> str:
    """Sixteen hex digits: two nonces nearly always differ from their first character on."""
    text = "\x1f".join([salt, *map(str, names)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_nonce(fields: dict[str, Any], nonce: str) -> dict[str, Any]:
    """A copy with the nonce at the very front of the prompt, where prefix caches begin.

    What a chat template puts before the first message is the engine's, and stays in common: with vLLM's blocks of
    16 tokens a long default system prompt can still hit.
    """
    front = f"{nonce} "
    if "messages" in fields:
        first, *rest = fields["messages"]
        return {**fields, "messages": [{**first, "content": _before(front, first.get("content"))}, *rest]}
    name = next((name for name in ("prompt", "input", "query") if name in fields), "input")
    value = fields[name]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return {**fields, name: [front + item for item in value]}
    if not isinstance(value, str):
        raise ValueError(f"a {name} of token ids cannot carry a nonce; give text")
    return {**fields, name: front + value}


def _before(front: str, content: Any) -> Any:
    if isinstance(content, list):
        return [{"type": "text", "text": front}, *content]
    return front + (content or "")

"""One count of tokens divided among several requests, in whole tokens, by the largest remainder method (Hamilton).
The shares always add up to the count: clients are billed by them."""

from __future__ import annotations

from collections.abc import Sequence


def shares_of(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in whole parts in proportion to the weights; in equal parts where all weights are 0."""
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    parts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda n: (-(total * weights[n] % whole), n))
    for n in by_remainder[: total - sum(parts)]:
        parts[n] += 1
    return parts

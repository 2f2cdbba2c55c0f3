"""One count of tokens divided among several requests, in whole tokens, by the largest remainder method (Hamilton).
The shares always add up to the count: clients are billed by them."""

from __future__ import annotations

from collections.abc import Sequence


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in whole parts in proportion to the weights; in equal parts where all weights are 0."""
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    parts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda n: (-(total * weights[n] % whole), n))
    for n in by_remainder[: total - sum(parts)]:
        parts[n] += 1
    return parts


def shares_beside(total: int, weights: Sequence[int], known: Sequence[int | None]) -> list[int]:
    """The same where some counts are `known`: these are kept, and the others (None) share the rest. Counts that
    cannot be right (more than `total`, or less with nobody to take the rest) only weigh."""
    unknown = [n for n, count in enumerate(known) if count is None]
    rest = total - sum(count for count in known if count is not None)
    if rest < 0 or (rest > 0 and not unknown):
        weights = [weight if count is None else count for weight, count in zip(weights, known, strict=True)]
        return shares(total, [max(1, weight) for weight in weights])
    parts = [count or 0 for count in known]
    if unknown:
        for n, part in zip(unknown, shares(rest, [max(1, weights[n]) for n in unknown]), strict=True):
            parts[n] = part
    return parts

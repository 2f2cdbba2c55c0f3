"""Percentiles and means, each with its interval. Values come in blocks of those that may depend on each other.
Pure Python: a million values take about a second."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from math import ceil, exp, floor, lgamma, log, log1p, sqrt
from operator import itemgetter
from typing import Any, Final

import msgspec

CONFIDENCE: Final = 0.95
PERCENTILES: Final = (50.0, 90.0, 95.0, 99.0, 99.9)
RESAMPLES: Final = 1000
MAX_BLOCKS: Final = 200
"""Blocks of a bootstrap. More cost time and do not improve the interval."""


class Bounds(msgspec.Struct, frozen=True):
    """Two ends, both inclusive."""

    low: float
    high: float


class Quantile(msgspec.Struct, frozen=True, kw_only=True):
    """One percentile. `interval` is None if the sample is too small; `needs` says how many values would do."""

    p: float
    value: float | None = None  # None: there are no values
    interval: Bounds | None = None  # for sampling and censoring together
    censoring: Bounds | None = None  # from censoring alone; None: the values are exact
    needs: int  # independent values without which there is no interval
    effective: int  # independent values that this sample is equivalent to at this percentile


class Stat(msgspec.Struct, frozen=True, kw_only=True):
    """The statistics of one measure, in its unit."""

    n: int
    mean: float | None = None
    mean_interval: Bounds | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    censored: float = 0.0  # share of the values that are known only as an interval
    quantiles: list[Quantile] = []

    def at(self, p: float) -> Quantile | None:
        return next((quantile for quantile in self.quantiles if quantile.p == p), None)


class Sample:
    """Values in the order of time, in clusters (one request's gaps are one) that stay together.

    A value whose time was an interval has a lower and an upper bound. Exact values share one list, which is sorted
    once.
    """

    __slots__ = ("highs", "lows", "sizes", "values")

    def __init__(self) -> None:
        self.values: list[float] = []
        self.lows = self.highs = self.values
        self.sizes: list[int] = []

    def add(
        self, values: Iterable[float], lows: Iterable[float] | None = None, highs: Iterable[float] | None = None
    ) -> None:
        """One cluster. Without bounds its values are exact."""
        before = len(self.values)
        if (lows is not None or highs is not None) and self.lows is self.values:
            self.lows, self.highs = self.values[:], self.values[:]
        cluster = list(values)
        self.values += cluster
        if self.lows is not self.values:
            self.lows += cluster if lows is None else lows
            self.highs += cluster if highs is None else highs
            if not len(self.lows) == len(self.highs) == len(self.values):
                raise ValueError("a cluster needs as many bounds as values")
        self.sizes.append(len(self.values) - before)

    @property
    def exact(self) -> bool:
        return self.lows is self.values

    def __len__(self) -> int:
        return len(self.values)


# Order statistics


@lru_cache(maxsize=4096)
def low_rank(n: int, p: float, tail: float) -> int:
    """The largest rank r (from 1) with P(X_(r) > quantile p) <= tail, whatever the distribution; 0: there is none.

    X_(r) is above the quantile if at most r - 1 of n values are below it: an exact binomial tail, summed from
    its first term that is not negligible.
    """
    if n <= 0:
        return 0
    spread = sqrt(n * p * (1 - p))
    k = max(0, floor(n * p - 12 * spread) - 1)
    term = exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log1p(-p))
    odds = p / (1 - p)
    below = term
    while below <= tail and k < n:
        k += 1
        term *= odds * (n - k + 1) / k
        below += term
    return k


def ranks(n: int, p: float, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """Ranks (from 1) of the two values that enclose quantile `p` (0 to 1); None: the sample is too small.

    Distribution-free and exact for independent values (David & Nagaraja, Order Statistics, 7.1); at least
    `confidence`, with half of the remainder on each side.
    """
    tail = (1 - confidence) / 2
    low, high = low_rank(n, p, tail), n + 1 - low_rank(n, 1 - p, tail)
    return (low, high) if low >= 1 and high <= n else None


@lru_cache(maxsize=64)
def needed(p: float, confidence: float = CONFIDENCE) -> int:
    """How many independent values an interval of quantile `p` needs: p50 6, p90 36, p95 72, p99 368, p99.9
    3,688."""
    tail = (1 - confidence) / 2
    return ceil(log(tail) / log(max(p, 1 - p)) - 1e-9)


def interpolated(ordered: Sequence[float], p: float) -> float:
    """numpy's default (Hyndman & Fan 7), so the same number as in `vllm bench serve` for the same values."""
    place = (len(ordered) - 1) * p
    below = floor(place)
    if below + 1 >= len(ordered):
        return ordered[-1]
    return ordered[below] + (ordered[below + 1] - ordered[below]) * (place - below)


# Values that depend on each other


def into_blocks(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring clusters joined: (start, end) in the values. n clusters become about n^(2/3) blocks, each long
    enough for its neighbours to be nearly independent of it (Carlstein 1986); at most `MAX_BLOCKS`."""
    ends = [0, *accumulate(sizes)]
    n = len(sizes)
    blocks = min(n, MAX_BLOCKS, max(20, round(n ** (2 / 3))))
    cuts = [ends[n * index // blocks] for index in range(blocks + 1)] if n else []
    return [(start, end) for start, end in pairwise(cuts) if end > start]


def design_effect(counts: Sequence[int], hits: Sequence[int]) -> float:
    """How much dependence inside blocks inflates the variance of the share of hits; at least 1 (Kish 1965).

    A sample of n values equals n / effect independent ones: a stall that slows twenty requests is one event.
    """
    n, total, blocks = sum(counts), sum(hits), len(counts)
    if blocks < 2 or not 0 < total < n:
        return 1.0
    share = total / n
    squares = sum((hit - share * count) ** 2 for count, hit in zip(counts, hits, strict=True))
    return max(1.0, squares * blocks / (blocks - 1) / (n * share * (1 - share)))


def quantile(
    ordered: Sequence[float],
    p: float,
    *,
    lows: Sequence[float] | None = None,
    highs: Sequence[float] | None = None,
    blocks: Sequence[Sequence[float]] = (),
    confidence: float = CONFIDENCE,
) -> Quantile:
    """Percentile `p` (0 to 100) of sorted values, with the interval by order statistics.

    Each true value lies between its bounds, so the order statistics lie between theirs: the interval's low end is
    taken from `lows`, its high end from `highs` (sorted). `blocks` (each sorted) are the values again, in
    blocks that may depend on each other; the interval is widened by their design effect (Woodruff 1952).
    **The rule**: a percentile always has a value, but an interval only if both its ends are inside the sample.
    """
    n, q = len(ordered), p / 100
    needs = needed(q, confidence)
    if not n:
        return Quantile(p=p, needs=needs, effective=0)
    value = interpolated(ordered, q)
    counts = [len(block) for block in blocks]
    effect = design_effect(counts, [bisect_right(block, value) for block in blocks])
    effective = max(1, floor(n / effect))
    interval_ranks = ranks(effective, q, confidence)
    lows, highs = ordered if lows is None else lows, ordered if highs is None else highs
    inside = None
    if lows is not ordered or highs is not ordered:
        inside = Bounds(interpolated(lows, q), interpolated(highs, q))
    if interval_ranks is None:
        return Quantile(p=p, value=value, censoring=inside, needs=needs, effective=effective)
    low = max(1, floor(interval_ranks[0] * n / effective)) - 1
    high = min(n, ceil(interval_ranks[1] * n / effective)) - 1
    interval = Bounds(lows[low], highs[high])
    return Quantile(p=p, value=value, interval=interval, censoring=inside, needs=needs, effective=effective)


# Means


@lru_cache(maxsize=32)
def _draws(blocks: int, seed: int, resamples: int) -> list[Any]:
    """Which blocks each resample takes. Drawn once for each number of blocks."""
    # Not for secrets: a bootstrap has to be repeatable.
    source = random.Random(seed)  # noqa: S311
    everyone = range(blocks)
    return [itemgetter(*source.choices(everyone, k=blocks)) for _ in range(resamples)]


def bootstrap_means(
    sums: Sequence[float], counts: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[float]:
    """Means of resampled blocks, ascending. A block's sum and count stay together, so its inner dependence does
    too (block bootstrap, Carlstein 1986; for the ratio of two sums). Seeded: the same every time."""
    if len(sums) < 2:
        return []
    drawn = ((sum(take(sums)), sum(take(counts))) for take in _draws(len(sums), seed, resamples))
    return sorted(total / count for total, count in drawn if count)


def _ends(means: Sequence[float], confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    return interpolated(means, tail), interpolated(means, 1 - tail)


MIN_BLOCKS: Final = 10
"""With fewer blocks a bootstrap's interval is too narrow to be shown."""


def mean_interval(
    sample: Sample, spans: Sequence[tuple[int, int]], *, seed: int = 0, confidence: float = CONFIDENCE
) -> Bounds | None:
    if len(spans) < MIN_BLOCKS:
        return None
    counts = [float(end - start) for start, end in spans]
    ends = [
        _ends(bootstrap_means([sum(side[start:end]) for start, end in spans], counts, seed=seed), confidence)
        for side in ((sample.values,) if sample.exact else (sample.lows, sample.highs))
    ]
    return Bounds(ends[0][0], ends[-1][1])


def describe(sample: Sample, percentiles: Sequence[float] = PERCENTILES, *, seed: int = 0) -> Stat:
    """All statistics of a sample."""
    n = len(sample)
    if not n:
        return Stat(n=0, quantiles=[quantile((), p) for p in percentiles])
    spans = into_blocks(sample.sizes)
    blocks = [sorted(sample.values[start:end]) for start, end in spans]
    ordered = sorted(chain.from_iterable(blocks))  # sorted runs: merged, not sorted again
    lows, highs = (ordered, ordered) if sample.exact else (sorted(sample.lows), sorted(sample.highs))
    mean = sum(ordered) / n
    squares = sum((value - mean) ** 2 for value in ordered)
    censored = 0 if sample.exact else sum(low < high for low, high in zip(sample.lows, sample.highs, strict=True))
    return Stat(
        n=n,
        mean=mean,
        mean_interval=mean_interval(sample, spans, seed=seed),
        std=sqrt(squares / n),
        min=ordered[0],
        max=ordered[-1],
        censored=censored / n,
        quantiles=[quantile(ordered, p, lows=lows, highs=highs, blocks=blocks) for p in percentiles],
    )

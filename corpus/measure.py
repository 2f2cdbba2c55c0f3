"""Statistics of requests as composed or sent: duplicates, shared prefixes, arrivals, lengths."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import msgspec

_ENCODER = msgspec.json.Encoder(order="sorted")


def prompt_bytes(fields: dict[str, Any]) -> bytes:
    """The prompt as a prefix cache would meet it: the texts in order, each followed by its role."""
    if "messages" in fields:
        parts = []
        for message in fields["messages"]:
            content = message.get("content") or ""
            text = content.encode() if isinstance(content, str) else _ENCODER.encode(content)
            parts += [text, b"\x1e", str(message.get("role")).encode(), b"\x1f"]
        return b"".join(parts)
    value = fields.get("prompt", fields.get("input", ""))
    if "query" in fields:  # rerank: an engine reads the query before each document
        value = [fields["query"], fields.get("documents", [])]
    return value.encode() if isinstance(value, str) else _ENCODER.encode(value)


class Prefixes:
    """An infinite prefix cache of blocks of `size` bytes: a block hits if all up to its end was there before.

    As in vLLM, only full blocks are kept. Shares are of all bytes (or blocks), the last partial one included.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._used: dict[bytes, int] = {}
        self.blocks = self.hits = self.bytes = self.hit_bytes = self.requests = 0

    def add(self, prompt: bytes) -> int:
        """The number of blocks that hit."""
        running, hits = blake2b(digest_size=12), 0
        chain: list[bytes] = []
        for end in range(self._size, len(prompt) + 1, self._size):
            running.update(prompt[end - self._size : end])
            chain.append(running.copy().digest())
        for digest in chain:
            hits += digest in self._used
        for digest in chain:
            self._used[digest] = self._used.get(digest, 0) + 1
        self.requests += 1
        self.blocks += math.ceil(len(prompt) / self._size)
        self.bytes += len(prompt)
        self.hits += hits
        self.hit_bytes += hits * self._size
        return hits

    @property
    def block_share(self) -> float:
        return self.hits / self.blocks if self.blocks else 0.0

    @property
    def byte_share(self) -> float:
        return self.hit_bytes / self.bytes if self.bytes else 0.0

    def top_tenth(self) -> float:
        """Share of all reuse that the most used tenth of distinct blocks has."""
        reuse = sorted((uses - 1 for uses in self._used.values()), reverse=True)
        total = sum(reuse)
        return sum(reuse[: max(1, len(reuse) // 10)]) / total if total else 0.0

    def once(self) -> float:
        """Share of distinct blocks that were used once."""
        return sum(uses == 1 for uses in self._used.values()) / len(self._used) if self._used else 0.0


class Twins:
    """Which requests repeat an earlier one, byte for byte."""

    def __init__(self) -> None:
        self.times: Counter[bytes] = Counter()

    def add(self, fields: dict[str, Any], endpoint: str = "") -> None:
        self.times[blake2b(_ENCODER.encode([endpoint, fields]), digest_size=16).digest()] += 1

    @property
    def duplicate_share(self) -> float:
        total = self.times.total()
        return 1 - len(self.times) / total if total else 0.0


def quantile(ordered: Sequence[float], share: float) -> float:
    """The order statistic at ceil(share * n): a value that occurred, no interpolation."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def gap_cv(times: Sequence[float]) -> float:
    """Standard deviation over mean of the gaps between arrivals."""
    gaps = [b - a for a, b in pairwise(times)]
    mean = math.fsum(gaps) / len(gaps) if gaps else 0.0
    return math.sqrt(math.fsum((g - mean) ** 2 for g in gaps) / len(gaps)) / mean if mean else math.nan


def dispersion(times: Sequence[float], window: float) -> float:
    """Variance over mean of the counts in windows of `window` seconds; nan with fewer than ten windows."""
    counts = [0] * int((times[-1] if times else 0.0) / window)
    if len(counts) < 10:
        return math.nan
    for time in times:
        if (place := int(time / window)) < len(counts):
            counts[place] += 1
    mean = sum(counts) / len(counts)
    return sum((c - mean) ** 2 for c in counts) / len(counts) / mean if mean else math.nan


def zipf_exponent(repeats: Iterable[int]) -> float:
    """The exponent that makes these counts, most frequent first, likeliest (maximum likelihood, 0 to 4)."""
    counts = sorted(repeats, reverse=True)

    def likelihood(exponent: float) -> float:
        norm = math.log(math.fsum((rank + 1) ** -exponent for rank in range(len(counts))))
        return -math.fsum(c * (exponent * math.log(rank + 1) + norm) for rank, c in enumerate(counts))

    low, high = 0.0, 4.0
    for _ in range(60):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (a, high) if likelihood(a) < likelihood(b) else (low, b)
    return (low + high) / 2

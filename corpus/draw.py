"""Seeded random draws, the same on every machine and Python version."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Final, TypeVar

T = TypeVar("T")

NORMAL: Final = NormalDist()


class Draw:
    """Draws from one named stream. The same seed and names give the same draws.

    Only `random.random()` is used underneath: the standard library promises its sequence from version to
    version, and does not promise that of `choice`, `shuffle` or `gammavariate`.
    """

    __slots__ = ("unit",)

    unit: Callable[[], float]
    """Uniform in [0, 1)."""

    def __init__(self, seed: int, *names: object) -> None:
        text = "\x1f".join([str(seed), *map(str, names)])
        self.unit = random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")).random  # noqa: S311

    def below(self, n: int) -> int:
        return int(self.unit() * n)

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.unit() * len(items))]

    def shuffle(self, items: list[T]) -> None:
        for last in range(len(items) - 1, 0, -1):
            other = self.below(last + 1)
            items[last], items[other] = items[other], items[last]

    def normal(self) -> float:
        return NORMAL.inv_cdf(min(max(self.unit(), 1e-12), 1 - 1e-12))

    def exponential(self, mean: float) -> float:
        return -mean * math.log(1.0 - self.unit())

    def gamma(self, shape: float, mean: float) -> float:
        """Marsaglia and Tsang (2000); below shape 1 by their boost."""
        if shape < 1:
            return self.gamma(shape + 1, 1.0) * (shape + 1) / shape * mean * math.pow(1.0 - self.unit(), 1 / shape)
        d = shape - 1 / 3
        c = 1 / math.sqrt(9 * d)
        while True:
            x = self.normal()
            v = (1 + c * x) ** 3
            if v > 0 and math.log(1.0 - self.unit()) < 0.5 * x * x + d - d * v + d * math.log(v):
                return d * v * mean / shape

"""Lengths of prompts and answers: distributions of token counts, drawn at random or by quantile. Input and output
are drawn independently: in the published traces their logarithms hardly correlate (Azure 2023: 0.09 and -0.01)."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Final, Protocol

from corpus.draw import NORMAL, Draw

_GRID: Final = 2000


class Lengths(Protocol):
    def draw(self, chance: Draw) -> int:
        """Tokens, at least 1."""


@dataclass(frozen=True, slots=True)
class Fixed:
    tokens: int

    def draw(self, chance: Draw) -> int:
        return self.tokens


@dataclass(frozen=True, slots=True)
class Lognormal:
    """exp of a normal (mu, sigma), in tokens; `longest` cuts what no context window would take."""

    mu: float
    sigma: float
    longest: int = 131_072

    def draw(self, chance: Draw) -> int:
        return min(max(1, round(math.exp(self.mu + self.sigma * chance.normal()))), self.longest)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Through published p50, p90 and p99, with the published mean.

    The logarithm is piecewise linear in the normal score, as a lognormal's is in one piece. What lies below the
    median is as spread as the mean asks; above p99 the last slope goes on, at most to `longest`.
    """

    p50: float
    p90: float
    p99: float
    mean: float
    longest: int
    low: float = field(init=False)

    def __post_init__(self) -> None:
        scores = [NORMAL.inv_cdf((i + 0.5) / _GRID) for i in range(_GRID)]
        below = [score for score in scores if score < 0]
        above = [max(1.0, self.at(score)) for score in scores[len(below) :]]
        median = math.log(self.p50)
        low, high = 0.0, 8.0  # a greater spread below the median means a smaller mean
        for _ in range(50):
            middle = (low + high) / 2
            object.__setattr__(self, "low", middle)
            least = [max(1.0, math.exp(median + middle * score)) for score in below]
            if math.fsum(least + above) / _GRID > self.mean:
                low = middle
            else:
                high = middle

    def at(self, score: float) -> float:
        scores = (0.0, NORMAL.inv_cdf(0.9), NORMAL.inv_cdf(0.99))
        logs = (math.log(self.p50), math.log(self.p90), math.log(self.p99))
        if score < 0:
            return math.exp(logs[0] + self.low * score)
        left = min(bisect_right(scores, score) - 1, 1)
        slope = (logs[left + 1] - logs[left]) / (scores[left + 1] - scores[left])
        return min(math.exp(logs[left] + slope * (score - scores[left])), self.longest)

    def draw(self, chance: Draw) -> int:
        return max(1, round(self.at(chance.normal())))


def parse_lengths(text: str) -> Lengths:
    """`512`, `lognormal:6.63,0.99` or `quantiles:P50,P90,P99,MEAN`. Raises ValueError, saying what is right."""
    right = f"lengths must be a number, lognormal:MU,SIGMA or quantiles:P50,P90,P99,MEAN; got {text!r}"
    name, _, rest = text.rpartition(":")
    try:
        numbers = [float(part) for part in rest.split(",")]
    except ValueError:
        raise ValueError(right) from None
    if not all(map(math.isfinite, numbers)):
        raise ValueError(right)
    match name, numbers:
        case "", [tokens] if 1 <= tokens <= 10_000_000 and tokens == int(tokens):
            return Fixed(int(tokens))
        case "lognormal", [mu, sigma] if 0 <= mu <= 14 and 0 <= sigma <= 4:
            return Lognormal(mu, sigma)
        case "quantiles", [p50, p90, p99, mean] if 1 <= p50 <= p90 <= p99 <= 1_000_000 and 1 <= mean <= p99:
            return Quantiles(p50, p90, p99, mean, longest=round(4 * p99))
    raise ValueError(right)

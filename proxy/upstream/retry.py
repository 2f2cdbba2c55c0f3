"""Retry rules: what is retried, how often, after which wait, and the retry budget that prevents storms. Must
not know clocks: time and randomness are arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

from proxy.config import CONNECT, DEFAULT_RETRY_CAUSES, RESET, RETRY_STATUSES
from proxy.wire import REPEATABLE

STATUSES: Final = frozenset(RETRY_STATUSES)

GONE: Final = frozenset({CONNECT, RESET})
"""Causes after which the engine works no more for the request: retried elsewhere, no work is done twice."""

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def repeatable(method: str, path: str) -> bool:
    """Whether a request that is passed through may be sent twice (RFC 9110 9.2.2). PUT and DELETE are idempotent
    too, but their second answer may differ."""
    return method in _IDEMPOTENT or (method == "POST" and path.partition("?")[0] in REPEATABLE)


@dataclass(frozen=True, slots=True)
class RetryRules:
    """Which failures are retried, and when. Times in seconds."""

    retries: int = 2  # besides the first attempt
    on: frozenset[str] = frozenset(DEFAULT_RETRY_CAUSES)
    backoff: float = 0.05  # upper bound of the first wait; doubled each time
    longest: float = 5.0  # of any wait; an engine's answer with a longer Retry-After is passed on

    def wait(self, retry: int, jitter: float, after: float | None = None) -> float | None:
        """Seconds before retry number `retry` (from 1) at an engine that has failed already; None: too long.

        Full jitter: `jitter` (0 to 1) times the doubled backoff, on top of `after`, the engine's Retry-After.
        """
        if after is not None and after > self.longest:
            return None
        most = min(self.longest, self.backoff * 2.0 ** min(retry - 1, 32))
        return min(self.longest, (after or 0.0) + jitter * most)


class Budget:
    """The retry budget, a token bucket: in any period at most `burst` retries plus `ratio` per request. That
    bounds the extra load however many requests fail at once."""

    __slots__ = ("_burst", "_ratio", "tokens")

    def __init__(self, ratio: float = 0.2, burst: float = 20.0) -> None:
        self._ratio = ratio
        self._burst = burst
        self.tokens = burst

    def __repr__(self) -> str:
        return f"<Budget {self.tokens:.1f} of {self._burst:g}>"

    def deposit(self) -> None:
        """Count the first attempt of a request."""
        tokens = self.tokens + self._ratio
        self.tokens = tokens if tokens < self._burst else self._burst

    def withdraw(self) -> bool:
        """Take one retry from the budget; False where none is left."""
        if self.tokens < 1.0 - 1e-9:  # rounding: five fifths are one
            return False
        self.tokens = max(0.0, self.tokens - 1.0)
        return True


def retry_after(headers: Iterable[tuple[str, str]], now: Callable[[], float]) -> float | None:
    """Seconds to wait by a response's headers: `retry-after-ms`, or `Retry-After` in seconds or as a date (RFC
    9110 10.2.3). None where it has neither, or nonsense. Header names are in lower case; `now` is wall-clock
    time."""
    fields = dict(headers)
    ms = _number(fields.get("retry-after-ms"))
    if ms is not None:
        return ms / 1000
    text = fields.get("retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now())
    except (ValueError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else -1.0
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None

"""Owns the rules of asking again: after what, how often, how long to wait, and the budget that prevents storms.
Must not know engines, flights or clocks: pure decisions, randomness and time given.
Called by journeys, when an attempt has failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

from proxy.config import CONNECT, DEFAULT_RETRY_CAUSES, RESET

STATUSES: Final = frozenset({429, 502, 503, 504})

GONE: Final = frozenset({CONNECT, RESET})
"""The engine does no work for this request any more: moved to another one, it costs the engines nothing twice."""

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_PURE: Final = frozenset(
    {
        "/tokenize", "/detokenize", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank", "/v2/embed",
        "/pooling", "/classify", "/generative_scoring", "/v1/embeddings",
    }
)  # fmt: skip
"""POSTs of vLLM that only compute."""


def repeatable(method: str, path: str) -> bool:
    """Whether a request that we only pass through may be sent twice (RFC 9110 9.2.2). PUT and DELETE are
    idempotent too, but what they answer the second time may differ."""
    return method in _IDEMPOTENT or (method == "POST" and path.partition("?")[0] in _PURE)


@dataclass(frozen=True, slots=True)
class RetryRules:
    """What is asked again, and when. Seconds."""

    retries: int = 2  # besides the first attempt
    on: frozenset[str] = frozenset(DEFAULT_RETRY_CAUSES)
    backoff: float = 0.05  # the first wait at most; doubled for each one after
    longest: float = 5.0  # of any wait; an engine that asks for more has its own answer passed on

    def wait(self, retry: int, jitter: float, after: float | None = None) -> float | None:
        """Seconds before the `retry`th (from 1) goes to an engine that failed already; None: too long.

        Full jitter (0 to 1, times the doubled backoff), on top of what the engine's `Retry-After` asks for.
        """
        if after is not None and after > self.longest:
            return None
        most = min(self.longest, self.backoff * 2.0 ** min(retry - 1, 32))
        return min(self.longest, (after or 0.0) + jitter * most)


class Budget:
    """A token bucket: over any time at most `burst` retries, and `ratio` for each request. However many clients
    fail together, the engines see that much more and no more."""

    __slots__ = ("_burst", "_ratio", "tokens")

    def __init__(self, ratio: float = 0.2, burst: float = 20.0) -> None:
        self._ratio = ratio
        self._burst = burst
        self.tokens = burst

    def __repr__(self) -> str:
        return f"<Budget {self.tokens:.1f} of {self._burst:g}>"

    def deposit(self) -> None:
        """A request was sent for the first time."""
        tokens = self.tokens + self._ratio
        self.tokens = tokens if tokens < self._burst else self._burst

    def withdraw(self) -> bool:
        """Whether there is a retry left; if so it is taken."""
        if self.tokens < 1.0 - 1e-9:  # five fifths are one
            return False
        self.tokens = max(0.0, self.tokens - 1.0)
        return True


def retry_after(headers: Iterable[tuple[str, str]], now: Callable[[], float]) -> float | None:
    """Seconds that an answer asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date (RFC 9110
    10.2.3). None where it asks for none, or for nonsense. Header names in lower case; `now` is wall-clock time."""
    found = dict(headers)
    ms = _number(found.get("retry-after-ms"))
    if ms is not None:
        return ms / 1000
    text = found.get("retry-after")
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

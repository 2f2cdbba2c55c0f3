"""Estimates from the recent past: how long a queued request will wait, and how long an answer takes.

Reads no clock: `now` is passed in. Times are seconds; a pool is the model whose engines a request waits for."""

from __future__ import annotations

from typing import Final

MAX_POOLS: Final = 256  # whose answer times are remembered
MIN_SAMPLES: Final = 8  # dispatches or answers; from fewer nothing is estimated
MAX_ANSWERS: Final = 64  # of one pool that are remembered


class WaitEstimator:
    """Dispatches from the queue, and answer times, by pool."""

    def __init__(self) -> None:
        self._dispatches: dict[str | None, list[float]] = {}  # times of the last ones
        self._answers: dict[str | None, list[float]] = {}  # seconds that the last ones took

    def record_dispatch(self, pool: str | None, now: float) -> None:
        """A queued request of this pool was dispatched."""
        times = self._dispatches.setdefault(pool, [])
        times.append(now)
        if len(times) > 4 * MIN_SAMPLES:
            del times[: len(times) - 4 * MIN_SAMPLES]

    def record_answer(self, pool: str | None, seconds: float) -> None:
        """An answer of this pool took so long, from its dispatch to its end."""
        if pool not in self._answers and len(self._answers) >= MAX_POOLS:
            self._answers.clear()
        times = self._answers.setdefault(pool, [])
        times.append(seconds)
        if len(times) > MAX_ANSWERS:
            del times[0]

    def interval(self, pool: str | None, now: float) -> float:
        """Seconds between dispatches of this pool; 0 where there were too few."""
        times = self._dispatches.get(pool, ())
        return (now - times[0]) / len(times) if len(times) >= MIN_SAMPLES else 0.0

    def answer_time(self, pool: str | None, quantile: float) -> float:
        """This quantile of the last answer times, in seconds; 0 where there were too few."""
        times = self._answers.get(pool, ())
        return sorted(times)[int(len(times) * quantile)] if len(times) >= MIN_SAMPLES else 0.0

    def forget_dispatches(self) -> None:
        """The queue is empty: the pace of before says nothing of the next queue."""
        self._dispatches.clear()

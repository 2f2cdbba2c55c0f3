"""A simulated queue (M/D/1: Poisson arrivals, one server, constant service time) that gets the same arrivals as
the measured server. Its exact law is known, so the luck of a stage's arrivals can be subtracted from what was
measured."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from math import exp, floor
from typing import Final

MOST_WAITING: Final = 400
"""Requests in the queue up to which its distribution is computed; a limit beyond it has no use as a control."""


def waits(due: Sequence[float], service: float) -> list[float]:
    """Seconds that each arrival waits in a queue that is empty at first (Lindley's recursion)."""
    work, last = 0.0, due[0] if due else 0.0
    result = []
    for at in due:
        work = max(work - (at - last), 0.0)
        last = at
        result.append(work)
        work += service
    return result


@lru_cache(maxsize=512)
def _at_most(load: float, most: int) -> tuple[float, ...]:
    """P(at most n requests in the system) for n from 0 to `most`, by Ramaswami's recursion (1988), which adds
    positive terms only and is therefore stable."""
    arrivals = [exp(-load)]
    for n in range(1, most + 2):
        arrivals.append(arrivals[-1] * load / n)
    rest = 1 - arrivals[0]
    above = [1.0]  # P(at least n arrivals during a service)
    for n in range(1, most + 2):
        above.append(max(rest, 0.0))
        rest -= arrivals[n]
    chances = [1 - load]
    for n in range(1, most + 1):
        total = chances[0] * above[n] + sum(chances[j] * above[n + 1 - j] for j in range(1, n))
        chances.append(total / arrivals[0])
    return tuple(accumulate(chances))


@lru_cache(maxsize=8192)
def tail(load: float, limit: float) -> float:
    """P(wait > `limit`), the limit in service times and the load below 1 (Franx, OR Letters 29, 2001); 1 from a
    load of 1 on, where the queue grows for ever."""
    if load >= 1:
        return 1.0
    steps = floor(limit) + 1
    if steps > MOST_WAITING:
        return 0.0
    known = _at_most(load, steps)
    left = load * (steps - limit)
    term, total = exp(-left), 0.0
    for j in range(steps):
        total += known[steps - j] * term
        term *= left / (j + 1)
    return max(1 - total, 0.0)

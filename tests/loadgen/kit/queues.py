"""Servers made of arithmetic, for searches in virtual time: arrival times in, each request's wait out. And a
driver that feeds a search with them."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import inf

from loadgen.analysis import Found, Plan, Search, Stage

Server = Callable[[Sequence[float]], list[float]]
"""The seconds that each arrival waits until it is served."""


def places(count: int, service: float) -> Server:
    """M/D/c: so many places, each response takes as long, first come first served."""

    def waits(arrivals: Sequence[float]) -> list[float]:
        free = [0.0] * count
        waited = []
        for at in arrivals:
            start = max(at, heapq.heappop(free))
            heapq.heappush(free, start + service)
            waited.append(start - at)
        return waited

    return waits


def bucket(rate: float, burst: int) -> Server:
    """A token bucket: a request without a token waits for the next one."""

    def waits(arrivals: Sequence[float]) -> list[float]:
        tokens, last, waited = float(burst), 0.0, []
        for at in arrivals:
            tokens = min(float(burst), tokens + (at - last) * rate) - 1
            last = at
            waited.append(max(0.0, -tokens / rate))
        return waited

    return waits


def refusing(rate: float, burst: int) -> Server:
    """A token bucket that refuses a request without a token. Its tokens are those that the last stage left."""
    tokens = float(burst)

    def waits(arrivals: Sequence[float]) -> list[float]:
        nonlocal tokens
        last, waited = 0.0, []
        for at in arrivals:
            tokens = min(float(burst), tokens + (at - last) * rate)
            last = at
            good = tokens >= 1
            tokens -= good
            waited.append(0.0 if good else inf)
        return waited

    return waits


def some_slow(server: Server, share: float, seconds: float) -> Server:
    """This share of its requests, drawn, waits so long in addition."""
    rng = random.Random(7)

    def waits(arrivals: Sequence[float]) -> list[float]:
        return [wait + (seconds if rng.random() < share else 0.0) for wait in server(arrivals)]

    return waits


def batches(period: float, size: int) -> Server:
    """Every period it serves at most so many of those that wait."""

    def waits(arrivals: Sequence[float]) -> list[float]:
        waited: list[float] = []
        tick = 0
        while len(waited) < len(arrivals):
            tick += 1
            for _ in range(size):
                if len(waited) == len(arrivals) or arrivals[len(waited)] > tick * period:
                    break
                waited.append(tick * period - arrivals[len(waited)])
        return waited

    return waits


def sharing(service: float, speed: float) -> Server:
    """Processor sharing: all requests in it are served at once, together at this speed, each at most at 1. What it
    gives is the time until a request has been served."""

    def times(arrivals: Sequence[float]) -> list[float]:
        done = [0.0] * len(arrivals)
        inside: list[tuple[float, int]] = []  # virtual time at which each is served
        now = virtual = 0.0
        place = 0
        while place < len(arrivals) or inside:
            each = min(1.0, speed / len(inside)) if inside else 1.0
            ends = now + (inside[0][0] - virtual) / each if inside else float("inf")
            if place < len(arrivals) and arrivals[place] <= ends:
                virtual += each * (arrivals[place] - now)
                now = arrivals[place]
                heapq.heappush(inside, (virtual + service, place))
                place += 1
            else:
                virtual, number = heapq.heappop(inside)
                now = ends
                done[number] = now - arrivals[number]
        return done

    return times


def run_stage(plan: Plan, server: Server, limit: float, base: float, rng: random.Random) -> Stage:
    """A stage of Poisson arrivals. A request waits, then takes `base` seconds; together they may take `base` and
    `limit`."""
    arrivals = list(accumulate(rng.expovariate(plan.load) for _ in range(plan.requests)))
    times = [wait + base for wait in server(arrivals)]
    allowed = limit + base
    ends = [at + time for at, time in zip(arrivals, times, strict=True)]
    return Stage(
        plan.load,
        arrivals,
        [time / allowed for time in times],
        seconds=max(end for end in ends if end < inf),
        missed={"ttft": sum(time > allowed for time in times)},
        overlap=plan.load * sum(time for time in times if time < inf) / len(times),
        ends=ends,
        failures={"status": times.count(inf)} if inf in times else {},
    )


def search_rate(
    server: Server,
    limit: float,
    *,
    start: float,
    seed: int,
    top: float = 1e6,
    seconds: float = 1200.0,
    base: float = 0.001,
    attainment: float = 0.95,
) -> Found:
    search = Search(attainment=attainment, precision=0.02, start=start, top=top, seconds=seconds, least=2.0)
    rng = random.Random(seed)
    while (plan := search.next()) is not None:
        assert len(search.stages) < 200, "it does not end"
        search.add(run_stage(plan, server, limit, base, rng))
    return search.found()

"""Servers in virtual time: events instead of sleeping, so that a search of ten minutes takes a second. Each gives
the responses to arrivals that are not known beforehand, so users can drive it as well as a rate."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Final, NamedTuple, Protocol

TOKENS: Final = 11
"""Of a response; between the first and the last there are ten gaps."""


class Done(NamedTuple):
    """A response: its request's number, the time of its first token (infinite: it failed) and that of its last."""

    number: int
    first: float
    end: float


class Server(Protocol):
    """`due`: when `step` has something to do. Requests arrive in the order of time, none later than `due`."""

    due: float

    def arrive(self, at: float, number: int) -> None: ...

    def step(self) -> list[Done]: ...

    def cancel(self, at: float) -> None:
        """All requests in it are gone."""


Draw = Callable[[], float]
"""A service time in seconds, from the server's own random numbers."""


def constant(seconds: float) -> Callable[[random.Random], Draw]:
    return lambda rng: lambda: seconds


def exponential(seconds: float) -> Callable[[random.Random], Draw]:
    return lambda rng: lambda: rng.expovariate(1 / seconds)


def lognormal(seconds: float, variation: float) -> Callable[[random.Random], Draw]:
    """With this mean and coefficient of variation."""
    square = math.log1p(variation**2)
    return lambda rng: lambda: rng.lognormvariate(math.log(seconds) - square / 2, square**0.5)


class Immediate:
    """A server whose response to a request is known when the request arrives."""

    def __init__(self) -> None:
        self.due = inf
        self._inside: list[tuple[float, int, float]] = []  # end, number, first

    def answer(self, at: float) -> tuple[float, float]:
        """(first, end)."""
        raise NotImplementedError

    def arrive(self, at: float, number: int) -> None:
        first, end = self.answer(at)
        heappush(self._inside, (end, number, first))
        self.due = self._inside[0][0]

    def step(self) -> list[Done]:
        end, number, first = heappop(self._inside)
        self.due = self._inside[0][0] if self._inside else inf
        return [Done(number, first, end)]

    def cancel(self, at: float) -> None:
        self._inside.clear()
        self.due = inf


class Places(Immediate):
    """M/G/k, first come first served: the first token comes when a place is free, the last one after the service.

    `slow`: the share of requests whose first token comes a second later, whatever the load. `cold`: until this
    time all of them do. `degraded`: in this interval a service takes four times as long.
    """

    def __init__(
        self,
        rng: random.Random,
        count: int,
        service: Draw,
        *,
        slow: float = 0.0,
        cold: float = 0.0,
        degraded: tuple[float, float] = (inf, inf),
    ) -> None:
        super().__init__()
        self._rng = rng
        self._free = [0.0] * count
        self._service = service
        self._slow, self._cold, self._degraded = slow, cold, degraded

    def answer(self, at: float) -> tuple[float, float]:
        start = max(at, heappop(self._free))
        begin, until = self._degraded
        end = start + self._service() * (4.0 if begin <= start < until else 1.0)
        heappush(self._free, end)
        late = start < self._cold or (self._slow > 0 and self._rng.random() < self._slow)
        return start + late, end + late

    def cancel(self, at: float) -> None:
        super().cancel(at)
        self._free = [min(free, at) for free in self._free]
        heapify(self._free)


class Refusing(Immediate):
    """A token bucket of so many tokens, filled at this rate; a request without a token fails at once."""

    def __init__(self, rate: float, most: int) -> None:
        super().__init__()
        self._rate, self._most, self._tokens, self._last = rate, most, float(most), 0.0

    def answer(self, at: float) -> tuple[float, float]:
        self._tokens = min(float(self._most), self._tokens + (at - self._last) * self._rate)
        self._last = at
        if self._tokens < 1:
            return inf, at + 0.001
        self._tokens -= 1
        return at + 0.01, at + 0.02


class Erlang(Immediate):
    """M/G/k/k: without a free place a request fails at once (Erlang's loss system)."""

    def __init__(self, count: int, service: Draw) -> None:
        super().__init__()
        self._count, self._service = count, service

    def answer(self, at: float) -> tuple[float, float]:
        if sum(end > at for end, _, first in self._inside if first < inf) >= self._count:
            return inf, at + 1e-4
        return at + 0.01, at + self._service()


class Cliff(Immediate):
    """Each request is in it for so long; one that comes while so many are in it waits a second longer."""

    def __init__(self, count: int, seconds: float) -> None:
        super().__init__()
        self._count, self._seconds = count, seconds
        self._present: deque[float] = deque()

    def answer(self, at: float) -> tuple[float, float]:
        while self._present and self._present[0] <= at:
            self._present.popleft()
        late = len(self._present) >= self._count
        self._present.append(at + self._seconds)
        return at + late, at + late + self._seconds


class Ticks(Immediate):
    """Every period it serves at most so many of those that wait."""

    def __init__(self, period: float, size: int) -> None:
        super().__init__()
        self._period, self._size, self._tick, self._taken = period, size, 0, 0

    def answer(self, at: float) -> tuple[float, float]:
        tick = math.floor(at / self._period) + 1
        if tick > self._tick:
            self._tick, self._taken = tick, 0
        elif self._taken == self._size:
            self._tick, self._taken = self._tick + 1, 0
        self._taken += 1
        served = self._tick * self._period
        return served, served + 0.001

    def cancel(self, at: float) -> None:
        super().cancel(at)
        self._tick, self._taken = 0, 0


class Shared:
    """Processor sharing: all requests in it are served at once, together `speed` times as fast as one alone, whose
    service takes what is drawn. The time per token grows with the number of requests in it."""

    def __init__(self, speed: float, service: Draw) -> None:
        self.due = inf
        self._speed, self._service = speed, service
        self._inside: list[tuple[float, int, float]] = []  # virtual end, number, arrival
        self._now = self._virtual = 0.0

    def _advance(self, at: float) -> None:
        if self._inside:
            self._virtual += (at - self._now) * min(1.0, self._speed / len(self._inside))
        self._now = at

    def _plan(self) -> None:
        if not self._inside:
            self.due = inf
            return
        each = min(1.0, self._speed / len(self._inside))
        self.due = self._now + max(self._inside[0][0] - self._virtual, 0.0) / each

    def arrive(self, at: float, number: int) -> None:
        self._advance(at)
        heappush(self._inside, (self._virtual + self._service(), number, at))
        self._plan()

    def step(self) -> list[Done]:
        self._advance(self.due)
        _, number, came = heappop(self._inside)
        end = self._now
        self._plan()
        return [Done(number, came + (end - came) / TOKENS, end)]

    def cancel(self, at: float) -> None:
        self._inside.clear()
        self.due = inf


class Batching:
    """Continuous batching: a step gives each running request a token and takes `base` seconds and `each` more for
    each of them; requests join between steps, at most `most` run, and a step that some join takes their prefills
    longer."""

    def __init__(self, base: float, each: float, most: int, prefill: Draw) -> None:
        self.due = inf
        self._base, self._each, self._most, self._prefill = base, each, most, prefill
        self._waiting: deque[int] = deque()
        self._running: deque[tuple[int, int]] = (
            deque()
        )  # the number of the step that gives the last token, request
        self._firsts: dict[int, float] = {}
        self._joined: list[int] = []
        self._step = 0

    def arrive(self, at: float, number: int) -> None:
        self._waiting.append(number)
        if not self._running:
            self._begin(at)

    def _begin(self, at: float) -> None:
        self._step += 1
        self._joined.clear()
        seconds = self._base
        while self._waiting and len(self._running) < self._most:
            number = self._waiting.popleft()
            self._joined.append(number)
            self._running.append((self._step + TOKENS - 1, number))
            seconds += self._prefill()
        self.due = at + seconds + self._each * len(self._running) if self._running else inf

    def step(self) -> list[Done]:
        now, done = self.due, []
        for number in self._joined:
            self._firsts[number] = now
        while self._running and self._running[0][0] <= self._step:
            number = self._running.popleft()[1]
            done.append(Done(number, self._firsts.pop(number), now))
        self._begin(now)
        return done

    def cancel(self, at: float) -> None:
        self._waiting.clear()
        self._running.clear()
        self._firsts.clear()
        self._joined.clear()
        self.due = inf


class Kind(NamedTuple):
    """A server with its objectives in seconds, and what a search of it should say: the limit, or a state."""

    name: str
    make: Callable[[random.Random], Server]
    slos: dict[str, float]
    truth: float | str
    start: float = 3.0
    users: bool = False
    attainment: float = 0.95
    top: float = 10_000.0


def places(
    count: int,
    service: Callable[[random.Random], Draw],
    *,
    slow: float = 0.0,
    cold: float = 0.0,
    degraded: tuple[float, float] = (inf, inf),
) -> Callable[[random.Random], Server]:
    return lambda rng: Places(rng, count, service(rng), slow=slow, cold=cold, degraded=degraded)


def batching(
    base: float, each: float, most: int, prefill: Callable[[random.Random], Draw]
) -> Callable[[random.Random], Server]:
    return lambda rng: Batching(base, each, most, prefill(rng))


def shared(speed: float, service: Callable[[random.Random], Draw]) -> Callable[[random.Random], Server]:
    return lambda rng: Shared(speed, service(rng))


KINDS: Final = (
    Kind("M/D/1", places(1, constant(0.05)), {"ttft": 0.15}, 12.337),
    Kind("M/D/4", places(4, constant(0.1)), {"ttft": 0.1}, 28.95),
    Kind("M/D/16", places(16, constant(0.3)), {"ttft": 0.2}, 47.283, 10),
    Kind("M/M/1", places(1, exponential(0.02)), {"ttft": 0.2}, 36.583),
    Kind("M/M/4", places(4, exponential(0.1)), {"ttft": 0.2}, 28.871),
    Kind("M/M/32", places(32, exponential(0.5)), {"ttft": 0.5}, 59.15, 10),
    Kind("lognormal service, 8 places", places(8, lognormal(0.2, 0.7)), {"ttft": 0.3}, 33.954),
    Kind("shared processor, sojourn", shared(6, constant(0.2)), {"e2el": 0.32}, 19.23),
    Kind("shared processor, time per token", shared(8, constant(0.3)), {"tpot": 0.06}, 21.245),
    Kind("prefill that blocks", batching(0.01, 0.0005, 64, lognormal(0.02, 0.5)), {"ttft": 0.15}, 22.225),
    Kind("batch, time per token", batching(0.02, 0.002, 64, constant(0.001)), {"tpot": 0.05}, 18.24, 10),
    Kind("batch of at most 8", batching(0.02, 0.001, 8, constant(0.002)), {"ttft": 0.4, "tpot": 0.06}, 21.29),
    Kind("slow for 5 s at 60 s", places(4, constant(0.1), degraded=(60, 65)), {"ttft": 0.1}, 28.95),
    Kind("cold for 10 s", places(1, constant(0.05), cold=10), {"ttft": 0.15}, 12.337),
    Kind("limit far below the first rate", places(2, constant(0.1)), {"ttft": 0.2}, 14.133, 400),
    Kind("limit far above the first rate", places(8, constant(0.02)), {"ttft": 0.03}, 356.8, 2),
    Kind("3 % slow at any load", places(4, constant(0.1), slow=0.03), {"ttft": 0.4}, 35.6),
    Kind("token bucket of 100, then 429", lambda rng: Refusing(20, 100), {"ttft": 0.5}, 20 / 0.95),
    Kind("Erlang loss, 20 places", lambda rng: Erlang(20, exponential(0.4)(rng)), {"ttft": 0.5}, 38.123),
    Kind("cliff at 12", lambda rng: Cliff(12, 0.5), {"ttft": 0.5}, 13.848),
    Kind("8 every 100 ms", lambda rng: Ticks(0.1, 8), {"ttft": 0.15}, 66.65),
    Kind("99 % of 8 places", places(8, constant(0.25)), {"ttft": 0.25}, 24.75, 3, False, 0.99),
    Kind("only overload exceeds it", places(16, constant(0.3)), {"ttft": 2.0}, 52.6, 10),
    Kind("without a limit", places(100_000, constant(0.02)), {"ttft": 0.1}, "no limit", 20, False, 0.95, 40.0),
    Kind("never met", places(4, constant(0.1), slow=1.0), {"ttft": 0.5}, "not met"),
    Kind("users: 12 places", places(12, constant(0.5)), {"ttft": 1.02}, 36, 1, True),
    Kind("users: shared processor", shared(8, constant(0.3)), {"tpot": 0.06}, 17, 1, True),
    Kind("users: batch", batching(0.02, 0.001, 64, constant(0.0)), {"tpot": 0.0505}, 30, 1, True),
    Kind("users: lognormal, 4 places", places(4, lognormal(0.3, 0.7)), {"ttft": 0.9}, 12, 1, True),
)  # fmt: skip

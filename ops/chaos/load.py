"""The load: many clients that send, compare and sometimes leave, with the result of each request. Which requests a
fault may have affected is decided afterwards, from times."""

from __future__ import annotations

import asyncio
import random
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

from ops.chaos.client import Client
from ops.chaos.stage import REMOVED, Fault
from ops.chaos.verdict import USAGE, Verdict, judge
from ops.chaos.wire import Ask

LEAVE: Final = 0.06  # share of requests whose client disconnects
NAMED: Final = 0.3  # share of requests with an x-request-id
RECENT: Final = 20  # prompts that many clients send, a new one every half second
GRACE: Final = 8.0  # seconds after a fault in which the gateway may still consider an engine down
LOOK_BACK: Final = 30.0  # seconds before a request in which a shared answer may have started


@dataclass(slots=True)
class Result:
    """One request."""

    ask: Ask
    verdict: Verdict
    start: float
    end: float
    cut: bool = False  # the connection was cut
    touched: bool = False  # a fault may have affected it


class Mix:
    """The mix of requests: common prompts, sampled common prompts, and unique ones."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._pick = random.Random(seed)  # noqa: S311 - a workload, not a secret
        self.recent: deque[Ask] = deque(maxlen=20)

    def _common(self, kind: str) -> random.Random:
        """A random source that is the same for everyone at about this time."""
        age = int(self._pick.random() ** 2 * RECENT)
        mark = f"{self._seed} {kind} {int(time.monotonic() * 2) - age}"
        return random.Random(blake2b(mark.encode()).digest())  # noqa: S311 - a workload, not a secret

    def draw(self) -> Ask:
        pick, kind = self._pick, self._pick.random()
        own = pick.random() < 0.4
        source = pick if own else self._common("sampled" if kind > 0.8 else f"{kind < 0.12} {kind < 0.24}")
        if 0.1 < kind < 0.12:
            return Ask(source.getrandbits(64), "tokenize", stream=False, tokens=12, gap_ms=0)
        tag = source.getrandbits(64)
        if kind < 0.12:
            ask = Ask(tag, "embeddings", stream=False, gap_ms=5, texts=source.randint(1, 6))
        else:
            ask = Ask(
                tag,
                "completions" if kind < 0.24 else "chat",
                n=source.choice((1, 1, 1, 2, 3)),
                sampled=kind > 0.8,
                tokens=source.choice((1, 4, 12, 40)),
                gap_ms=source.choice((0, 2, 10, 20)),
                stream=pick.random() < 0.6,
            )
            ask = replace(ask, usage=ask.stream and pick.random() < 0.4)
        if not own and not ask.sampled:
            self.recent.append(ask)
        if pick.random() < NAMED:
            ask = replace(ask, request_id=f"client-{pick.getrandbits(64):016x}")
        return ask


class Load:
    """Clients in a closed loop."""

    def __init__(self, host: str, port: int, seed: int, bound: float) -> None:
        self.results: list[Result] = []
        self.mix = Mix(seed)
        self._where = (host, port)
        self._bound = bound
        self._pick = random.Random(seed + 1)  # noqa: S311 - a workload, not a secret
        self._told: dict[str, int] = {}  # sample -> index of the request that received it

    async def run(self, clients: int, until: float, least: int = 0, last: float = 0.0) -> None:
        """Run until `until` (time.monotonic()), then up to `last` while there are fewer than `least` results, and
        until the last requests have ended."""
        await asyncio.gather(*[self._client(until, least, last) for _ in range(clients)])

    async def _client(self, until: float, least: int, last: float) -> None:
        client = Client(*self._where, bound=self._bound)
        pick = self._pick
        await asyncio.sleep(pick.uniform(0, 0.3))
        while time.monotonic() < (until if len(self.results) >= least else max(until, last)):
            leave = pick.uniform(0.0, 0.5) if pick.random() < LEAVE else None
            result = await self._ask(client, self.mix.draw(), leave)
            await asyncio.sleep(0.3 if result.verdict.kind == "error" else pick.uniform(0.05, 0.35))
        client.close()

    async def wave(self, count: int, clients: int) -> list[Result]:
        """`count` requests; no client disconnects."""
        return await self.asks([self.mix.draw() for _ in range(count)], clients)

    async def asks(self, asks: list[Ask], clients: int = 8) -> list[Result]:
        """Send these requests; no client disconnects."""
        left = list(asks)
        found: list[Result] = []

        async def one() -> None:
            client = Client(*self._where, bound=self._bound)
            while left:
                found.append(await self._ask(client, left.pop(), None))
            client.close()

        await asyncio.gather(*[one() for _ in range(clients)])
        return found

    async def _ask(self, client: Client, ask: Ask, leave: float | None) -> Result:
        start = time.monotonic()
        answer = await client.ask(ask, leave_after=leave, reset=leave is not None and self._pick.random() < 0.5)
        verdict = self._new(judge(ask, answer))
        result = Result(ask, verdict, start, time.monotonic(), answer.end == "cut")
        self.results.append(result)
        return result

    def _new(self, verdict: Verdict) -> Verdict:
        """The verdict; wrong if a sample in it was sent to another request before."""
        here = len(self.results)
        twice = len(set(verdict.nonces)) < len(verdict.nonces)
        for nonce in verdict.nonces:
            twice |= self._told.setdefault(nonce, here) != here
        return Verdict("wrong", "a sample told twice", verdict.nonces) if twice else verdict


def assess(
    results: list[Result], faults: list[Fault], told: list[tuple[float, int, int, str]], engines: int, bound: float
) -> None:
    """Mark results that a fault may have affected, excuse wrong usage sent by an engine and time in which the
    gateway was stopped, and judge a cut without a fault as wrong. `told`: the engines' logs of generations."""
    served: dict[int, list[tuple[float, int, str]]] = {}
    for at, number, tag, lie in told:
        served.setdefault(tag, []).append((at, number, lie))
    odd = {tag for _, _, tag, lie in told if lie == "usage odd"}
    lies = Timeline([Fault(f"engine {number}", lie, at, at) for at, number, _, lie in told if lie])
    timeline = Timeline(faults)
    for result in results:
        verdict = result.verdict
        if verdict.kind == "wrong" and verdict.why.startswith(USAGE) and result.ask.tag in odd:
            result.verdict = Verdict("exact", "the engine's own usage", verdict.nonces)
        if verdict.kind == "hung" and result.end - result.start - _stopped(result, timeline) < bound:
            result.verdict = Verdict("left", "the gateway was stopped", verdict.nonces)
        result.touched = _touched(result, timeline, served.get(result.ask.tag, []), lies, engines)
        if result.cut and verdict.kind == "error" and not result.touched:
            result.verdict = Verdict("wrong", "cut, and no fault had touched it", verdict.nonces)


class Timeline:
    """Faults indexed by time."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults = sorted(faults, key=lambda fault: fault.start)
        self._starts = [fault.start for fault in self._faults]
        self._longest = max((fault.end - fault.start for fault in faults if fault.end is not None), default=0.0)
        self._going_on = [fault for fault in faults if fault.end is None]

    def during(self, start: float, end: float) -> list[Fault]:
        """The faults that overlap this time span."""
        first, last = bisect_left(self._starts, start - self._longest), bisect_right(self._starts, end)
        ended = (fault for fault in self._faults[first:last] if fault.end is not None)
        return [fault for fault in (*ended, *self._going_on) if fault.overlaps(start, end)]


def _stopped(result: Result, faults: Timeline) -> float:
    """Seconds of the request in which the gateway was stopped, plus one to catch up each time."""
    return sum(
        min(result.end, (fault.end or result.end) + 1) - max(result.start, fault.start)
        for fault in faults.during(result.start, result.end)
        if fault.target == "gateway"
    )


def _touched(
    result: Result, faults: Timeline, served: list[tuple[float, int, str]], lies: Timeline, engines: int
) -> bool:
    start, end = result.start, result.end
    mine = [(number, lie) for at, number, lie in served if start - LOOK_BACK <= at <= end]
    if any(lie for _, lie in mine):
        return True
    suspects = {"redis", "gateway", *(f"engine {number}" for number, _ in mine)}
    now = [fault for fault in faults.during(start, end) if fault.kind != REMOVED]  # a removal cuts no stream
    if any(fault.target in suspects for fault in now):
        return True
    if mine or result.verdict.kind == "exact":
        return False
    if "no_backend" not in result.verdict.why and "queue" not in result.verdict.why:  # sent to an engine
        return bool(now)
    recent = {fault.target for line in (faults, lies) for fault in line.during(start - GRACE, end)}
    return sum(target.startswith("engine") for target in recent) == engines

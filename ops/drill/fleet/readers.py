"""The clients of the drill: many ask for the same prompts at different gateways, and some leave early."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

import aiohttp

from ops.drill.fleet.engine import MODEL
from ops.drill.fleet.stage import Member
from ops.drill.fleet.texts import prompt_of
from ops.drill.fleet.verdict import Answer

PATIENCE: Final = 60.0  # seconds without a byte after which an answer hangs
PAUSE: Final = 0.05  # seconds between two requests of a client
PROMPTS: Final = 8  # asked for at a time
TWINS: Final = (2, 14)  # requests for one prompt
TOKENS: Final = (5, 90)
LONG: Final = 1500  # tokens of a prompt that nobody reads to its end
MOST_READ: Final = 60  # events after which a client that leaves has left
_ALONE: Final = 'gateway_fleet_flights_total{what="alone"}'
_ERRORS: Final = (aiohttp.ClientError, ConnectionError, OSError)


async def ask(
    session: aiohttp.ClientSession, node: Member, answer: Answer, *, leave: int = 0, timed: bool = False
) -> Answer:
    """Send one request and read its answer; `leave`: events after which the client leaves, 0 for none. `timed`:
    keep the time of each event."""
    body: dict[str, object] = {"model": MODEL, "temperature": 0, "stream": answer.stream}
    body["messages"] = [{"role": "user", "content": answer.prompt}]
    if answer.usage_asked and answer.stream:
        body["stream_options"] = {"include_usage": True}
    answer.began = time.monotonic()
    url = f"{node.url}/v1/chat/completions"
    events = 0
    try:
        async with session.post(url, json=body) as response:
            answer.status = response.status
            answer.cache = response.headers.get("x-gateway-cache", "")
            if not answer.stream or response.status != 200:
                answer.body(await response.read())
                answer.end = "whole"
                return answer
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                answer.event(line[6:].rstrip())
                if timed:
                    answer.times.append(time.monotonic())
                events += 1
                if leave and events >= leave and not (answer.done or answer.error):
                    answer.end = "left"
                    response.close()
                    return answer
            answer.end = "whole"
    except TimeoutError:
        answer.end = "hung"
    except _ERRORS:
        answer.end = "cut" if answer.status else "refused"
    finally:
        answer.ended = time.monotonic()
        if answer.end == "open":
            answer.end = "left"  # the drill ends this client
    return answer


@dataclass
class _Prompt:
    text: str
    left: int
    long: bool


class Burst(NamedTuple):
    """Twins at all gateways at once: their prompt, and from when to when they were answered."""

    prompt: str
    began: float
    ended: float
    shares: bool = True  # all gateways shared generations before it
    alone: bool = False  # a gateway could not follow a leader meanwhile, as one whose engine's build is not known


class Readers:
    """Clients in a closed loop over all gateways. `answers` has all that have ended."""

    def __init__(self, nodes: list[Member], rng: Random, count: int, part: int) -> None:
        """`part`: of the drill; no two have a prompt in common."""
        self._nodes, self._rng, self._count = nodes, rng, count
        self._part, self._serial = part, 0
        self._prompts: list[_Prompt] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.answers: list[Answer] = []
        self.bursts: list[Burst] = []
        self._open: dict[int, Answer] = {}
        self._session: aiohttp.ClientSession | None = None

    def _session_of(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=PATIENCE, sock_read=PATIENCE)
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._session = aiohttp.ClientSession(timeout=timeout, connector=connector)
        return self._session

    def prompt(self, *, long: bool = False) -> str:
        """A new one."""
        self._serial += 1
        return prompt_of(f"p{self._part}x{self._serial}", LONG if long else self._rng.randint(*TOKENS))

    def _next(self) -> _Prompt:
        rng = self._rng
        while len(self._prompts) < PROMPTS:
            long = rng.random() < 0.08
            self._prompts.append(_Prompt(self.prompt(long=long), rng.randint(*TWINS), long))
        chosen = rng.choice(self._prompts)
        chosen.left -= 1
        if not chosen.left:
            self._prompts.remove(chosen)
        return chosen

    async def _one(self, node: Member, prompt: str, *, stream: bool, leave: int, usage: bool) -> None:
        answer = Answer(prompt, node.name, stream=stream, usage_asked=usage)
        self._open[id(answer)] = answer
        try:
            await ask(self._session_of(), node, answer, leave=leave)
        finally:
            del self._open[id(answer)]
            self.answers.append(answer)

    async def _client(self) -> None:
        rng = self._rng
        while True:
            chosen = self._next()
            leave = rng.randint(1, MOST_READ) if chosen.long or rng.random() < 0.15 else 0
            stream = chosen.long or rng.random() > 0.1
            usage = rng.random() < 0.5
            await self._one(rng.choice(self._nodes), chosen.text, stream=stream, leave=leave, usage=usage)
            await asyncio.sleep(PAUSE)

    async def together(self, each: int) -> None:
        """So many twins at every gateway at the same moment."""
        prompt = self.prompt()
        live, before = await self._figures("gateway_fleet_live"), await self._figures(_ALONE)
        began = time.monotonic()
        twins = (
            self._one(node, prompt, stream=True, leave=0, usage=False) for node in self._nodes for _ in range(each)
        )
        await asyncio.gather(*twins)
        ended = time.monotonic()
        self.bursts.append(Burst(prompt, began, ended, all(live), await self._figures(_ALONE) != before))

    async def _figures(self, name: str) -> list[float | None]:
        """A metric of each gateway."""
        return await asyncio.gather(*(node.figure(name) for node in self._nodes))

    def leaders(self) -> Counter[str]:
        """Fingerprints of the streams under way, with the number of their readers."""
        return Counter(answer.fingerprints[-1] for answer in self._open.values() if answer.fingerprints)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._client()) for _ in range(self._count)]

    async def leave(self) -> float:
        """All leave at once. Returns the time."""
        for task in self._tasks:
            task.cancel()
        left = time.monotonic()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        return left

    async def close(self) -> None:
        await self.leave()
        if self._session is not None:
            await self._session.close()

"""What a drill runs on: two engines, a Redis, gateways as real processes, clients, a Prometheus. All on loopback,
and all end with the stage."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp

from ops.drill.engine import Engine, engine
from ops.drill.process import Process, started
from ops.drill.prometheus import Prometheus, running
from proxy.embedded.redis import server_binary

GATEWAY_SECONDS: Final = 20.0  # to start, on a busy machine
REDIS_SECONDS: Final = 10.0
DISCOVERY_SECONDS: Final = 15.0  # Prometheus takes new targets every five seconds at most
PAUSE: Final = 0.01  # of a client after each answer, seconds: a refusal must not become a busy loop
_LISTENS: Final = re.compile(r"gateway at http://(\S+)")
_USUAL: Final = (
    *("--refresh-seconds", "0.2"),
    *("--load-seconds", "0.2"),
    *("--drain-timeout", "1"),
    *("--retries", "1"),
    *("--retry-backoff-ms", "1"),
    *("--rate-limit-rps", "1000000"),  # so that limits are shared by Redis, and refuse nobody
)


class Stage:
    """What faults act on."""

    def __init__(self, prometheus: Prometheus, engines: list[Engine], redis: Redis, files: Path) -> None:
        self.prometheus = prometheus
        self.engines = engines
        self.redis = redis
        self.files = files
        self._targets: set[str] = set()

    @asynccontextmanager
    async def gateway(
        self, *flags: str, files: int = 0, stdout: int | None = None, scraped: bool = True
    ) -> AsyncIterator[Process]:
        """A gateway before both engines, once it has been scraped: a rise is only seen from something.

        `files` bounds its descriptors. Later flags win. Not `scraped`: Prometheus knows its address already.
        """
        backends = [word for one in self.engines for word in ("--backend", one.url)]
        words = [
            sys.executable,
            "-m",
            "proxy",
            "--port",
            "0",
            *_USUAL,
            "--redis",
            self.redis.url,
            *backends,
            *flags,
        ]
        if files:
            words = ["/bin/sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *words]
        async with started(words, _LISTENS, GATEWAY_SECONDS, stdout=stdout) as process:
            if not scraped:
                yield process
                return
            self.scrape(process.address)
            try:
                up = f'up{{instance="{process.address}"}} == 1'
                await self.prometheus.until_data(up, seconds=DISCOVERY_SECONDS)
                yield process
            finally:
                self.forget(process.address)

    def scrape(self, address: str) -> None:
        """Have Prometheus look there too."""
        self._targets.add(address)
        self.prometheus.scrape(self._targets)

    def forget(self, address: str) -> None:
        """Have it look there no more."""
        self._targets.discard(address)
        self.prometheus.scrape(self._targets)

    def forget_all(self) -> None:
        """Have it look nowhere."""
        self.prometheus.scrape(())

    def remember(self) -> None:
        """Have it look where it did."""
        self.prometheus.scrape(self._targets)

    async def until_firing(self, *names: str, seconds: float) -> dict[str, dict[str, Any]]:
        """The alerts, once all of them fire. Raises TimeoutError, saying which do."""
        found: dict[str, dict[str, Any]] = {}
        states: dict[str, str] = {}
        try:
            async with asyncio.timeout(seconds):
                while not set(names) <= found.keys():
                    await asyncio.sleep(0.1)
                    for alert in await self.prometheus.alerts():
                        states[name := alert["labels"]["alertname"]] = alert["state"]
                        if alert["state"] == "firing":
                            found.setdefault(name, alert)
        except TimeoutError:
            raise TimeoutError(f"{sorted(set(names) - found.keys())} did not fire; there was {states}") from None
        return {name: found[name] for name in names}

    async def until_quiet(self, *names: str, seconds: float) -> None:
        """None of these alerts fires. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while await self.prometheus.firing() & set(names):  # noqa: ASYNC110 - a fact of another process
                await asyncio.sleep(0.1)


class Redis:
    """A redis-server on a Unix socket."""

    def __init__(self, url: str, child: asyncio.subprocess.Process) -> None:
        self.url = url
        self._child = child

    def freeze(self) -> None:
        """It answers no more, and refuses nothing: the worst that a Redis does."""
        self._child.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        self._child.send_signal(signal.SIGCONT)


@asynccontextmanager
async def _redis(folder: Path) -> AsyncIterator[Redis]:
    path = folder / "redis"
    words = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", str(folder)]
    child = await asyncio.create_subprocess_exec(
        str(server_binary()), *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            while not path.exists():  # noqa: ASYNC110 - a fact of another process
                await asyncio.sleep(0.02)
        yield Redis(f"unix://{path}", child)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


class Clients:
    """So many at a time, each asking again when it has its answer. `said` counts the statuses."""

    def __init__(self) -> None:
        self.said: Counter[str] = Counter()
        self.asked = 0
        self.same = False  # all ask the same prompt: hits and attached
        self.words = 1  # of padding in each prompt

    async def _ask(self, session: aiohttp.ClientSession, url: str) -> None:
        self.asked += 1
        text = "drill" if self.same else f"drill {os.getpid()} {id(self)} {self.asked}" + " word" * self.words
        body = {"model": "m1", "temperature": 0, "stream": True, "messages": [{"role": "user", "content": text}]}
        try:
            async with session.post(url, json=body) as response:
                await response.read()
                self.said[str(response.status)] += 1
        except aiohttp.ClientError as e:
            self.said[type(e).__name__] += 1

    async def _go_on(self, session: aiohttp.ClientSession, url: str) -> None:
        while True:
            await self._ask(session, url)
            await asyncio.sleep(PAUSE)


@asynccontextmanager
async def clients(address: str, count: int, *, same: bool = False, words: int = 1) -> AsyncIterator[Clients]:
    """That many, for as long as the block lasts."""
    them = Clients()
    them.same, them.words = same, words
    url = f"http://{address}/v1/chat/completions"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        tasks = [asyncio.create_task(them._go_on(session, url)) for _ in range(count)]
        try:
            yield them
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def stage(prometheus: str, folder: Path, factor: float) -> AsyncIterator[Stage]:
    """All of it but the gateways. `prometheus` is the program's path; `folder` is empty, and its path short."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(_redis(folder))
        engines = [await stack.enter_async_context(engine()) for _ in range(2)]
        watch = await stack.enter_async_context(running(prometheus, folder / "p", factor, ()))
        yield Stage(watch, engines, redis, folder)

"""What a drill runs on: two engines, a Redis, gateways as real processes, clients, a Prometheus. All on loopback,
and all end with the stage."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
from redis.asyncio import Redis as Client
from redis.exceptions import ConnectionError as NotConnected

from ops.drill.engine import Engine, engine
from ops.drill.process import Process, started
from ops.drill.prometheus import Prometheus, running
from proxy.embedded.redis import server_binary

GATEWAY_SECONDS: Final = 20.0  # until it listens, on a busy machine
REDIS_SECONDS: Final = 10.0
DISCOVERY_SECONDS: Final = 15.0  # Prometheus takes new targets every five seconds at most
PAUSE: Final = 0.01  # seconds between two requests of a client, so that refusals do not become a busy loop
_LISTENS: Final = re.compile(r"gateway at http://(\S+)")
_USUAL: Final = (
    *("--refresh-seconds", "0.2"),
    *("--load-seconds", "0.2"),
    *("--drain-timeout", "1"),
    *("--retries", "1"),
    *("--retry-backoff-ms", "1"),
    *("--rate-limit-rps", "1000000"),  # so that limits are shared through Redis but never reached
)


class Stage:
    """The processes that faults act on."""

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
        """A gateway in front of both engines, after its first scrape: a rate needs a sample from before the fault.

        `files`: limit of its descriptors. Later flags win. `scraped=False`: Prometheus already has its address.
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
        """Add a target to Prometheus."""
        self._targets.add(address)
        self.prometheus.scrape(self._targets)

    def forget(self, address: str) -> None:
        """Remove a target from Prometheus."""
        self._targets.discard(address)
        self.prometheus.scrape(self._targets)

    def forget_all(self) -> None:
        """Remove all targets from Prometheus."""
        self.prometheus.scrape(())

    def remember(self) -> None:
        """Restore the targets."""
        self.prometheus.scrape(self._targets)

    async def until_firing(self, *names: str, seconds: float) -> dict[str, dict[str, Any]]:
        """Wait until all these alerts fire. Raises TimeoutError naming those that do not."""
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
            raise TimeoutError(f"{sorted(set(names) - found.keys())} did not fire; seen: {states}") from None
        return {name: found[name] for name in names}

    async def until_quiet(self, *names: str, seconds: float) -> None:
        """Wait until none of these alerts fires. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while await self.prometheus.firing() & set(names):  # noqa: ASYNC110 - a fact of another process
                await asyncio.sleep(0.1)


class Redis:
    """A redis-server on a Unix socket."""

    def __init__(self, url: str, child: asyncio.subprocess.Process) -> None:
        self.url = url
        self._child = child

    def freeze(self) -> None:
        """Stop it: connections stay open and get no answer, the worst failure of a Redis."""
        self._child.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue it."""
        self._child.send_signal(signal.SIGCONT)


@asynccontextmanager
async def local_redis(folder: Path) -> AsyncIterator[Redis]:
    """A Redis whose socket lies in the folder."""
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


@asynccontextmanager
async def half_of_a_cluster(folder: Path) -> AsyncIterator[str]:
    """The URL of a Redis Cluster of one master, which has half of the slots; no other has the rest."""
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        port, bus = one.getsockname()[1], other.getsockname()[1]
    words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    words += ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no", "--cluster-port", str(bus)]
    child = await asyncio.create_subprocess_exec(
        str(server_binary()), *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    client = Client(host="127.0.0.1", port=port)
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            while True:
                try:
                    await client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)  # type: ignore[no-untyped-call]
                    break
                except NotConnected:  # it does not listen yet
                    await asyncio.sleep(0.02)
        yield f"redis+cluster://127.0.0.1:{port}"
    finally:
        await client.aclose()
        if child.returncode is None:
            child.kill()
        await child.wait()


class Clients:
    """Clients in a closed loop. `said` counts the statuses."""

    def __init__(self) -> None:
        self.said: Counter[str] = Counter()
        self.asked = 0
        self.same = False  # all send the same prompt: hits and attached
        self.words = 1  # padding words in each prompt

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

    async def run(self, session: aiohttp.ClientSession, url: str) -> None:
        while True:
            await self._ask(session, url)
            await asyncio.sleep(PAUSE)


@asynccontextmanager
async def clients(address: str, count: int, *, same: bool = False, words: int = 1) -> AsyncIterator[Clients]:
    """`count` clients while the block lasts."""
    them = Clients()
    them.same, them.words = same, words
    url = f"http://{address}/v1/chat/completions"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        tasks = [asyncio.create_task(them.run(session, url)) for _ in range(count)]
        try:
            yield them
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def stage(prometheus: str, folder: Path, factor: float) -> AsyncIterator[Stage]:
    """Everything but the gateways. `prometheus`: path of the program; `folder` is empty and has a short path."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(local_redis(folder))
        engines = [await stack.enter_async_context(engine()) for _ in range(2)]
        watch = await stack.enter_async_context(running(prometheus, folder / "p", factor, ()))
        yield Stage(watch, engines, redis, folder)

"""The processes of the drill: gateways, engines, and a Redis Cluster of three masters and three replicas, each at
a host of its own where this machine makes networks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ops.drill.fleet.engine import Ledger
from ops.drill.fleet.hosts import Host
from proxy.embedded.redis import server_binary

START_SECONDS: Final = 60.0
END_SECONDS: Final = 20.0  # from SIGTERM; then it is killed
COMMAND_SECONDS: Final = 5.0
NODE_TIMEOUT_MS: Final = 1500  # until the Cluster calls a server down
REDIS: Final = 6  # three masters, three replicas at the start
NAMESPACE: Final = "drill"
_FLAGS: Final = (
    *("--fleet", "auto", "--redis-namespace", NAMESPACE, "--refresh-seconds", "1", "--connect-timeout", "2"),
    *("--token-timeout", "5", "--first-token-timeout", "20", "--drain-timeout", "3"),
    *("--redis-timeout-ms", "500"),  # the machine is busy
)


_OFF: Final = ["--fleet", "off"]


async def until(fact: Callable[[], Awaitable[object]], seconds: float, what: str) -> float:
    """Wait for a fact of other processes. Returns the seconds. Raises TimeoutError that says what."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(seconds):
            while not await fact():  # noqa: ASYNC110 - another process sets no event
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise TimeoutError(f"{what}: not within {seconds:g} s") from None
    return time.monotonic() - began


class Member:
    """A process that is killed, frozen and started again, at one address."""

    def __init__(self, name: str, host: Host, port: int, words: Sequence[str], log: Path) -> None:
        self.name, self.host, self.port = name, host, port
        self.words = [*host.within, *words]
        self._log = log
        self._child: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host.address}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    async def start(self) -> None:
        """Start it; it may not listen yet."""
        with self._log.open("ab") as log:
            self._child = await asyncio.create_subprocess_exec(
                *self.words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def send(self, number: signal.Signals) -> None:
        if self._child is not None and self._child.returncode is None:
            self._child.send_signal(number)

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        if self._child is not None:
            await self._child.wait()

    async def stop(self) -> None:
        """End it by SIGTERM."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        if self._child is not None:
            try:
                await asyncio.wait_for(self._child.wait(), END_SECONDS)
            except TimeoutError:
                await self.kill()

    async def page(self, path: str) -> str:
        """A GET; empty where it does not answer."""
        timeout = aiohttp.ClientTimeout(total=COMMAND_SECONDS)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(self.url + path) as response:
                return await response.text() if response.status == 200 else ""
        except (aiohttp.ClientError, TimeoutError, OSError):
            return ""

    async def figure(self, name: str) -> float | None:
        """The sum of a metric's series, by the beginning of their lines; None where it does not answer."""
        page = await self.page("/metrics")
        values = [float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name)]
        return sum(values) if page else None


class Server(Member):
    """One server of the Cluster."""

    async def call(self, *words: str | bytes | int) -> Any:
        """Raises RedisError, or TimeoutError."""
        async with asyncio.timeout(COMMAND_SECONDS):
            client = Redis(host=self.host.address, port=self.port, single_connection_client=True)
            client.response_callbacks.clear()  # texts as they come
            async with client:
                return await client.execute_command(*words)  # type: ignore[no-untyped-call]

    async def answers(self) -> bool:
        if self._child is not None and self._child.returncode is not None:
            raise RuntimeError(f"{self.name} has ended: {self._log.read_text(errors='replace')[-500:]}")
        with suppress(RedisError, OSError, TimeoutError):
            return bool(await self.call("PING"))
        return False

    async def masters(self) -> bool:
        """Whether it is a master with slots; False where it does not answer."""
        with suppress(RedisError, OSError, TimeoutError):
            lines = (await self.call("CLUSTER", "NODES")).decode().splitlines()
            words = next(line.split() for line in lines if "myself" in line)
            return "master" in words[2] and len(words) > 8  # the slots are behind the eighth
        return False

    async def follows(self) -> bool:
        """Whether it is a replica with its master's data."""
        with suppress(RedisError, OSError, TimeoutError):
            info = await self.call("INFO", "replication")
            return b"role:slave" in info and b"master_link_status:up" in info
        return False

    async def whole(self) -> bool:
        """Whether it sees all servers, and all slots served."""
        with suppress(RedisError, OSError, TimeoutError):
            info, nodes = await self.call("CLUSTER", "INFO"), await self.call("CLUSTER", "NODES")
            return b"cluster_state:ok" in info and nodes.count(b" connected") == REDIS and b"fail" not in nodes
        return False


class Stage:
    """All processes. `networks`: they have hosts of their own, so that links can be cut."""

    def __init__(
        self, nodes: list[Member], engines: list[Member], servers: list[Server], folder: Path, *, networks: bool
    ) -> None:
        self.nodes, self.engines, self.servers, self.folder = nodes, engines, servers, folder
        self.networks = networks
        self.ledgers = [Ledger(folder, engine.name) for engine in engines]
        self._by_address = {node.host.address: node.name for node in nodes}

    def leader_of(self, fingerprint: str) -> tuple[str, str]:
        """The engine and the gateway that a fingerprint names; empty for what it does not."""
        engine, _, addresses = fingerprint.partition(" ")
        ends = addresses.split(" ")
        node = next((self._by_address[end] for end in ends if end in self._by_address), "")
        return (engine, node) if engine in {member.name for member in self.engines} else ("", "")

    async def masters(self) -> list[Server]:
        return [server for server in self.servers if await server.masters()]

    async def running(self) -> float:
        """Requests at the engines; inf where one does not answer."""
        counts = [await engine.figure("vllm:num_requests_running") for engine in self.engines]
        return sum(float("inf") if count is None else count for count in counts)

    async def serves(self, node: Member) -> bool:
        """Whether it shares generations, and takes requests."""
        live = await node.figure("gateway_fleet_live") or 0
        return (live > 0 or node.words[-2:] == _OFF) and bool(await node.page("/ready"))

    async def settled(self) -> None:
        """Wait until everything runs again after faults."""
        for server in self.servers:
            await until(server.whole, START_SECONDS, f"{server.name} sees its Cluster whole")
        for node in self.nodes:
            await until(lambda one=node: self.serves(one), START_SECONDS, f"{node.name} shares generations")  # type: ignore[misc]

    async def keys(self) -> dict[bytes, int]:
        """All keys of the gateways, and the milliseconds that each lasts; -1 for one without expiry."""
        found: dict[bytes, int] = {}
        for server in await self.masters():
            for key in await server.call("KEYS", f"{NAMESPACE}:*"):
                found[key] = int(await server.call("PTTL", key))
        return {key: ms for key, ms in found.items() if ms != -2}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@asynccontextmanager
async def stage(
    folder: Path,
    hosts: Sequence[Host],
    *,
    nodes: int,
    engines: int,
    pace: float,
    flags: Sequence[str] = (),
    alone: int = 0,
) -> AsyncIterator[Stage]:
    """`hosts`: one for each process, or none: all on loopback. `pace`: seconds of a token. `flags`: of
    gateways, of which the last `alone` are not in the fleet. `folder` exists."""
    networks = bool(hosts)
    places = iter(hosts)

    def place(last: int = 1) -> Host:
        return next(places) if networks else Host(f"127.0.0.{last}")

    python = sys.executable
    async with AsyncExitStack() as stack:
        servers = []
        for n in range(REDIS):
            host, port, bus = place(), free_port(), free_port()
            home = folder / f"r{n}"
            home.mkdir(exist_ok=True)
            words = [str(server_binary()), "--port", str(port), "--bind", host.address, "--protected-mode", "no"]
            words += ["--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--save", ""]
            words += ["--cluster-port", str(bus), "--dir", str(home), "--repl-diskless-sync-delay", "0"]
            words += ["--cluster-require-full-coverage", "no", "--cluster-allow-replica-migration", "no"]
            servers.append(Server(f"r{n}", host, port, words, folder / f"r{n}.log"))
        backends = []
        for n in range(engines):
            host, port = place(), free_port()
            words = [python, "-m", "ops.drill.fleet.engine", "--name", f"e{n}", "--port", str(port)]
            words += ["--host", host.address if networks else "0.0.0.0"]  # noqa: S104 - a drill's own engine
            words += ["--folder", str(folder), "--pace", str(pace), "--stride", str(1 + n)]
            backends.append(Member(f"e{n}", host, port, words, folder / f"e{n}.log"))
        gateways = []
        redis = "redis+cluster://" + ",".join(f"{server.host.address}:{server.port}" for server in servers)
        for n in range(nodes):
            host, port = place(10 + n), free_port()
            words = [python, "-m", "proxy", "--host", host.address, "--port", str(port), "--redis", redis]
            off = _OFF if n >= nodes - alone else []
            for engine in backends:  # on loopback an engine knows the gateway by the address that it was asked at
                words += ["--backend", engine.url if networks else f"http://{host.address}:{engine.port}"]
            gateways.append(Member(f"n{n}", host, port, [*words, *_FLAGS, *flags, *off], folder / f"n{n}.log"))
        for member in (*servers, *backends, *gateways):
            stack.push_async_callback(member.stop if member in gateways else member.kill)
        for member in (*servers, *backends):
            await member.start()
        await _join(servers)
        for member in gateways:
            await member.start()
        on = Stage(gateways, backends, servers, folder, networks=networks)
        for ledger in on.ledgers:
            stack.callback(ledger.close)
        await on.settled()
        yield on


async def _join(servers: Sequence[Server]) -> None:
    """Make a Cluster of them: the first half are masters."""
    for server in servers:
        await until(server.answers, START_SECONDS, f"{server.name} answers")
    half = REDIS // 2
    bounds = [16384 * part // half for part in range(half + 1)]
    for n, server in enumerate(servers[:half]):
        await server.call("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        await server.call("CLUSTER", "ADDSLOTSRANGE", bounds[n], bounds[n + 1] - 1)
    for server in servers[1:]:
        bus = next(word for at, word in enumerate(server.words) if server.words[at - 1] == "--cluster-port")
        await servers[0].call("CLUSTER", "MEET", server.host.address, server.port, bus)
    for server in servers:
        await until(server.whole, START_SECONDS, f"{server.name} sees its Cluster whole")
    for master, replica in zip(servers[:half], servers[half:], strict=True):
        await replica.call("CLUSTER", "REPLICATE", await master.call("CLUSTER", "MYID"))
    for replica in servers[half:]:
        await until(replica.follows, START_SECONDS, f"{replica.name} is a replica")

"""Owns Redis servers that belong together, as processes on ports of loopback: a Cluster, or a master with a
replica and Sentinels. Each can be killed, stopped by SIGSTOP and continued.
Must not know what a test asks of them."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from proxy.embedded.redis import server_binary
from proxy.redis.client import RedisClient
from proxy.redis.resp import Login, WireError
from proxy.redis.url import RedisAddress
from tests.kit.networks import Host
from tests.kit.ports import free_port
from tests.kit.redis_server import Certificate

SECONDS: Final = 5.0  # for one command
NODE_TIMEOUT: Final = 1500  # ms until a Cluster or a Sentinel calls a server down
SLOTS: Final = 16384
PAUSE: Final = 0.01  # seconds between two questions: asked without one, servers that come up lack the CPU


class RedisNode:
    """One server. `call` raises WireError; the user that it logs in as may do everything."""

    def __init__(self, home: Path, port: int, login: Login | None = None, on: Host | None = None) -> None:
        """`on`: the host that it runs on, else this machine."""
        self.home = home
        self.host = on.address if on is not None else "127.0.0.1"
        self.port = port
        self.name = f"{self.host}:{port}"
        self._within = on.within if on is not None else ()
        self.tls_port = 0  # 0: none
        self._process: asyncio.subprocess.Process | None = None
        self._link = RedisClient(RedisAddress(login or Login(), self.host, port), connect_timeout=SECONDS)

    def __repr__(self) -> str:
        return f"<RedisNode {self.name}>"

    async def start(self, binary: Path, *options: str, certificate: Certificate | None = None) -> None:
        """`certificate`: serve TLS too, at a port of its own."""
        words = [*self._within, str(binary), *options, "--port", str(self.port), "--bind", self.host]
        words += ["--protected-mode", "no", "--dir", str(self.home)]
        words += ["--save", "", "--repl-diskless-sync-delay", "0", "--logfile", str(self.home / "log")]
        if certificate is not None:
            self.tls_port = free_port()
            words += ["--tls-port", str(self.tls_port), "--tls-auth-clients", "no", "--tls-cert-file"]
            words += [str(certificate.cert), "--tls-key-file", str(certificate.key)]
            words += ["--tls-ca-cert-file", str(certificate.cert), "--tls-cluster", "yes"]
        self._process = await asyncio.create_subprocess_exec(*words)
        await eventually(self.answers)

    async def watch(self, binary: Path) -> None:
        """Start as a Sentinel, by the file `sentinel.conf` in its home."""
        words = (str(binary), str(self.home / "sentinel.conf"), "--sentinel", "--port", str(self.port))
        self._process = await asyncio.create_subprocess_exec(*words, "--logfile", str(self.home / "log"))
        await eventually(self.answers)

    async def call(self, *words: str | bytes | int) -> Any:
        return await self._link.call(*words, timeout=SECONDS)

    async def answers(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, (self.home / "log").read_text()
        try:
            return bool(await self.call("PING"))
        except WireError:
            return False

    async def follows(self) -> bool:
        """Whether it is a replica that has what its master has."""
        try:
            told = await self.call("INFO", "replication")
        except WireError:
            return False  # a Sentinel that demotes it closes its connections
        return b"role:slave" in told and b"master_link_status:up" in told

    async def has(self, count: int) -> bool:
        """Whether it has so many keys."""
        return bool(await self.call("DBSIZE") >= count)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    async def stop(self) -> None:
        await self._link.close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


async def eventually(fact: Callable[[], Any]) -> None:
    """Await the coroutine of `fact` until it gives something true; bounded by the test's own timeout."""
    while not await fact():  # noqa: ASYNC110 - a server in another process sets no event
        await asyncio.sleep(PAUSE)


class RedisCluster:
    """Three masters, each with a replica where there are six nodes, in the order masters, replicas."""

    def __init__(self, nodes: Sequence[RedisNode], masters: int) -> None:
        self.nodes = nodes
        self.masters = nodes[:masters]
        self.replicas = nodes[masters:]

    def url(self, *nodes: RedisNode, user: str = "", options: str = "") -> str:
        """With these nodes as seeds, else all masters."""
        hosts = ",".join(node.name for node in nodes or self.masters)
        return f"redis+cluster://{user}{hosts}{options}"

    async def keys(self) -> dict[str, list[bytes]]:
        """The keys at each master."""
        return {node.name: sorted(await node.call("KEYS", "*")) for node in self.masters}

    async def migrate(self, slot: int, source: RedisNode, target: RedisNode, *, finish: bool = True) -> None:
        """Move a slot with its keys; `finish=False` leaves it in the middle, with its keys at the source."""
        ids = {node: (await node.call("CLUSTER", "MYID")).decode() for node in (source, target)}
        await target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        await source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        if not finish:
            return
        while keys := await source.call("CLUSTER", "GETKEYSINSLOT", slot, 100):
            await source.call("MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source, *self.masters):
            await node.call("CLUSTER", "SETSLOT", slot, "NODE", ids[target])

    async def whole(self) -> bool:
        """Whether every node sees every other, and all slots are served."""
        for node in self.nodes:
            told = (await node.call("CLUSTER", "INFO")).decode()
            if "cluster_state:ok" not in told or f"cluster_known_nodes:{len(self.nodes)}\r" not in told:
                return False
            if "fail" in (await node.call("CLUSTER", "NODES")).decode().replace("noflags", ""):
                return False
        return True


@asynccontextmanager
async def redis_cluster(
    *options: str,
    replicas: bool = False,
    binary: Path | None = None,
    certificate: Certificate | None = None,
    hosts: Sequence[Host] = (),
) -> AsyncIterator[RedisCluster]:
    """Three masters on loopback or on `hosts`, and `replicas`: one of each. `certificate`: they serve TLS too."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cluster-")))
        nodes = []
        for number in range(6 if replicas else 3):
            home = folder / str(number)
            home.mkdir()
            node = RedisNode(home, free_port(), on=hosts[number] if hosts else None)
            stack.push_async_callback(node.stop)
            nodes.append(node)
        words = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT), *options)
        server = binary or server_binary()
        starts = [
            node.start(server, "--cluster-port", str(free_port()), *words, certificate=certificate)
            for node in nodes
        ]
        await asyncio.gather(*starts)
        cluster = RedisCluster(nodes, 3)
        await _join(cluster)
        yield cluster


async def _join(cluster: RedisCluster) -> None:
    bounds = [SLOTS * part // len(cluster.masters) for part in range(len(cluster.masters) + 1)]
    for number, node in enumerate(cluster.masters):
        await node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        await node.call("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
    first = cluster.nodes[0]
    for node in cluster.nodes[1:]:
        bus = await node.call("CONFIG", "GET", "cluster-port")
        port = bus[b"cluster-port"] if isinstance(bus, dict) else bus[1]
        await first.call("CLUSTER", "MEET", node.host, node.tls_port or node.port, int(port))
    await eventually(cluster.whole)
    for master, replica in zip(cluster.masters, cluster.replicas, strict=False):
        await replica.call("CLUSTER", "REPLICATE", await master.call("CLUSTER", "MYID"))
    for replica in cluster.replicas:
        await eventually(replica.follows)
    await eventually(cluster.whole)


class Watched:
    """A master and its replica, watched by three Sentinels under the name `mymaster`."""

    def __init__(self, master: RedisNode, replica: RedisNode, sentinels: Sequence[RedisNode]) -> None:
        self.master = master
        self.replica = replica
        self.sentinels = sentinels

    def url(self, *, user: str = "", options: str = "", service: str = "mymaster") -> str:
        hosts = ",".join(node.name for node in self.sentinels)
        return f"redis+sentinel://{user}{hosts}/{service}/0{options}"

    async def ready(self) -> bool:
        """Whether every Sentinel knows the replica and both others: less elects nobody."""
        for node in self.sentinels:
            (state,) = await node.call("SENTINEL", "MASTERS")
            facts = dict(state) if isinstance(state, dict) else dict(zip(state[::2], state[1::2], strict=True))
            if (facts[b"num-slaves"], facts[b"num-other-sentinels"]) != (b"1", b"2"):
                return False
        return True


@asynccontextmanager
async def redis_sentinels(*options: str, password: str = "", binary: Path | None = None) -> AsyncIterator[Watched]:
    """`options` are the servers'. `password`: of the servers; the Sentinels have none."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sentinel-")))
        login = Login(password=password or None)
        nodes: list[RedisNode] = []
        for name in ("master", "replica", "a", "b", "c"):
            home = folder / name
            home.mkdir()
            node = RedisNode(home, free_port(), login if len(nodes) < 2 else None)
            stack.push_async_callback(node.stop)
            nodes.append(node)
        master, replica, *sentinels = nodes
        server = binary or server_binary()
        secret = ("--requirepass", password, "--masterauth", password) if password else ()
        await master.start(server, *secret, *options)
        await replica.start(server, "--replicaof", "127.0.0.1", str(master.port), *secret, *options)
        await eventually(replica.follows)
        for node in sentinels:
            lines = [f"sentinel monitor mymaster 127.0.0.1 {master.port} 2"]
            lines += [f"sentinel down-after-milliseconds mymaster {NODE_TIMEOUT}"]
            lines += ["sentinel failover-timeout mymaster 5000"]
            lines += [f"sentinel auth-pass mymaster {password}"] if password else []
            (node.home / "sentinel.conf").write_text("\n".join(lines) + "\n")
        await asyncio.gather(*(node.watch(server) for node in sentinels))
        watched = Watched(master, replica, sentinels)
        await eventually(watched.ready)
        yield watched

"""What is done to a fleet, each at a random moment, and undone after a while."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

from redis.exceptions import RedisError

from ops.drill.fleet.readers import Readers
from ops.drill.fleet.stage import NAMESPACE, START_SECONDS, Member, Server, Stage, until

Group = Literal["gateway", "engine", "redis"]


@dataclass
class Injection:
    """One fault that was made: what it affected, and from when to when (monotonic seconds)."""

    kind: str
    group: Group
    targets: tuple[str, ...]
    began: float
    ended: float = float("inf")

    def over(self, began: float, ended: float) -> bool:
        """Whether it was there in this time."""
        return self.began < ended and began < self.ended


@dataclass(frozen=True)
class Scene:
    """What a fault acts on."""

    stage: Stage
    readers: Readers
    rng: Random
    affected: frozenset[str]  # members under another fault

    def gateways(self) -> list[Member]:
        return [node for node in self.stage.nodes if node.name not in self.affected]

    def gateway(self) -> Member | None:
        found = self.gateways()
        return self.rng.choice(found) if found else None

    def leader(self) -> Member | None:
        """A gateway that leads streams now, more likely one that leads more."""
        led = self.readers.leaders()
        names = [self.stage.leader_of(mark)[1] for mark, count in led.items() for _ in range(count)]
        found = [node for name in names for node in self.gateways() if node.name == name]
        return self.rng.choice(found) if found else self.gateway()

    def engine(self) -> Member | None:
        found = [engine for engine in self.stage.engines if engine.name not in self.affected]
        return self.rng.choice(found) if found else None

    async def master(self) -> Server | None:
        found = await self.stage.masters()
        return self.rng.choice(found) if found else None


Targets = tuple[Member, ...]
Choose = Callable[[Scene], Awaitable[Targets]]
Make = Callable[[Scene, Targets], Coroutine[None, None, None]]


@dataclass(frozen=True)
class Fault:
    kind: str
    group: Group
    weight: float
    choose: Choose  # what it affects; nothing where it cannot be made now
    make: Make  # make it, and undo it after a while
    networks: bool  # it needs hosts of their own


FAULTS: Final[list[Fault]] = []
TWINS: Final = 3  # of one prompt at each gateway
TOGETHER: Final = "twins at all gateways at once"


def _fault(
    kind: str, group: Group, choose: Choose, *, weight: float = 1.0, networks: bool = False
) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        FAULTS.append(Fault(kind, group, weight, choose, make, networks))
        return make

    return register


async def _leader(scene: Scene) -> Targets:
    return tuple(filter(None, [scene.leader()]))


async def _gateway(scene: Scene) -> Targets:
    return tuple(filter(None, [scene.gateway()]))


async def _gateways(scene: Scene) -> Targets:
    free = scene.gateways()
    return tuple(free) if len(free) == len(scene.stage.nodes) else ()


async def _engine(scene: Scene) -> Targets:
    return tuple(filter(None, [scene.engine()]))


async def _master(scene: Scene) -> Targets:
    return tuple(filter(None, [await scene.master()]))


async def _redis(scene: Scene) -> Targets:
    """Redis as a whole, by its first server."""
    return (scene.stage.servers[0],)


async def _again(scene: Scene, node: Member) -> None:
    await node.start()
    await until(lambda: scene.stage.serves(node), START_SECONDS, f"{node.name} shares generations again")


async def _killed(scene: Scene, targets: Targets) -> None:
    (node,) = targets
    await node.kill()
    await asyncio.sleep(scene.rng.uniform(0.2, 3))
    await _again(scene, node)


_fault("leader killed", "gateway", _leader, weight=2)(_killed)
_fault("gateway killed", "gateway", _gateway)(_killed)


async def _frozen(scene: Scene, targets: Targets) -> None:
    (member,) = targets
    member.send(signal.SIGSTOP)
    await asyncio.sleep(scene.rng.uniform(0.5, 9))
    member.send(signal.SIGCONT)


_fault("leader frozen, woken later", "gateway", _leader, weight=2)(_frozen)
_fault("gateway frozen, woken later", "gateway", _gateway)(_frozen)
_fault("engine frozen, woken later", "engine", _engine, weight=2)(_frozen)
_fault("Redis master frozen, woken later", "redis", _master)(_frozen)


@_fault("engine killed", "engine", _engine, weight=3)
async def engine_killed(scene: Scene, targets: Targets) -> None:
    (engine,) = targets
    await engine.kill()
    await asyncio.sleep(scene.rng.uniform(0.2, 3))
    await engine.start()
    await until(lambda: engine.page("/metrics"), START_SECONDS, f"{engine.name} answers")


@_fault("gateways restarted, one after the other", "gateway", _gateways, weight=0.3)
async def rolling(scene: Scene, targets: Targets) -> None:
    for node in targets:
        await node.stop()
        await _again(scene, node)


@_fault("link of a gateway down", "gateway", _gateway, networks=True)
async def link_down(scene: Scene, targets: Targets) -> None:
    (node,) = targets
    node.host.cut()
    await asyncio.sleep(scene.rng.uniform(0.5, 8))
    node.host.join()


@_fault("link of an engine down", "engine", _engine, networks=True)
async def engine_link_down(scene: Scene, targets: Targets) -> None:
    await link_down(scene, targets)


async def _dropped(scene: Scene, pairs: Sequence[tuple[Member, Member]]) -> None:
    """What the first of each pair sends to the second is lost for a while."""
    for sender, receiver in pairs:
        receiver.host.drop(sender.host)
    await asyncio.sleep(scene.rng.uniform(0.5, 8))
    for sender, receiver in pairs:
        receiver.host.take(sender.host)


@_fault("gateway cut off from Redis", "gateway", _leader, networks=True)
async def no_redis(scene: Scene, targets: Targets) -> None:
    (node,) = targets
    pairs = [(node, server) for server in scene.stage.servers] + [(server, node) for server in scene.stage.servers]
    await _dropped(scene, pairs)


@_fault("gateway does not hear Redis", "gateway", _leader, networks=True)
async def deaf(scene: Scene, targets: Targets) -> None:
    await _dropped(scene, [(server, targets[0]) for server in scene.stage.servers])


@_fault("Redis does not hear a gateway", "gateway", _leader, networks=True)
async def mute(scene: Scene, targets: Targets) -> None:
    await _dropped(scene, [(targets[0], server) for server in scene.stage.servers])


@_fault("gateway does not hear the engines", "gateway", _leader, networks=True)
async def no_engines(scene: Scene, targets: Targets) -> None:
    await _dropped(scene, [(engine, targets[0]) for engine in scene.stage.engines])


@_fault("Redis master killed", "redis", _master, weight=2)
async def master_killed(scene: Scene, targets: Targets) -> None:
    """Back at once it is empty, and so are its replicas; later it is a replica of what was its replica."""
    (server,) = targets
    await server.kill()
    await asyncio.sleep(scene.rng.choice((0.0, 5.0)))
    await server.start()
    for each in scene.stage.servers:
        await until(each.whole, START_SECONDS, f"{each.name} sees its Cluster whole")


@_fault("CLUSTER FAILOVER", "redis", _redis, weight=2)
async def failover(scene: Scene, targets: Targets) -> None:
    replicas = [server for server in scene.stage.servers if await server.follows()]
    if replicas:
        replica = scene.rng.choice(replicas)
        await replica.call("CLUSTER", "FAILOVER")
        await until(replica.masters, START_SECONDS, f"{replica.name} is a master")


async def _at_masters(scene: Scene, *words: str | int) -> None:
    for server in await scene.stage.masters():
        with suppress(RedisError, OSError, TimeoutError):
            await server.call(*words)


@_fault("FLUSHALL", "redis", _redis)
async def flushed(scene: Scene, targets: Targets) -> None:
    await _at_masters(scene, "FLUSHALL")


@_fault("Redis without the scripts", "redis", _redis, weight=0.5)
async def scripts_gone(scene: Scene, targets: Targets) -> None:
    await _at_masters(scene, "SCRIPT", "FLUSH")


@_fault("Redis full", "redis", _redis)
async def full(scene: Scene, targets: Targets) -> None:
    servers = scene.stage.servers
    try:
        for server in servers:
            await server.call("CONFIG", "SET", "maxmemory", "1")
        await asyncio.sleep(scene.rng.uniform(0.5, 4))
    finally:
        for server in servers:
            await server.call("CONFIG", "SET", "maxmemory", "0")


@_fault("Redis slow", "redis", _redis)
async def slow(scene: Scene, targets: Targets) -> None:
    pause = scene.rng.randint(20, 900)
    for _ in range(scene.rng.randint(1, 5)):
        await _at_masters(scene, "CLIENT", "PAUSE", pause, "ALL")
        await asyncio.sleep(pause / 1000 + 0.02)


@_fault("records of others under our keys", "redis", _redis, weight=2)
async def hostile(scene: Scene, targets: Targets) -> None:
    """Claims, interest, logs and facts are overwritten, and messages sent, by a program that knows their names."""
    rng = scene.rng
    for server in await scene.stage.masters():
        with suppress(RedisError, OSError, TimeoutError):
            keys = await server.call("KEYS", f"{NAMESPACE}:flight:*")
            for key in rng.sample(keys, min(len(keys), 12)):
                await _spoil(server, key, rng, keys)
                await server.call("PEXPIRE", key, 60_000)  # it may have been written anew


async def _spoil(server: Server, key: bytes, rng: Random, keys: list[bytes]) -> None:
    claim = key.partition(b"}")[0] + b"}"
    other = rng.choice(keys)
    if b":node:" in key:
        inbox = key.replace(b":node:", b":inbox:")
        node = key.rpartition(b":")[2]
        fence, digest = b"%b.%d" % (node, rng.randint(1, 99)), rng.randbytes(16).hex().encode()
        target = other.partition(b"}")[0] + b"}"
        for message in (
            rng.randbytes(40),
            b"join %b %b %b" % (target, fence, b"0123456789abcdef"),
            b"left %b %b %b" % (target, fence, b"0123456789abcdef"),
            b"gone %b %b" % (target, b"0123456789abcdef.1"),
            b"more %b %b 0 %b landed 7b7d\nfalse" % (target, fence, digest),
            b"more " + b"9" * 100_000,
        ):
            await server.call("PUBLISH", inbox, message)
    elif b":log:" in key:
        size = int(await server.call("STRLEN", key))
        forged = b"5\r\ndata:\r\n" * (size // 10) + b"0" * (size % 10)
        what: tuple[str | bytes | int, ...] = rng.choice(
            (
                ("SETRANGE", key, rng.randrange(size + 1), b"forged"),
                ("SET", key, forged, "KEEPTTL"),
                ("SET", key, b"", "KEEPTTL"),
                ("DEL", key),
            )
        )
        await server.call(*what)
    elif b":facts:" in key:
        digest = rng.randbytes(16).hex().encode()
        what = rng.choice(
            (
                ("HSET", key, "s", "landed"),
                ("HSET", key, "s", rng.randbytes(20), "n", "-1"),
                ("HSET", key, "d", digest),
                ("HSET", key, "n", 10**30),
                ("HSET", key, "h", b"7b7d"),
                ("SET", key, "a string", "PX", 60_000),
            )
        )
        await server.call(*what)
    elif key.endswith(b":interest"):
        what = rng.choice(
            (
                ("ZADD", key, 0, b"0123456789abcdef"),
                ("ZADD", key, 10**15, rng.randbytes(10)),
                ("SET", key, "a string", "PX", 60_000),
                ("DEL", key),
            )
        )
        await server.call(*what)
        await server.call("PEXPIRE", key, 5000)
    else:
        what = rng.choice(
            (
                ("SET", key, b"0123456789abcdef.7", "PX", 20_000),  # of a node that does not exist
                ("SET", key, rng.randbytes(30), "PX", 20_000),
                ("SET", key, b"v2 another version", "PX", 20_000),
                ("DEL", key),
            )
        )
        await server.call(*what)
        if rng.random() < 0.3:
            await server.call("DEL", claim)
            await server.call("LPUSH", claim, "a list")
            await server.call("PEXPIRE", claim, 20_000)


@_fault(TOGETHER, "redis", _redis, weight=2)
async def together(scene: Scene, targets: Targets) -> None:
    await scene.readers.together(TWINS)

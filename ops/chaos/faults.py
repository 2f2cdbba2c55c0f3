"""The faults by name: what each does to engines, Redis or the gateway. Each is bounded in time and undoes
itself."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ops.chaos.acts import Chaos, Fault
from ops.chaos.hostile import HOSTILE
from ops.chaos.lies import LIES
from ops.chaos.stage import REMOVED, named

POISONED: Final = 20  # values at a time


# Engines


async def kill_engine(chaos: Chaos) -> str:
    engine = chaos.engine()
    if engine is None:
        return ""
    await chaos.stage.restart(engine, "killed", chaos.pick.uniform(0.1, 1))
    return engine.name


async def end_engine(chaos: Chaos) -> str:
    engine = chaos.engine()
    if engine is None:
        return ""
    seconds = chaos.pick.uniform(1, 4)
    if chaos.longs:
        chaos.longs -= 1
        seconds = chaos.long
    await chaos.stage.end_engine(engine, seconds)
    return f"{engine.name} for {seconds:.1f} s"


async def stop_engine(chaos: Chaos) -> str:
    engine = chaos.engine()
    if engine is None:
        return ""
    await chaos.stage.pause(engine, engine.name, chaos.pick.uniform(0.2, 2))
    return engine.name


async def slow_engine(chaos: Chaos) -> str:
    engine = chaos.engine()
    if engine is None:
        return ""
    seconds = chaos.pick.uniform(0.3, 1)
    fault = chaos.stage.begun(engine.name, "slowed")
    await engine.order(slow_gap=chaos.pick.uniform(0.05, 0.3), slow_seconds=seconds)
    await asyncio.sleep(seconds)
    fault.end = time.monotonic()
    return engine.name


async def reset_engine(chaos: Chaos) -> str:
    engine = chaos.engine()
    if engine is None:
        return ""
    fault = chaos.stage.begun(engine.name, "reset")
    await engine.order(reset=True)
    await asyncio.sleep(0.1)
    fault.end = time.monotonic()
    return engine.name


async def lie(chaos: Chaos) -> str:
    """One to three wrong answers of one engine. The engine logs which requests they went to."""
    engine = chaos.pick.choice(chaos.stage.engines)
    name = chaos.pick.choice(list(LIES))
    times = chaos.pick.randint(1, 3)
    told = await engine.order(lies=[name] * times)
    return f"{engine.name}: {name} × {times}" if told else ""


# Redis


async def kill_redis(chaos: Chaos) -> str:
    if "redis" in chaos.stage.disturbed():
        return ""
    await chaos.stage.restart(chaos.stage.redis, "killed", chaos.pick.uniform(0.1, 2))
    return "killed"


async def stop_redis(chaos: Chaos) -> str:
    if "redis" in chaos.stage.disturbed():
        return ""
    await chaos.stage.pause(chaos.stage.redis, "redis", chaos.pick.uniform(0.1, 3))
    return "stopped"


def _redis(chaos: Chaos) -> Redis:
    return Redis(unix_socket_path=str(chaos.stage.redis.path), socket_timeout=1.0)


async def flush_redis(chaos: Chaos) -> str:
    if "redis" in chaos.stage.disturbed():
        return ""
    redis = _redis(chaos)
    with suppress(RedisError, OSError):
        await redis.flushall()
    await redis.aclose()
    return "flushed"


async def poison_redis(chaos: Chaos) -> str:
    """Invalid values under the gateway's keys."""
    if "redis" in chaos.stage.disturbed():
        return ""
    redis = _redis(chaos)
    how, done = chaos.pick.choice(list(POISONS)), 0
    with suppress(RedisError, OSError):
        async for key in redis.scan_iter(count=100):
            if done >= POISONED:
                break
            if how == "another type":
                await redis.delete(key)
                await redis.lpush(key, b"x")
            elif await redis.type(key) == b"string":
                value: Any = await redis.get(key)
                await redis.set(key, POISONS[how](value or b"", chaos.pick), ex=600)
            done += 1
    await redis.aclose()
    return f"{how} × {done}"


def _body(change: Callable[[bytes], bytes]) -> Callable[[bytes, random.Random], bytes]:
    """Changes the body of a stored answer: the longest bytes in its list."""

    def poison(value: bytes, pick: random.Random) -> bytes:
        try:
            members: Any = msgspec.msgpack.decode(value)
            at = max(
                (at for at, member in enumerate(members) if isinstance(member, bytes)),
                key=lambda at: len(members[at]),
            )
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):  # already poisoned
            return os.urandom(20)
        members[at] = change(members[at])
        return msgspec.msgpack.encode(members)

    return poison


def _kind(value: bytes, pick: random.Random) -> bytes:
    """A stream marked as a JSON body, and the reverse."""
    other = {b"stream": b"whole", b"whole": b"stream"}
    for kind, wrong in other.items():
        if kind in value[:12]:
            marked = bytes([0xA0 + len(kind)]) + kind
            return value.replace(marked, bytes([0xA0 + len(wrong)]) + wrong, 1)
    return b""


POISONS: Final[dict[str, Callable[[bytes, random.Random], bytes]]] = {
    "random bytes": lambda value, pick: pick.randbytes(200),
    "empty": lambda value, pick: b"",
    "half a value": lambda value, pick: value[: len(value) // 2],
    "a body cut short": _body(lambda body: body[: len(body) * 2 // 3]),
    "chunk extensions": _body(lambda body: body.replace(b"\r\n", b";a=b\r\n", 1)),
    "zeros before a size": _body(lambda body: b"0000" + body),
    "a last chunk first": _body(lambda body: b"0\r\n\r\n" + body),
    "an error object": _body(lambda body: b'{"error":{"message":"x","type":"x","param":null,"code":500}}'),
    "a body of nulls": _body(lambda body: bytes(len(body))),
    "another kind": _kind,
    "deep nesting": lambda value, pick: b"\x91" * 100_000,
    "another type": lambda value, pick: b"",
}


# The gateway


async def reload(chaos: Chaos) -> str:
    """A reload of the settings file: without one engine for a while, or with invalid settings."""
    stage = chaos.stage
    if "settings" in stage.disturbed():
        return ""
    engine = chaos.engine()
    if engine is None or len(stage.engines) < 2:
        return ""
    fault = stage.begun("settings", "changed")
    removed = None
    if chaos.pick.random() < 0.4:
        stage.settle(chaos.pick.choice(("backends = [", "backends = []\n", 'max_batch = "many"\n', "")))
    else:
        removed = stage.begun(engine.name, REMOVED)
        stage.settle(named([one for one in stage.engines if one is not engine]))
    await asyncio.sleep(chaos.pick.uniform(0.5, 3))
    stage.settle(named(stage.engines))
    await asyncio.sleep(1.5)  # time for the reload, and to fetch the engine's models
    fault.end = time.monotonic()
    if removed is not None:
        removed.end = fault.end
        return f"without {engine.name}"
    return "refused settings"


async def stop_gateway(chaos: Chaos) -> str:
    if "gateway" in chaos.stage.disturbed():
        return ""
    seconds = chaos.pick.uniform(0.5, 3)
    await chaos.stage.pause(chaos.stage.gateway, "gateway", seconds)
    return f"stopped for {seconds:.1f} s"


FAULTS: Final[dict[str, Fault]] = {
    "engine killed": kill_engine,
    "engine ended": end_engine,
    "engine stopped": stop_engine,
    "engine slowed": slow_engine,
    "engine resets": reset_engine,
    "engine lies": lie,
    "redis killed": kill_redis,
    "redis stopped": stop_redis,
    "redis flushed": flush_redis,
    "redis poisoned": poison_redis,
    "gateway stopped": stop_gateway,
    "settings read anew": reload,
    **HOSTILE,
}

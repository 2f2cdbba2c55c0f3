"""Owns the faults that a chaos run makes, by name: what each does to engines, Redis, the gateway, or as a client.
Must not know the load nor what is right.
Called by the run, one fault after the other; each is bounded in time and undoes itself."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ops.chaos.client import Client
from ops.chaos.engine import FAIL, INFINITE
from ops.chaos.lies import LIES
from ops.chaos.stage import EngineChild, Stage
from ops.chaos.wire import MODEL, Ask, dumps, post

PATIENCE: Final = 4.0  # seconds that a hostile client waits for its own answer
POISONED: Final = 20  # values at a time
ALL_DOWN: Final = 0.05  # share of engine faults that may leave no engine well


@dataclass(slots=True)
class Chaos:
    """What a fault acts on and draws from. `tags`: prompts that the load asks for again and again."""

    stage: Stage
    pick: random.Random
    tags: Sequence[Ask]
    long: float = 0.0  # seconds of an engine's long end
    longs: int = 0  # how many such ends there are

    def engine(self) -> EngineChild | None:
        """One that suffers nothing now, so that another remains well; none where there is no such."""
        disturbed = self.stage.disturbed()
        well = [engine for engine in self.stage.engines if engine.name not in disturbed]
        if len(well) < 2 and not (well and self.pick.random() < ALL_DOWN):
            return None
        return self.pick.choice(well)


Fault = Callable[[Chaos], Awaitable[str]]
"""Makes the fault and undoes it. Gives a word on what it was; empty where there was nothing to do it to."""


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
    """One to three answers of one engine. Which requests it was told, the engine writes down."""
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
    """Values under the gateway's keys that nobody would have stored."""
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
    """A change of the body within a stored answer: the longest bytes in its list."""

    def poison(value: bytes, pick: random.Random) -> bytes:
        try:
            members: Any = msgspec.msgpack.decode(value)
            at = max(
                (at for at, member in enumerate(members) if isinstance(member, bytes)),
                key=lambda at: len(members[at]),
            )
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):  # one of the poisons itself
            return os.urandom(20)
        members[at] = change(members[at])
        return msgspec.msgpack.encode(members)

    return poison


def _kind(value: bytes, pick: random.Random) -> bytes:
    """A stream that is called a whole body, and the other way round."""
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


async def stop_gateway(chaos: Chaos) -> str:
    if "gateway" in chaos.stage.disturbed():
        return ""
    seconds = chaos.pick.uniform(0.5, 3)
    await chaos.stage.pause(chaos.stage.gateway, "gateway", seconds)
    return f"stopped for {seconds:.1f} s"


# Clients


async def _raw(chaos: Chaos, data: bytes, *, hold: float = 0.0, read: int = 1 << 16, buffer: int = 0) -> None:
    """Send these bytes, read what comes up to a bound, hold the connection, reset it."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    try:
        with suppress(OSError):
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(sock, (chaos.stage.host, chaos.stage.port))
                await loop.sock_sendall(sock, data)
                if read:
                    await loop.sock_recv(sock, read)
        await asyncio.sleep(hold)
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        sock.close()


def _own(chaos: Chaos, *, sampled: bool = False, tokens: int = 100, gap: int = 10) -> Ask:
    return Ask(chaos.pick.getrandbits(64), tokens=tokens, gap_ms=gap, sampled=sampled)


async def leave(chaos: Chaos) -> str:
    """Ten of one prompt leave in its middle, at different moments, closing or resetting."""
    ask = _own(chaos, sampled=chaos.pick.random() < 0.5)

    async def one() -> None:
        client = Client(chaos.stage.host, chaos.stage.port, bound=PATIENCE)
        await client.ask(ask, leave_after=chaos.pick.uniform(0.01, 0.9), reset=chaos.pick.random() < 0.5)

    await asyncio.gather(*[one() for _ in range(10)])
    return "ten clients"


async def stall(chaos: Chaos) -> str:
    """Five read nothing of a long answer."""
    ask = Ask(chaos.pick.getrandbits(64), tokens=20_000, gap_ms=0)
    await asyncio.gather(*[_raw(chaos, post(ask.body()), hold=PATIENCE, read=0, buffer=4096) for _ in range(5)])
    return "five clients"


async def half_head(chaos: Chaos) -> str:
    halves = (b"", b"P", b"POST /v1/chat/comp", b"POST / HTTP/1.1\r\nhost: x\r\nx-a: b")
    await asyncio.gather(*[_raw(chaos, half, hold=2.0, read=0) for half in halves * 3])
    return "twelve connections"


async def half_body(chaos: Chaos) -> str:
    body = _own(chaos).body()
    await asyncio.gather(*[_raw(chaos, post(body[:-1], length=len(body)), hold=2.0, read=0) for _ in range(5)])
    return "five connections"


async def pipelined(chaos: Chaos) -> str:
    """Requests in one packet, one of them with an offer to upgrade."""
    first = _own(chaos, tokens=2, gap=0)
    offer = ("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__")
    data = post(first.body(), "/v1/chat/completions", *offer) + post(first.body()) + post(first.body())
    await _raw(chaos, data)
    return "three requests in one packet"


async def poison(chaos: Chaos) -> str:
    """A request whose data may raise, take long, or make every engine fail."""
    name = chaos.pick.choice(list(_POISON))
    await asyncio.gather(*[_raw(chaos, data) for data in _POISON[name](chaos)])
    return name


def _text(chaos: Chaos, word: bytes) -> list[bytes]:
    body = _own(chaos, tokens=2).body().replace(b"and some", word + b" and some")
    return [post(body.replace(b'"stream":true', b'"stream":false'))] * 5


def _session(chaos: Chaos) -> list[bytes]:
    """The same sampled prompt twice in a second, each with bytes that are no ASCII in a header."""
    return [post(_own(chaos, sampled=True, tokens=3).body(), "/v1/chat/completions", "x-session-id: \xff")] * 3


def _rank(chaos: Chaos) -> list[bytes]:
    """A header that any engine refuses, on prompts that others ask for at this moment."""
    asks = chaos.pick.sample(list(chaos.tags), min(5, len(chaos.tags)))
    return [post(ask.body(), ask.path, "x-data-parallel-rank: 99") for ask in asks]


def _members(chaos: Chaos) -> list[bytes]:
    names = [f"k{at:06d}" for at in range(8_000)]
    members = ",".join(f'"{name}":0' for name in [*names, names[-1]])
    return [post(f'{{"model":"{MODEL}","messages":[],{members}}}'.encode())]


def _odd_bodies(chaos: Chaos) -> list[bytes]:
    good = _own(chaos, tokens=2, gap=0).body()
    deep = b"[" * 50_000 + b"]" * 50_000
    bodies = [
        b"\xef\xbb\xbf" + good,
        good.decode().encode("utf-16"),
        good.replace(b'"temperature":0', b'"temperature":NaN'),
        good.replace(b"some words", b"\\ud800"),
        good[:-1] + b',"x":' + deep + b"}",
        good.replace(b'"temperature":0', b'"n":1000000000'),
        good.replace(b'"temperature":0', b'"n":0'),
        good.replace(b'"max_tokens":2', b'"max_tokens":1e400'),
        json.dumps([1, 2, 3]).encode(),
        b"",
    ]
    return [post(body) for body in bodies]


def _odd_heads(chaos: Chaos) -> list[bytes]:
    body = _own(chaos, tokens=2, gap=0).body()
    return [
        post(body, "/v1/chat/completions#?x"),
        post(body, "//v1/chat/completions"),
        post(body, "/v1/chat/completions", "transfer-encoding: chunked"),
        post(body, "/v1/chat/completions", "x-gateway-share: perhaps", "x-request-id: " + "a" * 5000),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET / HTTP/9.9\r\n\r\n",
    ]


def _many_texts(chaos: Chaos) -> list[bytes]:
    texts = [f"{chaos.pick.getrandbits(40):x} {at}" for at in range(2048)]
    return [post(dumps({"model": MODEL, "input": texts}), "/v1/embeddings")]


_POISON: Final[dict[str, Callable[[Chaos], list[bytes]]]] = {
    "bytes in a header": _session,
    "every engine fails": lambda chaos: _text(chaos, FAIL),
    "every engine says infinity": lambda chaos: _text(chaos, INFINITE),
    "a rank that is none": _rank,
    "a member doubled": _members,
    "odd bodies": _odd_bodies,
    "odd heads": _odd_heads,
    "2,048 texts": _many_texts,
}


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
    "clients leave": leave,
    "clients stall": stall,
    "half heads": half_head,
    "half bodies": half_body,
    "pipelined": pipelined,
    "poison": poison,
}

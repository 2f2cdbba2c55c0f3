"""CPU time of this process per key looked up in Redis: redis-py against our client, rounds alternating; then the
time of a look-up right after a store of 1 MiB, on one connection and on two. The server's CPU is not included.
Without --redis the embedded Redis is started."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Literal

import msgspec
import uvloop
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from proxy.embedded.redis import EmbeddedRedis
from proxy.redis.cache import Cache, Stored
from proxy.redis.client import RedisClient
from proxy.redis.url import address
from proxy.wire.sse import chunk

BATCHES = (1, 8, 64)
UNDER_WAY = (1, 8)
SECONDS = 10.0
KEYS_A_ROUND = 4096
BYTES_A_ROUND = 32 << 20

Lookup = Callable[[Sequence[bytes]], Awaitable[object]]


class Frames(msgspec.Struct, array_like=True):
    """The format of the first implementation: the raw frames of a stream."""

    kind: Literal["stream", "whole"]
    created: float
    frames: list[bytes]
    content_type: str = "application/json"


class ByRedisPy:
    """The look-up with redis-py and hiredis: one MGET."""

    def __init__(self, url: str) -> None:
        self.redis = Redis.from_url(url, retry=Retry(NoBackoff(), 0), decode_responses=False, protocol=2)
        self._decode = msgspec.msgpack.Decoder(Frames).decode

    async def lookup(self, keys: Sequence[bytes]) -> list[Frames | None]:
        async with asyncio.timeout(SECONDS):
            values = await self.redis.mget([b"before:" + key.hex().encode() for key in keys])
        return [None if value is None else self._decode(value) for value in values]  # type: ignore[arg-type]


def frames(size: int) -> list[bytes]:
    """A complete stream of about `size` bytes, in events of at most 230 bytes as vLLM sends them."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}'
    last = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    event += b" " * (min(230, size) - len(event) - 2) + b"\n\n"
    return [*[event] * max(1, (size - len(last)) // len(event)), last, b"data: [DONE]\n\n"]


async def fill(url: str, size: int, keys: Sequence[bytes]) -> None:
    stream = frames(size)
    before = msgspec.msgpack.encode(Frames("stream", 1.0, stream))
    after = msgspec.msgpack.encode(Stored("stream", 1.0, b"".join(map(chunk, stream))))
    async with Redis.from_url(url) as redis:
        for key in keys:
            await redis.set(b"before:" + key.hex().encode(), before)
            await redis.set(b"gateway:" + key.hex().encode(), after)


async def cpu(lookup: Lookup, keys: Sequence[bytes], batch: int, under_way: int, rounds: int) -> float:
    """µs of CPU per key."""

    async def reader() -> None:
        for _ in range(rounds):
            await lookup(keys[:batch])

    began = time.process_time()
    await asyncio.gather(*(reader() for _ in range(under_way)))
    return (time.process_time() - began) / (rounds * under_way * batch) * 1e6


def spread(found: list[float]) -> str:
    return f"{statistics.median(found):.1f} ({min(found):.1f}–{max(found):.1f})"


async def own(cache: Cache, keys: Sequence[bytes]) -> list[Stored | None]:
    """One look-up by our client."""
    found: asyncio.Future[list[Stored | None]] = asyncio.get_running_loop().create_future()
    cache.lookup(keys, found.set_result)
    return await found


async def lookups(url: str, rounds: int) -> None:
    keys = [hashlib.sha256(b"%d" % n).digest() for n in range(max(BATCHES))]
    old = ByRedisPy(url)
    new = Cache(url, timeout=SECONDS, ttl=60, max_entry=1 << 20, max_pending=1 << 20)
    print("| value | keys per batch | batches in flight | redis-py, µs a key | ours, µs a key | ours ÷ redis-py |")
    print("|---|---|---|---|---|---|")
    for size in (200, 31_000):
        await fill(url, size, keys)
        if None in await old.lookup(keys) or None in await own(new, keys):
            raise SystemExit("a stored value is missing: is the memory of this Redis too small?")
        for batch in BATCHES:
            for under_way in UNDER_WAY:
                each = min(KEYS_A_ROUND, BYTES_A_ROUND // size)
                times = max(2, each // (batch * under_way))
                before, after = [], []
                for _ in range(rounds + 1):
                    before.append(await cpu(old.lookup, keys, batch, under_way, times))
                    after.append(await cpu(partial(own, new), keys, batch, under_way, times))
                del before[0], after[0]  # warm-up
                ratio = statistics.median(after) / statistics.median(before)
                row = (f"{size} B", batch, under_way, spread(before), spread(after), f"{ratio:.2f}")
                print("| " + " | ".join(map(str, row)) + " |", flush=True)
    await new.stop()
    await old.redis.aclose()


async def behind_a_store(url: str, times: int = 200) -> None:
    where = address(url)
    one, two = RedisClient(where, connect_timeout=SECONDS), RedisClient(where, connect_timeout=SECONDS)
    value = b"x" * (1 << 20)

    async def once(store: RedisClient | None) -> float:
        stored = store.call(b"SET", b"big", value, timeout=SECONDS) if store is not None else None
        began = time.perf_counter()
        await one.call(b"GET", b"small", timeout=SECONDS)
        took = (time.perf_counter() - began) * 1e6
        if stored is not None:
            await stored
        return took

    await asyncio.gather(
        one.call(b"SET", b"small", b"x" * 200, timeout=SECONDS), two.call(b"PING", timeout=SECONDS)
    )
    print("\n| a look-up of 200 B | p50 µs | p99 µs |\n|---|---|---|")
    for name, store in (("alone", None), ("behind 1 MiB, same connection", one), ("behind 1 MiB, another", two)):
        took = sorted([await once(store) for _ in range(times)])
        print(f"| {name} | {took[times // 2]:.0f} | {took[times * 99 // 100]:.0f} |")
    await one.close()
    await two.close()


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.micro.redis_lookup", description=__doc__)
    parser.add_argument("--redis", help="URL of a Redis; a few keys are written to it")
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    embedded = None if chosen.redis else EmbeddedRedis(64)
    url = chosen.redis or await embedded.start()  # type: ignore[union-attr]
    try:
        await lookups(url, chosen.rounds)
        await behind_a_store(url)
    finally:
        if embedded is not None:
            await embedded.stop()


if __name__ == "__main__":
    uvloop.run(main())

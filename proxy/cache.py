"""Owns what Redis holds for us: finished answers as their own raw frames, and the breaker that fails open.
Must not know flights, HTTP or policy: it is given keys and `Stored` values.
Called by the scheduler (lookup, store) and the app (lifecycle). No error of Redis leaves this file."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

PREFIX: Final = b"gateway:"
MAX_UNREADABLE: Final = 4096
STORE_SECONDS: Final = 1.0  # bound of one round of stores; no client waits for it

Op = Literal["hit", "miss", "error", "garbage", "store", "store_skipped", "bypassed"]


class Stored(msgspec.Struct, array_like=True):
    """One finished answer. `frames`: the stream's raw frames, or the one JSON body."""

    kind: Literal["stream", "whole"]
    created: float  # wall-clock seconds since the epoch, for `age`
    frames: list[bytes]
    content_type: str = "application/json"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(Stored).decode


class Breaker:
    """Pure. Open from the first failure on; whoever probes closes it again."""

    def __init__(self, *, pause: float = 0.25, longest: float = 5.0) -> None:
        self.open = False
        self._first, self._longest = pause, longest
        self.pause = pause  # seconds until the next probe

    def failure(self) -> bool:
        """True where this opened it. While it is open each further failure doubles the pause."""
        opened = not self.open
        self.pause = self._first if opened else min(self.pause * 2, self._longest)
        self.open = True
        return opened

    def success(self) -> bool:
        """True where this closed it."""
        closed, self.open = self.open, False
        return closed


class Cache:
    """Look-ups and stores, each bounded in time, each a round trip for many. Fails open: never raises.

    While the breaker is open nothing is asked of Redis on a request's path; a probe of our own closes it.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        ttl: int,
        max_entry: int,
        max_pending: int,
        record: Callable[[Op], None] = lambda op: None,
        on_breaker: Callable[[bool, str], None] = lambda open_, why: None,
    ) -> None:
        self._redis = Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=timeout,
            decode_responses=False,
            protocol=2,
        )
        self._timeout = timeout
        self._ttl = ttl
        self._max_entry = max_entry
        self._max_pending = max_pending
        self._record = record
        self._on_breaker = on_breaker
        self.breaker = Breaker()
        self._pending: deque[tuple[bytes, bytes, bool, Callable[[], None]]] = deque()
        self._pending_bytes = 0
        self._unreadable: set[bytes] = set()  # keys under which garbage was found: whatever comes next replaces it
        self._wanted = asyncio.Event()
        self._probe_wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Cache {'open' if self.breaker.open else 'closed'} pending={len(self._pending)}>"

    @property
    def available(self) -> bool:
        return not self.breaker.open

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._write_for_ever()),
            asyncio.create_task(self._probe_for_ever()),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._pending:
            self._pending.popleft()[3]()
        try:
            async with asyncio.timeout(self._timeout):
                await self._redis.aclose()
        except (TimeoutError, RedisError, OSError):
            pass  # it is going away anyhow

    async def lookup(self, keys: Sequence[bytes]) -> list[Stored | None]:
        """What is stored under each key, in one round trip; None where there is nothing, or no telling."""
        if self.breaker.open:
            self._record("bypassed")
            return [None] * len(keys)
        try:
            async with asyncio.timeout(self._timeout):
                values = await self._redis.mget([PREFIX + key.hex().encode() for key in keys])
        except (TimeoutError, RedisError, OSError) as e:
            self._failed(e)
            return [None] * len(keys)
        return [self._decode(key, value) for key, value in zip(keys, values, strict=True)]

    def _decode(self, key: bytes, value: bytes | str | None) -> Stored | None:
        if value is None:
            self._record("miss")
            return None
        try:
            stored = _DECODE(value)  # type: ignore[arg-type]  # bytes: decode_responses is off
        except msgspec.MsgspecError:
            self._record("garbage")
            if len(self._unreadable) < MAX_UNREADABLE:
                self._unreadable.add(key)
            return None
        self._record("hit")
        return stored

    def store(self, key: bytes, stored: Stored, settled: Callable[[], None], *, replace: bool = True) -> None:
        """Have an answer stored; `settled` is called once it is, or will not be. `replace=False` leaves what
        is already there."""
        value = _ENCODE(stored)
        size = len(value)
        if key in self._unreadable:
            self._unreadable.discard(key)
            replace = True
        if (
            self._ttl <= 0
            or size > self._max_entry
            or self._pending_bytes + size > self._max_pending
            or self.breaker.open
        ):
            self._record("store_skipped")
            settled()
            return
        self._pending.append((PREFIX + key.hex().encode(), value, replace, settled))
        self._pending_bytes += size
        self._wanted.set()

    async def _write_for_ever(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            batch = list(self._pending)
            self._pending.clear()
            try:
                await self._write(batch)
            finally:
                self._pending_bytes -= sum(len(value) for _, value, _, _ in batch)
                for *_, settled in batch:
                    settled()

    async def _write(self, batch: list[tuple[bytes, bytes, bool, Callable[[], None]]]) -> None:
        try:
            async with asyncio.timeout(STORE_SECONDS):
                pipe = self._redis.pipeline(transaction=False)
                for key, value, replace, _ in batch:
                    pipe.set(key, value, ex=self._ttl, nx=not replace)
                results = await pipe.execute(raise_on_error=False)
        except (TimeoutError, RedisError, OSError) as e:
            self._failed(e)
            return
        for result in results:
            # Full (OOM), read-only, loading: it answers, so look-ups go on; only this value is not kept.
            self._record("error" if isinstance(result, Exception) else "store")

    def _failed(self, e: BaseException) -> None:
        self._record("error")
        if isinstance(e, ResponseError) and not isinstance(e, (RedisConnectionError, RedisTimeoutError)):
            return  # it lives and said no
        if self.breaker.failure():
            self._on_breaker(True, _why(e, self._timeout))
        self._probe_wanted.set()

    async def _probe_for_ever(self) -> None:
        while True:
            await self._probe_wanted.wait()
            while self.breaker.open:
                await asyncio.sleep(self.breaker.pause)
                try:
                    async with asyncio.timeout(self._timeout):
                        await self._redis.ping()
                except (TimeoutError, RedisError, OSError):
                    self.breaker.failure()
                else:
                    self.breaker.success()
                    self._on_breaker(False, "it answers again")
            self._probe_wanted.clear()

    async def ping(self) -> bool:
        """Whether it answers now; opens the breaker where it does not."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._redis.ping()
        except (TimeoutError, RedisError, OSError) as e:
            self._failed(e)
            return False
        return True


def _why(e: BaseException, timeout: float) -> str:
    if isinstance(e, TimeoutError | RedisTimeoutError):
        return f"no answer within {timeout * 1000:g} ms"
    return type(e).__name__


def now() -> float:
    """The clock by which entries are dated, shared by all replicas."""
    return time.time()

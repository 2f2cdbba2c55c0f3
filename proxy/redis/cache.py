"""Owns what Redis holds for us: finished answers as they go to a client, and the breaker that fails open.
Must not know flights, HTTP or policy: it is given keys and `Stored` values.
Called by the scheduler (lookup, store) and the app (lifecycle). No error of Redis leaves this file."""

from __future__ import annotations

import asyncio
import math
import re
import time
from binascii import hexlify
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec

from proxy.redis.client import RedisAddress, RedisClient, address
from proxy.redis.resp import Lost, ReplyError, TooManyPending, Unhandled, WireError
from proxy.telemetry import raised
from proxy.wire import MAX_TOKENS, ChunkCheck, whole_body, whole_streams
from proxy.wire.fold import Shape

TAG_BYTES: Final = 4  # of a key: they say which model it is of, so that a model's answers can be flushed
KEY_BYTES: Final = TAG_BYTES + 32
MAX_UNREADABLE: Final = 4096
MAX_KNOWN: Final = 4 * 1024 * 1024
"""Bytes of values that are known to be sound; what they say takes as much again."""
_LAST: Final = 4
"""Frames at a stream's end that are looked at one by one: the last choice's end, usage, [DONE]."""
STORE_SECONDS: Final = 1.0  # bound of one store; no client waits for it
FLUSH_SECONDS: Final = 60.0  # bound of a flush
FLUSH_STEP: Final = 512  # keys that Redis looks at in one step of it: well under a millisecond
MAX_FLUSHED: Final = 1024  # models whose last flush is known
AWAY: Final = frozenset({"LOADING", "NOAUTH"})
"""Refusals that everything will meet until something changes over there. Full (OOM), read-only, moved: it
answers, so look-ups go on; only this one is not served."""

Op = Literal["hit", "miss", "error", "garbage", "store", "store_skipped", "bypassed", "other_build"]


class Stored(msgspec.Struct, array_like=True):
    """One finished answer, so that a hit is one joined write.

    `stream`: `body` is every frame in its HTTP chunk, joined, without the last chunk: what a client sees that
    asked for usage. One that did not sees `body[:cut] + tail`; with no `cut`, the same. `whole`: the JSON body.
    """

    kind: Literal["stream", "whole"]
    created: float  # wall-clock seconds since the epoch, for `age`
    body: bytes
    cut: int | None = None
    tail: bytes = b""
    content_type: str = "application/json"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    shape: Shape | None = None
    """Of the engine's streams, where their frames alone do not tell it."""
    build: bytes = b""
    """Of the engine that made it; see builds.py."""

    def sound(self, frames_of: ChunkCheck) -> bool:
        """Whether it is what an engine's whole answer leaves here, read as strictly as the wire: whoever can write
        to Redis can put words into our mouth, but not end an answer early, nor leave one without its end."""
        if not self.body or not 0 <= self.created < 1e11 or not self.content_type.isprintable():
            return False
        if not all(0 <= (count or 0) <= MAX_TOKENS for count in (self.prompt_tokens, self.completion_tokens)):
            return False
        if self.kind == "whole":
            return self.cut is None and not self.tail and whole_body(self.body)
        if self.cut is None:
            frames = frames_of(self.body)
            return not self.tail and frames is not None and whole_streams(frames[:-_LAST], [frames[-_LAST:]])
        if not 0 <= self.cut <= len(self.body):
            return False
        same, rest, tail = frames_of(self.body[: self.cut]), frames_of(self.body[self.cut :]), frames_of(self.tail)
        return None not in (same, rest, tail) and whole_streams(same or (), [rest or (), tail or ()])


def stream_views(full: Sequence[bytes], plain: Sequence[bytes]) -> tuple[bytes, int | None, bytes]:
    """`body`, `cut` and `tail` of a stream, from its chunks with usage and as if it had not been asked for."""
    body = b"".join(full)
    if plain is full:
        return body, None, b""
    same = cut = 0
    for one, other in zip(full, plain, strict=False):
        if one != other:
            break
        same += 1
        cut += len(one)
    if same == len(full) == len(plain):
        return body, None, b""
    return body, cut, b"".join(plain[same:])


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(Stored).decode


class Reader:
    """Reads stored values. One that was sound a moment ago, byte for byte, is not looked into again: it costs a
    comparison, where the look takes 50 µs for 131 frames."""

    __slots__ = ("_frames_of", "_held", "_known")

    def __init__(self) -> None:
        self._frames_of = ChunkCheck()
        self._known: OrderedDict[bytes, tuple[bytes, Stored]] = OrderedDict()
        self._held = 0  # bytes of values

    def read(self, key: bytes, value: Any) -> Stored | None:
        """What a value says; None for one that no gateway stores."""
        known = self._known.get(key)
        if known is not None and known[0] == value:
            return known[1]
        try:
            stored = _DECODE(value)
            if not stored.sound(self._frames_of):
                return None
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):  # not UTF-8; not even bytes
            return None
        if len(value) <= MAX_KNOWN // 8:
            self._keep(key, value, stored)
        return stored

    def _keep(self, key: bytes, value: bytes, stored: Stored) -> None:
        old = self._known.pop(key, None)
        self._held += len(value) - (len(old[0]) if old is not None else 0)
        self._known[key] = value, stored
        while self._held > MAX_KNOWN:
            _, (oldest, _) = self._known.popitem(last=False)
            self._held -= len(oldest)


class Availability:
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
    """Look-ups and stores, each bounded in time. A look-up of many keys is one command and no task.
    Fails open: never raises.

    While the breaker is open nothing is asked of Redis on a request's path; a probe of our own closes it.
    Stores have a connection of their own: their bytes and their longer bound are in no look-up's way.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        ttl: int,
        max_entry: int,
        max_pending: int,
        namespace: str = "gateway",
        record: Callable[[Op], None] = lambda op: None,
        on_breaker: Callable[[bool, str], None] = lambda open_, why: None,
    ) -> None:
        where = address(url)
        self._lookups = RedisClient(where, connect_timeout=timeout)
        self._stores = RedisClient(where, connect_timeout=timeout, max_pending=max_pending)
        self._timeout = timeout
        self._ttl = ttl
        self.max_entry = max_entry  # bytes
        self._prefix = namespace.encode() + b":"  # of every key
        self._record = record
        self._on_breaker = on_breaker
        self.breaker = Availability()
        self._reader = Reader()
        self._last_loss: WireError | None = None
        self._unreadable: set[bytes] = set()  # keys under which garbage was found: whatever comes next replaces it
        self._probe_wanted = asyncio.Event()
        self._probe: asyncio.Task[None] | None = None
        self._stopping = False
        self._where = where
        self._flushed: dict[bytes, float] = {}  # when what begins with it was flushed, monotonic

    def __repr__(self) -> str:
        return f"<Cache {'open' if self.breaker.open else 'closed'} {self._lookups!r} {self._stores!r}>"

    def renew(self, where: RedisAddress) -> None:
        """For connections from now on."""
        self._where = where
        self._lookups.renew(where)
        self._stores.renew(where)

    @property
    def available(self) -> bool:
        return not self.breaker.open

    async def start(self) -> None:
        self._probe = asyncio.create_task(self._probe_for_ever())

    async def stop(self) -> None:
        self._stopping = True
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        await self._lookups.close()
        await self._stores.close()

    def lookup(
        self,
        keys: Sequence[bytes],
        done: Callable[[list[Stored | None]], None],
        others: Sequence[bytes] = (),
    ) -> None:
        """Have `done` called with what is stored under each key: one round trip for all. None where there is
        nothing, or no telling. It may be called before this returns, and is called again, with nothing found,
        where it raised. `others`: a second key for each, for where the first has nothing; empty: none."""
        if self.breaker.open:
            self._record("bypassed")
            done([None] * len(keys))
            return

        def answered(reply: Any) -> None:
            try:
                done(self._read(keys, others, reply))
            except Exception as e:  # noqa: BLE001 - a batch whose reply is lost would wait for ever
                raised("the reply to a look-up", e)
                done([None] * len(keys))

        prefix = self._prefix
        asked = [prefix + hexlify(key) for key in keys]
        for key in others:
            if key:
                asked.append(prefix + hexlify(key))
        self._lookups.send([b"MGET", *asked], self._timeout, answered)

    def _read(self, keys: Sequence[bytes], others: Sequence[bytes], reply: Any) -> list[Stored | None]:
        if type(reply) is not list or len(reply) != len(keys) + len(others) - others.count(b""):
            self._failed(reply if isinstance(reply, WireError) else Lost("what it sent is no answer to MGET"))
            return [None] * len(keys)
        if others:
            keys, beside = list(keys), iter(reply[len(keys) :])
            for n, other in enumerate(others):
                found = next(beside) if other else None
                if found is not None and reply[n] is None:
                    keys[n], reply[n] = other, found
            reply = reply[: len(keys)]
        return [self._decode(key, value) for key, value in zip(keys, reply, strict=True)]

    def _decode(self, key: bytes, value: Any) -> Stored | None:
        if value is None:
            self._record("miss")
            return None
        stored = self._reader.read(key, value)
        if stored is None:
            self._record("garbage")
            if len(self._unreadable) < MAX_UNREADABLE:
                self._unreadable.add(key)
            return None
        self._record("hit")
        return stored

    def skip(self) -> None:
        """An answer is too large to be stored."""
        self._record("store_skipped")

    def store(
        self,
        key: bytes,
        stored: Stored,
        settled: Callable[[], None],
        *,
        replace: bool = True,
        asked: float = math.inf,
    ) -> None:
        """Have an answer stored; `settled` is called once it is, or will not be. `replace=False` leaves what
        is already there. `asked`: when it was asked for, monotonic; one of before a flush is not stored."""
        if self._flushed and asked <= max(self._flushed.get(begin, -math.inf) for begin in (b"", key[:TAG_BYTES])):
            self.skip()
            settled()
            return
        try:
            value = _ENCODE(stored)
        except (OverflowError, ValueError, TypeError):  # a number or a text that msgpack does not have
            self.skip()
            settled()
            return
        if key in self._unreadable:
            self._unreadable.discard(key)
            replace = True
        if self._ttl <= 0 or len(value) > self.max_entry or self.breaker.open:
            self._record("store_skipped")
            settled()
            return

        def done(reply: Any) -> None:
            try:
                if isinstance(reply, TooManyPending):
                    self._record("store_skipped")
                elif isinstance(reply, WireError):
                    self._failed(reply)
                else:
                    self._record("store")
            finally:
                settled()

        command = [b"SET", self._prefix + hexlify(key), value, b"EX", self._ttl, *(() if replace else (b"NX",))]
        self._stores.send(command, STORE_SECONDS, done)

    async def flush(self, begin: bytes = b"") -> int:
        """Remove the answers whose keys begin so, in small steps over a connection of its own. How many there
        were. Raises WireError where Redis does not answer, TimeoutError where it takes too long."""
        if len(self._flushed) >= MAX_FLUSHED:
            self._flushed = {b"": time.monotonic()}
        self._flushed[begin] = time.monotonic()
        self._reader = Reader()
        ours = re.compile(
            re.escape(self._prefix + hexlify(begin))
            + rb"[0-9a-f]{%d}(?:[0-9a-f]{2})?" % (2 * (KEY_BYTES - len(begin)))
        )
        pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", self._prefix) + hexlify(begin) + b"*"
        link = RedisClient(self._where, connect_timeout=self._timeout)
        removed, cursor = 0, b"0"
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._stores.call(b"PING", timeout=STORE_SECONDS)  # what was sent before is stored by then
                while True:
                    reply = await link.call(
                        *(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", FLUSH_STEP), timeout=STORE_SECONDS
                    )
                    cursor, found = _scanned(reply)
                    keys = [key for key in found if ours.fullmatch(key)]
                    if keys:
                        removed += int(await link.call(b"UNLINK", *keys, timeout=STORE_SECONDS))
                    if cursor == b"0":
                        return removed
        finally:
            await link.close()

    def _failed(self, e: WireError) -> None:
        if self._stopping or e is self._last_loss:
            return  # one loss is one error, however many commands it took along
        self._record("error")
        if isinstance(e, TooManyPending | Unhandled) or (isinstance(e, ReplyError) and e.code not in AWAY):
            return  # it lives
        self._last_loss = e
        if self.breaker.failure():
            self._on_breaker(True, str(e))
        self._probe_wanted.set()

    async def _probe_for_ever(self) -> None:
        while True:
            await self._probe_wanted.wait()
            while self.breaker.open:
                await asyncio.sleep(self.breaker.pause)
                try:
                    await self._lookups.call(b"PING", timeout=self._timeout)
                except WireError:
                    self.breaker.failure()
                else:
                    self.breaker.success()
                    self._on_breaker(False, "it answers again")
            self._probe_wanted.clear()

    async def ping(self) -> bool:
        """Whether it answers now; opens the breaker where it does not."""
        try:
            await self._lookups.call(b"PING", timeout=self._timeout)
        except WireError as e:
            self._failed(e)
            return False
        return True


def _scanned(reply: Any) -> tuple[bytes, list[bytes]]:
    """The next cursor and the keys of a step. Raises WireError."""
    match reply:
        case [bytes(cursor), [*keys]] if all(isinstance(key, bytes) for key in keys):
            return cursor, keys
    raise Lost("what it sent is no answer to SCAN")


def wall_clock() -> float:
    """The clock by which entries are dated, shared by all replicas."""
    return time.time()

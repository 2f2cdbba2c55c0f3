"""The answer cache: finished answers in Redis, in the bytes that go to a client. It fails open: no error of
Redis leaves this module."""

from __future__ import annotations

import asyncio
import math
import re
import time
from binascii import hexlify
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Literal

import msgspec

from proxy.redis.availability import Availability, OnChange, is_away
from proxy.redis.client import RedisClient
from proxy.redis.deployment import Deployment, SingleServer
from proxy.redis.flight_scripts import END, INTEREST, LOOK, STORE, FlightKeys
from proxy.redis.resp import Lost, NodeAway, ReplyError, TooManyPending, WireError, Word
from proxy.redis.url import address
from proxy.telemetry import raised
from proxy.wire import MAX_TOKENS, ChunkCheck, whole_body, whole_streams
from proxy.wire.fold import Shape

TAG_BYTES: Final = 4  # first bytes of a key: they identify the model, so that its answers can be flushed
KEY_BYTES: Final = TAG_BYTES + 32
MAX_UNREADABLE: Final = 4096
MAX_KNOWN: Final = 4 * 1024 * 1024
"""Bytes of values known to be sound; their decoded form takes as much again."""
_LAST: Final = 4
"""Frames at a stream's end that are checked one by one: the last choice's finish, usage, [DONE]."""
STORE_SECONDS: Final = 1.0  # timeout of one store, at least; no client waits for it
FLUSH_SECONDS: Final = 60.0  # timeout of a flush, and of each of its steps: nobody else waits for those
FLUSH_STEP: Final = 512  # keys per SCAN: well under a millisecond of Redis' time
MAX_FLUSHED: Final = 1024  # models whose last flush is remembered

Claim = tuple[bytes, int, bool, bytes, bytes]
"""Of one flight: the key of its stream, whether this node may lead it (1 or 0), whether an answer under either key
makes it needless, its fence, and the fence that it replaces or nothing."""
Held = list[bytes] | None

Op = Literal["hit", "miss", "error", "garbage", "store", "store_skipped", "bypassed", "other_build"]


class Stored(msgspec.Struct, array_like=True, gc=False):
    """One finished answer, stored so that a hit is a single write.

    kind `stream`: `body` is every frame in its HTTP chunk, joined, without the last chunk, as for a client that
    asked for usage. A client that did not gets `body[:cut] + tail`, or `body` where `cut` is None. kind `whole`:
    `body` is the JSON body.
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
    """The shape of the engine's streams, where the frames alone do not show it."""
    build: bytes = b""
    """The build of the engine that made it (`upstream/builds.py`)."""

    def sound(self, frames_of: ChunkCheck) -> bool:
        """Whether it is what a complete answer of an engine is stored as, read as strictly as an engine's answer:
        someone with write access to Redis can forge an answer, but not a truncated one."""
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
    """`body`, `cut` and `tail` of a stream, from its chunks with usage (`full`) and without (`plain`)."""
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
    """Decodes and checks stored values. A value found sound before, byte for byte, is not checked again: that
    costs a comparison instead of 50 µs for 131 frames."""

    __slots__ = ("_frames_of", "_held", "_known")

    def __init__(self) -> None:
        self._frames_of = ChunkCheck()
        self._known: OrderedDict[bytes, tuple[bytes, Stored]] = OrderedDict()
        self._held = 0  # bytes of values

    def read(self, key: bytes, value: Any) -> Stored | None:
        """The decoded value; None for one that no gateway stores."""
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


class Cache:
    """Look-ups and stores, each bounded in time. A look-up of many keys is one command and no task. Fails open:
    never raises, except for `flush`.

    While Redis is unavailable or refuses look-ups, look-ups miss and stores are skipped at once. A Redis that
    refuses stores alone (full, read-only) is still asked for answers. Stores have their own connection, so that
    their bytes and their longer timeout do not delay look-ups.
    """

    def __init__(
        self,
        redis: str | Deployment,
        *,
        timeout: float,
        ttl: int,
        max_entry: int,
        max_pending: int,
        namespace: str = "gateway",
        record: Callable[[Op, int], None] = lambda op, count: None,
        on_breaker: OnChange = lambda trouble: None,
        on_stores: OnChange = lambda trouble: None,
    ) -> None:
        """`redis`: the URL of one server, or a Deployment, which its owner starts. `record` is called with what
        happened, and how often; `on_breaker`: look-ups fail or work again; `on_stores`: stores are refused or
        accepted again."""
        self._redis = SingleServer(address(redis)) if isinstance(redis, str) else redis
        self._lookups = self._redis.client(connect_timeout=timeout)
        self._stores = self._redis.client(connect_timeout=timeout, max_pending=max_pending)
        self._timeout = timeout
        self._store_timeout = max(STORE_SECONDS, timeout)
        self._ttl = ttl
        self.max_entry = max_entry  # bytes
        self._prefix = namespace.encode() + b":"  # of every key
        self.flight_keys = FlightKeys(namespace)
        self._record = record
        self.availability = Availability(self._try_lookup, on_breaker)  # of look-ups
        self.accepts = Availability(self._try_store, on_stores)  # of stores alone
        self._stores_lost = False  # their connection was lost, and has not answered since
        self._reader = Reader()
        self._unreadable: set[bytes] = set()  # keys with an unreadable value, which the next store replaces
        self._claimant: tuple[Word, ...] = ()
        self._claims_refused: Callable[[WireError], None] = lambda error: None
        self._flushed: dict[bytes, float] = {}  # time of the last flush of each key prefix, monotonic

    def __repr__(self) -> str:
        return f"<Cache {'open' if self.availability.open else 'closed'} {self._lookups!r} {self._stores!r}>"

    @property
    def available(self) -> bool:
        return not self.availability.open

    async def start(self) -> None:
        self.availability.start()
        self.accepts.start()

    async def stop(self) -> None:
        await self.availability.stop()
        await self.accepts.stop()
        await self._lookups.close()
        await self._stores.close()

    def lookup(
        self,
        keys: Sequence[bytes],
        done: Callable[[list[Stored | None]], None],
        others: Sequence[bytes] = (),
    ) -> None:
        """Call `done` with the value stored under each key, all in one round trip; None for a miss or an error.
        `done` may be called before this returns, and is called again, with misses only, where it raised.
        `others`: a second key for each, used where the first one misses; b"" for none."""
        if self.availability.open:
            self._record("bypassed", 1)
            done([None] * len(keys))
            return

        def answered(reply: Any) -> None:
            try:
                done(self._read(keys, others, reply))
            except Exception as e:  # noqa: BLE001 - a batch without its reply would wait for ever
                raised("the reply to a look-up", e)
                done([None] * len(keys))

        prefix = self._prefix
        asked = [prefix + hexlify(key) for key in keys]
        for key in others:
            if key:
                asked.append(prefix + hexlify(key))
        # At once: all of a turn are in it, and another iteration takes 40 µs where the process was idle.
        self._lookups.send([b"MGET", *asked], self._timeout, answered, now=True)

    def claim_as(
        self, node: bytes, interest: float, expiry: float, on_refused: Callable[[WireError], None]
    ) -> None:
        """Claim as this node from now on: `interest` and `expiry` of a claim in seconds. `on_refused` is called
        where Redis refuses the claims, not the look-up."""
        self._claimant = (node, int(interest * 1000), int(expiry * 1000), self.flight_keys.inbox)
        self._claims_refused = on_refused

    def look(
        self,
        keys: Sequence[bytes],
        done: Callable[[list[Stored | None], Held], None],
        others: Sequence[bytes],
        claims: Sequence[Claim | None],
    ) -> None:
        """As `lookup`, and in the same round trip claim what is not stored. `done` gets for each key the fence
        that holds its claim, or nothing where it is stored or not claimed; None where Redis made no claims."""
        asked = list(map(self._prefix.__add__, map(hexlify, keys)))
        begin = self.flight_keys.begin
        names: list[bytes] = []
        words: list[Word] = []
        for n, claim in enumerate(claims):
            beside = 0
            if others[n]:
                asked.append(self._prefix + hexlify(others[n]))
                beside = len(asked)
            if claim is not None:
                key, lead, both, fence, instead = claim
                name = begin + hexlify(key) + END  # as `FlightKeys` does, without its calls
                names += (name, name + INTEREST)
                words += (n + 1, beside if both else 0, lead, fence, instead)

        def answered(reply: Any) -> None:
            held: Held = None
            if isinstance(reply, ReplyError) and not is_away(reply):
                self._claims_refused(reply)
                self.lookup(keys, alone, others)
                return
            if type(reply) is list and len(reply) == len(asked) + len(names) // 2:
                fences = iter(reply[len(asked) :])
                held = [next(fences) if claim is not None else b"" for claim in claims]
                reply = reply[: len(asked)]
            try:
                done(self._read(keys, others, reply), held)
            except Exception as e:  # noqa: BLE001 - a batch without its reply would wait for ever
                raised("the reply to a look-up", e)
                alone([None] * len(keys))

        def alone(values: list[Stored | None]) -> None:
            done(values, None)

        if self.availability.open:
            self.lookup(keys, alone, others)
        elif self._redis.sharded:
            self._look_apart(asked, names, words, answered)
        else:
            count = len(asked)
            command: list[Word] = [b"EVALSHA", LOOK.sha, count + len(names), *asked, *names, count]
            command += self._claimant
            command += words
            self._lookups.send(command, self._timeout, answered, now=True)

    def _look_apart(
        self, asked: Sequence[bytes], names: Sequence[bytes], words: Sequence[Word], done: Callable[[Any], None]
    ) -> None:
        """In a Cluster each claim goes to its slot, with the answer that is there; the other answers go beside."""
        values: list[Any] = [None] * len(asked)
        fences: list[Any] = [b""] * (len(names) // 2)
        left = 1 + len(fences)
        problem: WireError | None = None
        rest = set(range(len(asked)))

        def take(place: Callable[[list[Any]], None], reply: Any) -> None:
            nonlocal left, problem
            left -= 1
            if type(reply) is list:
                place(reply)
            elif not isinstance(reply, NodeAway):
                problem = reply if isinstance(reply, WireError) else Lost("an invalid reply to a look-up")
            if left == 0:
                done(problem if problem is not None else [*values, *fences])

        def claimed(claim: int, at: int, reply: list[Any]) -> None:
            values[at], fences[claim] = reply

        def looked(places: Sequence[int], reply: list[Any]) -> None:
            for at, value in zip(places, reply, strict=True):
                values[at] = value

        for claim in range(len(fences)):
            at, beside, lead, fence, instead = words[5 * claim : 5 * claim + 5]
            place = int(beside or at) - 1
            rest.discard(place)
            ours = (asked[place], names[2 * claim], names[2 * claim + 1])
            command = (b"EVALSHA", LOOK.sha, 3, *ours, 1, *self._claimant, 1, 0, lead, fence, instead)
            self._lookups.send(command, self._timeout, partial(take, partial(claimed, claim, place)))
        places = sorted(rest)
        if places:
            command = (b"MGET", *[asked[at] for at in places])
            self._lookups.send(command, self._timeout, partial(take, partial(looked, places)))
        else:
            take(lambda reply: None, [])

    def _read(self, keys: Sequence[bytes], others: Sequence[bytes], reply: Any) -> list[Stored | None]:
        if type(reply) is not list or len(reply) != len(keys) + len(others) - others.count(b""):
            self._failed(reply if isinstance(reply, WireError) else Lost("an invalid reply to MGET"))
            return [None] * len(keys)
        if others:
            keys, beside = list(keys), iter(reply[len(keys) :])
            for n, other in enumerate(others):
                found = next(beside) if other else None
                if found is not None and reply[n] is None:
                    keys[n], reply[n] = other, found
            reply = reply[: len(keys)]
        missed = reply.count(None)
        if missed:
            self._record("miss", missed)
        if missed == len(reply):
            return [None] * missed
        return [
            None if value is None else self._decode(key, value) for key, value in zip(keys, reply, strict=True)
        ]

    def _decode(self, key: bytes, value: Any) -> Stored | None:
        stored = self._reader.read(key, value)
        if stored is None:
            self._record("garbage", 1)
            if len(self._unreadable) < MAX_UNREADABLE:
                self._unreadable.add(key)
            return None
        self._record("hit", 1)
        return stored

    def skip(self) -> None:
        """Count an answer that is too large to be stored."""
        self._record("store_skipped", 1)

    def store(
        self,
        key: bytes,
        stored: Stored,
        settled: Callable[[], None],
        *,
        replace: bool = True,
        asked: float = math.inf,
        fence: bytes = b"",
    ) -> bool:
        """Store an answer; `settled` is called once it is stored or given up. `replace=False` keeps an existing
        value. `asked`: time of its request, monotonic; an answer requested before a flush is not stored. `fence`:
        of its claim, which ends in the same step. False: nothing is sent."""
        if self._flushed and asked <= max(self._flushed.get(begin, -math.inf) for begin in (b"", key[:TAG_BYTES])):
            self.skip()
            settled()
            return False
        try:
            value = _ENCODE(stored)
        except (OverflowError, ValueError, TypeError):  # a number or text that msgpack cannot encode
            self.skip()
            settled()
            return False
        if key in self._unreadable:
            self._unreadable.discard(key)
            replace = True
        if self._ttl <= 0 or len(value) > self.max_entry or self.availability.open or self.accepts.open:
            self._record("store_skipped", 1)
            settled()
            return False

        def done(reply: Any) -> None:
            try:
                if isinstance(reply, TooManyPending):
                    self._record("store_skipped", 1)
                elif isinstance(reply, WireError):
                    self._stores_lost = self._stores_lost or isinstance(reply, Lost)
                    self._failed(reply, self._stores_or_all(reply))
                else:
                    self._record("store", 1)
            finally:
                settled()

        name = hexlify(key)
        command = [b"SET", self._prefix + name, value, b"EX", self._ttl, *(() if replace else (b"NX",))]
        if fence:
            claim = self.flight_keys.begin + name + END
            keys = (self._prefix + name, claim, claim + INTEREST)
            words: tuple[Word, ...] = (value, self._ttl, int(replace), fence)
            script = (b"EVALSHA", STORE.sha, 3, *keys, *words)

            # Not `done` itself: a function that names itself is a reference cycle, and would hold the flight.
            def fenced(reply: Any) -> None:
                if isinstance(reply, ReplyError) and reply.code == "NOSCRIPT":
                    # The claim ends when its leader is asked for it.
                    self._stores.send(command, self._store_timeout, done)
                else:
                    done(reply)

            self._stores.send(script, self._store_timeout, fenced)
        else:
            self._stores.send(command, self._store_timeout, done)
        return True

    async def flush(self, begin: bytes = b"") -> int:
        """Remove the answers whose keys begin with `begin`, in small steps over a separate connection, and return
        their number. Raises WireError where Redis does not answer, TimeoutError after FLUSH_SECONDS."""
        if len(self._flushed) >= MAX_FLUSHED:
            self._flushed = {b"": time.monotonic()}
        self._flushed[begin] = time.monotonic()
        self._reader = Reader()
        ours = re.compile(
            re.escape(self._prefix + hexlify(begin))
            + rb"[0-9a-f]{%d}(?:[0-9a-f]{2})?" % (2 * (KEY_BYTES - len(begin)))
        )
        pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", self._prefix) + hexlify(begin) + b"*"
        links = self._redis.masters(connect_timeout=self._timeout)
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._stores.call(
                    b"PING", timeout=self._store_timeout
                )  # earlier stores have been carried out by then
                return sum([await self._remove(link, ours, pattern) for link in links])
        finally:
            for link in links:
                await link.close()

    async def _remove(self, link: RedisClient, ours: re.Pattern[bytes], pattern: bytes) -> int:
        """Remove the keys at one master that match, and return their number."""
        removed, cursor = 0, b"0"
        while True:
            reply = await link.call(
                *(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", FLUSH_STEP), timeout=FLUSH_SECONDS
            )
            cursor, found = _scanned(reply)
            keys = [key for key in found if ours.fullmatch(key)]
            if self._redis.sharded:  # a command takes the keys of one slot
                each = (self._stores.call(b"UNLINK", key, timeout=self._store_timeout) for key in keys)
                removed += sum(map(int, await asyncio.gather(*each)))
            elif keys:
                removed += int(await link.call(b"UNLINK", *keys, timeout=FLUSH_SECONDS))
            if cursor == b"0":
                return removed

    def _failed(self, e: WireError, breaker: Availability | None = None) -> None:
        if (breaker or self.availability).failed(e):
            self._record("error", 1)

    def _stores_or_all(self, e: WireError) -> Availability:
        """The breaker that an error of a store is about."""
        return self.accepts if isinstance(e, ReplyError) and not is_away(e) else self.availability

    async def _try_lookup(self) -> None:
        """Look up two keys, as a batch does. A node of a Redis Cluster refuses them: they are of two slots. After
        a loss the connection of stores must answer too, or the next store would open the breaker again."""
        keys = (self._prefix + b"probe:1", self._prefix + b"probe:2")
        reply = await self._lookups.call(b"MGET", *keys, timeout=self._timeout)
        if type(reply) is not list or len(reply) != len(keys):
            raise Lost("an invalid reply to MGET")
        if self._stores_lost:
            await self._stores.call(b"MGET", keys[0], timeout=self._timeout)
            self._stores_lost = False

    async def _try_store(self) -> None:
        command = (b"SET", self._prefix + b"probe:1", b"", b"PX", 1)
        try:
            await self._stores.call(*command, timeout=self._store_timeout)
        except NodeAway:
            return  # the other masters of a Cluster accept stores, or the next one is refused
        except WireError as e:
            if self._stores_or_all(e) is self.availability:
                self._stores_lost = self._stores_lost or isinstance(e, Lost)
                self._failed(e)
            raise

    async def ping(self) -> bool:
        """Whether Redis looks up and stores now. A failure counts for the breakers."""
        try:
            await self._try_lookup()
        except WireError as e:
            self._failed(e)
            return False
        if self._ttl <= 0:
            return True
        try:
            await self._try_store()
        except WireError as e:
            self._failed(e, self._stores_or_all(e))
            return False
        return True


def _scanned(reply: Any) -> tuple[bytes, list[bytes]]:
    """The next cursor and the keys of a SCAN reply. Raises WireError."""
    match reply:
        case [bytes(cursor), [*keys]] if all(isinstance(key, bytes) for key in keys):
            return cursor, keys
    raise Lost("an invalid reply to SCAN")


wall_clock: Final[Callable[[], float]] = time.time
"""The clock that dates entries: Unix time, comparable between replicas."""

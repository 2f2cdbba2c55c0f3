"""The cache over links in memory: what is counted, when it asks nothing, how it probes, what a flush removes."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest

from proxy.redis import cache as module
from proxy.redis import deployment
from proxy.redis.cache import (
    FLUSH_SECONDS,
    FLUSH_STEP,
    KEY_BYTES,
    MAX_FLUSHED,
    MAX_UNREADABLE,
    STORE_SECONDS,
    TAG_BYTES,
    Cache,
    Stored,
)
from proxy.redis.client import RedisClient
from proxy.redis.resp import Lost, ReplyError, TooManyPending, Unhandled, WireError
from tests.kit.clock import virtual

BODY = b'{"choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":"stop"}]}'
STORED = Stored("whole", 1.0, BODY)
KEY = bytes(range(KEY_BYTES))
PROBE = [b"MGET", b"gateway:probe:1", b"gateway:probe:2"]


class Memory:
    """A link that keeps what it is sent; the test replies."""

    def __init__(self) -> None:
        self.sent: list[list[Any]] = []
        self.bounds: list[float] = []
        self.waiting: list[Callable[[Any], None]] = []
        self.closed = False
        self.answers: list[Any] = []  # given at once, in their order
        self.times: list[float] = []  # of what was answered so

    def send(self, command: list[Any], timeout: float, done: Callable[[Any], None], *, now: bool = False) -> None:
        self.sent.append(command)
        self.bounds.append(timeout)
        self.waiting.append(done)

    def call(self, *command: Any, timeout: float) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()

        def done(reply: Any) -> None:
            if isinstance(reply, WireError):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        self.send(list(command), timeout, done)
        if self.answers:
            self.times.append(asyncio.get_running_loop().time())
            self.reply(self.answers.pop(0))
        return future

    def reply(self, reply: Any) -> None:
        self.waiting.pop(0)(reply)

    async def close(self) -> None:
        self.closed = True


class House:
    def __init__(self, **more: Any) -> None:
        self.seen: list[str] = []
        self.told: list[str | None] = []
        self.stores_told: list[str | None] = []
        self.settled = 0
        settings: dict[str, Any] = {"timeout": 0.5, "ttl": 60, "max_entry": 1000, "max_pending": 5000} | more
        self.cache = Cache(
            "unix:///none",
            record=lambda op, count: self.seen.extend([op] * count),
            on_breaker=lambda trouble: self.told.append(trouble if trouble is None else str(trouble)),
            on_stores=lambda trouble: self.stores_told.append(trouble if trouble is None else str(trouble)),
            **settings,
        )
        self.lookups, self.stores = Memory(), Memory()
        self.cache._lookups, self.cache._stores = cast(RedisClient, self.lookups), cast(RedisClient, self.stores)

    def store(self, key: bytes = KEY, stored: Stored = STORED, **more: Any) -> None:
        self.cache.store(key, stored, self.count, **more)

    def count(self) -> None:
        self.settled += 1

    def heard(self) -> list[str]:
        seen, self.seen[:] = self.seen[:], []
        return seen


# -- stores ---------------------------------------------------------------------------------------------


class Settled:
    """What a store calls at its end, as a flight's."""

    def __call__(self) -> None:
        pass


@pytest.mark.parametrize(
    "replies", [[b"OK"], [ReplyError("NOSCRIPT none"), b"OK"]], ids=["stored", "stored again"]
)
@pytest.mark.parametrize("fence", [b"", b"f1"])
def test_a_store_that_has_ended_holds_nothing_of_its_flight(fence: bytes, replies: list[Any]) -> None:
    house = House()
    settled = Settled()
    gone = weakref.ref(settled)
    gc.collect()
    gc.disable()
    try:
        house.cache.store(KEY, STORED, settled, fence=fence)
        del settled
        for reply in replies if fence else replies[-1:]:
            assert gone() is not None
            house.stores.reply(reply)
        assert gone() is None
    finally:
        gc.enable()
    assert house.seen == ["store"]
    assert [command[0] for command in house.stores.sent] == ([b"EVALSHA"] if fence else []) + [b"SET"] * (
        len(replies) - 1 if fence else 1
    )


def test_a_store_is_a_set_with_its_time_to_live_and_its_own_bound() -> None:
    house = House(namespace="ns")
    house.store()
    house.store(replace=False)
    first, second = house.stores.sent
    assert first[:2] + first[3:] == [b"SET", b"ns:" + KEY.hex().encode(), b"EX", 60]
    assert second == [*first, b"NX"]
    assert (house.stores.bounds, house.settled, house.seen) == ([STORE_SECONDS] * 2, 0, [])
    house.stores.reply(b"OK")
    house.stores.reply(None)
    assert (house.settled, house.seen, house.lookups.sent) == (2, ["store", "store"], [])


@pytest.mark.parametrize("ttl", [0, 1])
@pytest.mark.parametrize("spare", [0, -1])
def test_what_may_not_be_stored_is_settled_at_once(ttl: int, spare: int) -> None:
    size = len(module._ENCODE(STORED))
    house = House(ttl=ttl, max_entry=size + spare)
    house.store()
    kept = ttl > 0 and spare >= 0
    assert len(house.stores.sent) == kept
    assert (house.settled, house.seen) == ((0, []) if kept else (1, ["store_skipped"]))


def test_what_cannot_be_written_down_is_settled_at_once() -> None:
    house = House()
    for n, odd in enumerate((2**70, "\ud800", object()), 1):
        house.store(stored=Stored("whole", 1.0, BODY, content_type=cast(str, odd)))
        assert (house.settled, house.seen, house.stores.sent) == (n, ["store_skipped"] * n, [])


@pytest.mark.parametrize(
    ("reply", "seen", "opens"),
    [
        (TooManyPending("full"), ["store_skipped"], False),
        (Unhandled("ours"), ["error"], False),
        (ReplyError("OOM no"), ["error"], False),
        (ReplyError("LOADING now"), ["error"], True),
        (Lost("gone"), ["error"], True),
    ],
)
def test_what_becomes_of_a_store(reply: WireError, seen: list[str], opens: bool) -> None:
    house = House()
    house.store()
    house.stores.reply(reply)
    assert (house.seen, house.settled, house.cache.available) == (seen, 1, not opens)
    refused = isinstance(reply, ReplyError) and not opens
    assert house.told == ([str(reply)] if opens else [])
    assert house.stores_told == ([str(reply)] if refused else [])
    house.heard()
    house.store()
    assert (house.seen, house.settled) == ((["store_skipped"], 2) if opens or refused else ([], 1))


def test_a_count_that_raises_settles_none_the_less() -> None:
    house = House()
    house.cache._record = lambda op, count: 1 // 0  # type: ignore[assignment]
    house.store()
    with pytest.raises(ZeroDivisionError):
        house.stores.reply(b"OK")
    assert house.settled == 1


def test_where_garbage_was_found_the_next_store_replaces_it_once() -> None:
    house = House()
    house.cache._decode(KEY, b"garbage")
    for _ in range(2):
        house.store(replace=False)
    assert [command[-1] == b"NX" for command in house.stores.sent] == [False, True]
    for n in range(MAX_UNREADABLE + 5):
        house.cache._decode(b"%d" % n, b"garbage")
    assert len(house.cache._unreadable) == MAX_UNREADABLE
    assert house.seen == ["garbage"] * (MAX_UNREADABLE + 6)


# -- look-ups -------------------------------------------------------------------------------------------


async def test_a_receiver_that_raises_is_told_of_and_gets_nothing_found() -> None:
    faults: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["message"]))
    house, heard = House(), list[Any]()

    def done(found: Any) -> None:
        heard.append(found)
        if len(heard) == 1:
            raise ZeroDivisionError

    house.cache.lookup([KEY, KEY], done)
    house.lookups.reply([None, None])
    assert (heard, faults) == ([[None, None]] * 2, ["the reply to a look-up"])


@pytest.mark.parametrize("reply", [b"OK", [None], [None] * 3, None])
def test_an_answer_that_is_none_to_mget_opens_the_breaker(reply: Any) -> None:
    house, heard = House(), list[Any]()
    house.cache.lookup([KEY, KEY], heard.append)
    assert house.lookups.bounds == [0.5]
    house.lookups.reply(reply)
    assert (heard, house.seen) == ([[None, None]], ["error"])
    assert house.told == ["an invalid reply to MGET"]
    house.cache.lookup([KEY], heard.append)
    assert (heard[1:], house.seen[1:], len(house.lookups.sent)) == ([[None]], ["bypassed"], 1)


def test_one_loss_is_one_error_however_many_it_took_along_and_another_is_another() -> None:
    house, heard = House(), list[Any]()
    for _ in range(3):
        house.cache.lookup([KEY], heard.append)
    loss = Lost("gone")
    house.lookups.reply(loss)
    house.lookups.reply(loss)
    assert (house.seen, len(house.told)) == (["error"], 1)
    house.lookups.reply(Lost("gone again"))
    assert (house.seen, len(house.told), len(heard)) == (["error", "error"], 1, 3)


# -- the breaker's probe --------------------------------------------------------------------------------


@virtual
async def test_a_probe_of_our_own_closes_the_breaker_and_each_failure_makes_it_rarer() -> None:
    house = House()
    loop = asyncio.get_running_loop()
    await house.cache.start()
    await asyncio.sleep(60.0)
    assert house.lookups.sent == []
    for _ in range(2):
        began = loop.time()
        house.lookups.answers = [Lost("still"), ReplyError("LOADING x"), [None, None]]
        house.stores.answers = [[None]]
        house.store()
        house.stores.reply(Lost("gone"))
        await asyncio.sleep(30.0)
        assert [at - began for at in house.lookups.times] == pytest.approx([0.25, 0.75, 1.75])
        assert house.cache.available
        house.lookups.times.clear()
    assert house.lookups.sent == [PROBE] * 6
    assert house.lookups.bounds == [0.5] * 6
    assert house.told == ["gone", None] * 2
    await house.cache.stop()
    assert (house.lookups.closed, house.stores.closed) == (True, True)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    house.store()
    house.stores.reply(Lost("the gateway is shutting down"))
    assert house.cache.available, "the end is no error"


@virtual
async def test_after_a_loss_on_the_connection_of_stores_it_is_back_once_that_answers_too() -> None:
    house = House()
    await house.cache.start()
    house.lookups.answers = [[None, None]] * 3
    house.stores.answers = [Lost("still"), Lost("still"), [None]]
    house.store()
    house.stores.reply(Lost("gone"))
    seen = []
    for seconds in (1.7, 0.1):
        await asyncio.sleep(seconds)
        seen.append(house.cache.available)
    assert seen == [False, True]
    assert (house.told, house.stores.sent[1:]) == (["gone", None], [[b"MGET", b"gateway:probe:1"]] * 3)
    house.lookups.answers = [[None, None]]
    house.cache.lookup([KEY], lambda found: None)
    house.lookups.reply(Lost("gone"))
    await asyncio.sleep(0.3)
    assert house.cache.available, "the connection of stores is not asked without a loss there"
    await house.cache.stop()


@virtual
async def test_a_ping_does_what_requests_ask_and_opens_the_breaker_where_it_fails() -> None:
    house = House()
    for lookup, store, good in (
        ([None, None], b"OK", True),
        ([None, None], ReplyError("READONLY x"), False),
        ([None, None], Lost("gone"), False),
    ):
        house.lookups.answers, house.stores.answers = [lookup], [store]
        assert await house.cache.ping() is good
        assert house.cache.available is not isinstance(store, Lost)
    assert (house.lookups.sent, house.stores.sent) == ([PROBE] * 3, [[b"SET", PROBE[1], b"", b"PX", 1]] * 3)
    assert (house.told, house.stores_told) == (["gone"], [str(ReplyError("READONLY x"))])
    assert house.heard() == ["error", "error"]
    for bad in (ReplyError("CROSSSLOT x"), [None], b"PONG"):
        house = House()
        house.lookups.answers = [bad]
        assert not await house.cache.ping()
        assert not house.cache.available
        assert house.stores.sent == []
    house = House(ttl=0)
    house.lookups.answers = [[None, None]]
    assert await house.cache.ping()
    assert house.stores.sent == []


@virtual
async def test_stores_that_are_refused_are_skipped_until_one_is_accepted_and_look_ups_go_on() -> None:
    house = House()
    await house.cache.start()
    house.stores.answers = [ReplyError("OOM x"), b"OK"]
    house.store()
    house.stores.reply(ReplyError("OOM x"))
    house.store()
    assert (house.heard(), len(house.stores.sent)) == (["error", "store_skipped"], 1)
    house.cache.lookup([KEY], lambda found: None)
    assert len(house.lookups.sent) == 1
    await asyncio.sleep(0.8)
    house.store()
    assert (len(house.stores.sent), len(house.stores_told), house.told) == (4, 1, [])
    await asyncio.sleep(30.0)
    assert house.stores_told == [str(ReplyError("OOM x")), None]
    house.stores.waiting.clear()
    house.stores.answers = [Lost("gone"), b"OK"]
    house.store()
    house.stores.reply(ReplyError("OOM x"))
    await asyncio.sleep(0.3)
    assert house.told == ["gone"], "a loss concerns look-ups too"
    await house.cache.stop()


# -- flushes --------------------------------------------------------------------------------------------


class Scanned:
    """A Redis whose SCAN has these steps."""

    def __init__(self, *steps: Any) -> None:
        self.steps = list(steps)
        self.commands: list[tuple[Any, ...]] = []
        self.closed = 0

    def __call__(self, where: Any, *, connect_timeout: float, max_pending: int) -> Scanned:
        return self

    async def call(self, *command: Any, timeout: float) -> Any:
        assert timeout == FLUSH_SECONDS
        self.commands.append(command)
        if command[0] == b"UNLINK":
            return len(command) - 1
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    async def close(self) -> None:
        self.closed += 1


async def flushed(house: House, begin: bytes = b"") -> int:
    task = asyncio.ensure_future(house.cache.flush(begin))
    await asyncio.sleep(0)
    assert house.stores.sent[-1] == [b"PING"]
    house.stores.waiting.pop()(b"PONG")
    return await task


def named(key: bytes, more: bytes = b"") -> bytes:
    return b"gateway:" + key.hex().encode() + more


@virtual
async def test_a_flush_goes_step_by_step_and_removes_our_keys_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()
    ours = [named(KEY), named(KEY, b"01")]
    foreign = [named(KEY, b"0"), named(KEY[:-1]), named(KEY, b"0123"), b"x" + named(KEY), named(KEY).upper()]
    redis = Scanned([b"7", [*ours, *foreign]], [b"9", foreign], [b"0", ours[:1]])
    monkeypatch.setattr(deployment, "RedisClient", redis)
    assert await flushed(house) == 3
    scans = [command for command in redis.commands if command[0] == b"SCAN"]
    assert [command[1] for command in scans] == [b"0", b"7", b"9"]
    assert scans[0][2:] == (b"MATCH", b"gateway:*", b"COUNT", FLUSH_STEP)
    assert [command[1:] for command in redis.commands if command[0] == b"UNLINK"] == [tuple(ours), tuple(ours[:1])]
    assert redis.closed == 1
    tag = KEY[:TAG_BYTES]
    redis = Scanned([b"0", [named(KEY), named(b"\xff" * KEY_BYTES)]])
    monkeypatch.setattr(deployment, "RedisClient", redis)
    assert await flushed(house, tag) == 1
    assert redis.commands[0][3] == b"gateway:" + tag.hex().encode() + b"*"


@pytest.mark.parametrize(
    "step", [Lost("gone"), b"OK", [b"0"], [b"0", [1]], [0, []], [b"0", None], [b"0", [], []], None]
)
@virtual
async def test_a_flush_that_fails_is_told_and_its_connection_closed(
    monkeypatch: pytest.MonkeyPatch, step: Any
) -> None:
    house, redis = House(namespace="a*b"), Scanned(step)
    monkeypatch.setattr(deployment, "RedisClient", redis)
    with pytest.raises(Lost, match="gone" if isinstance(step, Lost) else "invalid reply to SCAN"):
        await flushed(house)
    assert (redis.closed, redis.commands[0][3]) == (1, b"a\\*b:*")


@virtual
async def test_what_was_asked_for_before_a_flush_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    house = House()
    monkeypatch.setattr(deployment, "RedisClient", Scanned(*([[b"0", []]] * 3)))
    house.store(asked=0.0)
    assert len(house.stores.sent) == 1
    await flushed(house, KEY[:TAG_BYTES])
    other = b"\xff" * KEY_BYTES
    sent = len(house.stores.sent)
    for key, asked, stored in ((KEY, 99.0, 0), (KEY, 100.0, 0), (KEY, 100.1, 1), (other, 99.0, 2)):
        house.store(key, asked=asked)
        assert len(house.stores.sent) == sent + stored
    assert (house.settled, house.heard()) == (2, ["store_skipped"] * 2)
    clock[0] = 200.0
    house.stores.waiting.clear()
    await flushed(house)
    sent = len(house.stores.sent)
    house.store(other, asked=200.0)
    assert len(house.stores.sent) == sent
    house.store(other)
    assert len(house.stores.sent) == sent + 1


@virtual
async def test_of_many_flushes_few_are_known_and_then_all_counts_as_flushed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    house = House()
    monkeypatch.setattr(deployment, "RedisClient", Scanned([b"0", []], [b"0", []]))
    house.cache._flushed = {n.to_bytes(TAG_BYTES, "big"): 1.0 for n in range(MAX_FLUSHED - 1)}
    reader = house.cache._reader
    await flushed(house, b"\xdd" * TAG_BYTES)
    assert len(house.cache._flushed) == MAX_FLUSHED
    assert house.cache._reader is not reader, "what it knows is of before"
    clock[0] = 150.0
    await flushed(house, b"\xee" * TAG_BYTES)
    assert house.cache._flushed == {b"": 150.0, b"\xee" * TAG_BYTES: 150.0}
    sent = len(house.stores.sent)
    house.store(b"\xff" * KEY_BYTES, asked=149.0)
    assert len(house.stores.sent) == sent


def test_each_key_that_is_asked_for_is_counted() -> None:
    house, heard = House(), list[Any]()
    value = module._ENCODE(STORED)
    house.cache.lookup([KEY, b"b", b"c"], heard.append)
    assert house.lookups.sent == [[b"MGET", *(b"gateway:" + key.hex().encode() for key in (KEY, b"b", b"c"))]]
    house.lookups.reply([value, None, b"garbage"])
    assert (heard, house.seen) == ([[STORED, None, None]], ["miss", "hit", "garbage"])

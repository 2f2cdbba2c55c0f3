"""How much of engines' answers one turn of the loop handles: bounded for all together, fair, complete."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from proxy.upstream.http.connection import Connection
from proxy.upstream.http.pool import Pool
from proxy.upstream.http.read_budget import SMALL, ReadBudget
from tests.kit.connection_kit import Loop
from tests.kit.engine import Engine
from tests.kit.running import until
from tests.kit.taker import Taker

KIB = 1024
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"


class Reader:
    """A connection that has so many reads of so many bytes to handle."""

    def __init__(self, budget: ReadBudget, name: str, order: list[str], *sizes: int) -> None:
        self.budget, self.name, self.order, self.sizes = budget, name, order, list(sizes)

    def read(self) -> None:
        if self.sizes and not self.budget.take(self.sizes[0]):
            self.budget.wait(self)
        elif self.sizes:
            self.order.append(self.name)
            self.sizes.pop(0)

    def deliver(self) -> int:
        self.order.append(self.name)
        size = self.sizes.pop(0)
        if self.sizes:
            self.read()
        return size


async def test_a_turn_handles_its_bytes_and_the_rest_waits_in_turns() -> None:
    budget = ReadBudget(asyncio.get_running_loop(), 100)
    order: list[str] = []
    readers = [Reader(budget, name, order, 60, 60, 60) for name in "abc"]
    for reader in readers:
        reader.read()
    assert order == ["a", "b"]  # the last one let through may pass the bound
    readers[0].read()
    readers[1].read()
    assert order == ["a", "b"]
    await until(lambda: not any(reader.sizes for reader in readers))
    assert order == ["a", "b", "c", "a", "b", "c", "a", "b", "c"]
    assert budget.most == 120


async def test_one_that_is_gone_does_not_wait() -> None:
    budget = ReadBudget(asyncio.get_running_loop(), 10)
    order: list[str] = []
    first, second = (Reader(budget, name, order, 20) for name in "ab")
    first.read()
    second.read()
    budget.drop(second)
    for _ in range(3):
        await asyncio.sleep(0)
    assert order == ["a"]
    assert budget.take(5)


@pytest.fixture
async def pool(engine: Engine) -> Pool:
    loop = asyncio.get_running_loop()
    return Pool(engine.url, connect_timeout=5, loop=loop, reading=ReadBudget(loop, 64 * KIB))


async def exchanges(engine: Engine, pool: Pool, count: int) -> list[tuple[Connection, Taker]]:
    found = []
    for _ in range(count):
        connection, taker = await pool.connect(), Taker()
        connection.send(pool.request("GET", "/x", (), b""), taker)
        await engine.next_request()
        found.append((connection, taker))
    return found


async def test_connections_that_send_at_once_share_a_turn_and_lose_nothing(engine: Engine, pool: Pool) -> None:
    found = await exchanges(engine, pool, 8)
    body = bytes(range(256)) * 800
    for connection, _ in found:
        connection.data_received(HEAD % len(body) + body[: 48 * KIB])
        connection.data_received(body[48 * KIB : 96 * KIB])
        connection.data_received(body[96 * KIB :])
    assert sum(len(taker.data) for _, taker in found) == 96 * KIB  # two reads of one: the first may pass the bound
    await until(lambda: all(taker.endings for _, taker in found))
    assert all(taker.data == body and taker.endings == [None] for _, taker in found)
    assert pool.reading.most <= len(body) + 1024 + 64 * KIB
    assert {pool.take() for _ in found} == {connection for connection, _ in found}


async def test_small_reads_pass_at_once_whatever_waits(engine: Engine, pool: Pool) -> None:
    (one, first), (two, second) = await exchanges(engine, pool, 2)
    for connection in (one, two):
        connection.data_received(HEAD % 10**6 + b"x" * 64 * KIB)
    two_has = len(second.data)
    assert (len(first.data), two_has) == (64 * KIB, 0)
    (three, third) = (await exchanges(engine, pool, 1))[0]
    three.data_received(HEAD % 5 + b"token")
    assert third.data == b"token"
    two.data_received(b"y" * (SMALL // 2))  # its own order is kept
    await until(lambda: not (len(second.data) < 64 * KIB + SMALL // 2))
    assert second.data == b"x" * 64 * KIB + b"y" * (SMALL // 2)
    one.abort()
    two.abort()


async def test_the_end_of_a_connection_comes_after_what_it_had_read(engine: Engine, pool: Pool) -> None:
    (one, _), (two, second) = await exchanges(engine, pool, 2)
    one.data_received(HEAD % 10**6 + b"x" * 64 * KIB)
    two.data_received(HEAD % (64 * KIB) + b"z" * 64 * KIB)
    assert second.endings == []
    transport = two._transport
    assert transport is not None
    two.connection_lost(None)
    transport.abort()
    assert (second.data, second.endings) == (b"z" * 64 * KIB, [None])
    one.abort()


async def test_one_that_is_aborted_hears_no_more(engine: Engine, pool: Pool) -> None:
    (one, _), (two, second) = await exchanges(engine, pool, 2)
    one.data_received(HEAD % 10**6 + b"x" * 64 * KIB)
    two.data_received(HEAD % 10**6 + b"z" * 64 * KIB)
    two.abort()
    for _ in range(3):
        await asyncio.sleep(0)
    assert (second.data, second.endings) == (b"", [])
    one.abort()


async def test_a_fault_of_one_receiver_ends_it_alone(
    engine: Engine, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, words: told.append(words["message"]))
    (one, _), (two, second), (three, third) = await exchanges(engine, pool, 3)
    for connection in (one, two, three):
        connection.data_received(HEAD % (64 * KIB) + b"x" * 64 * KIB)

    def fault(data: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(second, "body", fault)
    await until(lambda: bool(third.endings and second.endings))
    assert (third.data, third.endings) == (b"x" * 64 * KIB, [None])
    assert second.endings != [None]
    assert told == ["an engine's answer"]


async def test_a_reader_that_lags_and_a_turn_that_is_full_are_one_pause(engine: Engine, pool: Pool) -> None:
    (one, _), (two, second) = await exchanges(engine, pool, 2)
    transport = two._transport
    assert transport is not None
    one.data_received(HEAD % 10**6 + b"x" * 64 * KIB)
    two.data_received(HEAD % 10**6 + b"z" * 64 * KIB)
    assert not transport.is_reading()
    two.throttle(second, hold=True)
    await until(lambda: bool(second.data))
    assert not transport.is_reading()  # the turn has come, the reader still lags
    two.throttle(second, hold=False)
    assert transport.is_reading()
    one.abort()
    two.abort()


async def test_one_turn_of_the_loop_has_one_of_the_budget_s() -> None:
    budget = ReadBudget(asyncio.get_running_loop(), 10)
    delivered: list[int] = []

    class Endless:
        def deliver(self) -> int:
            delivered.append(10)
            if len(delivered) < 8:
                budget.wait(self)
            return 10

    budget.wait(Endless())
    for turns in range(9):
        assert len(delivered) == min(turns, 8)
        await asyncio.sleep(0)


class Sized:
    """A connection that handles so many bytes each time it is called."""

    def __init__(self, size: int, then: Callable[[], None] = lambda: None) -> None:
        self.size, self.then, self.calls = size, then, 0

    def deliver(self) -> int:
        self.calls += 1
        self.then()
        return self.size


def budget_of(size: int) -> tuple[ReadBudget, Loop]:
    loop = Loop()
    return ReadBudget(cast(asyncio.AbstractEventLoop, loop), size), loop


def test_a_turn_s_bytes_are_counted_to_the_last_and_come_back() -> None:
    budget, loop = budget_of(10)
    assert [budget.take(size) for size in (9, 1, 1)] == [True, True, False]
    assert (budget.most, repr(budget)) == (10, "<ReadBudget 0 of 10 left, 0 wait>")
    assert len(loop.handles) == 1
    loop.run()
    assert budget.take(25)
    assert (budget.most, repr(budget)) == (25, "<ReadBudget -15 of 10 left, 0 wait>")
    assert not budget.take(1)
    loop.run()
    assert budget.take(1)
    assert budget.most == 25


def test_with_nothing_to_do_no_turn_is_due_and_the_next_read_has_one() -> None:
    budget, loop = budget_of(10)
    assert budget.take(1)
    loop.run()
    loop.run()
    assert (loop.handles, budget._due) == ([], None)
    waiting = Sized(1)
    budget.wait(waiting)
    budget.wait(waiting)
    assert (len(loop.handles), repr(budget)) == (1, "<ReadBudget 10 of 10 left, 1 wait>")
    assert not budget.take(1), "who waits comes first"
    loop.run()
    assert (waiting.calls, budget.take(1)) == (1, True)
    budget.drop(waiting)


def test_those_who_wait_are_handled_while_bytes_are_left() -> None:
    for sizes, calls in (((5, 5, 5), [1, 1, 0]), ((4, 5, 5), [1, 1, 1]), ((10, 1), [1, 0]), ((99,), [1])):
        budget, loop = budget_of(10)
        waiting = [Sized(size) for size in sizes]
        for one in waiting:
            budget.wait(one)
        loop.run()
        assert [one.calls for one in waiting] == calls
        loop.run()
        assert [one.calls for one in waiting] == [1] * len(sizes)


def fails() -> None:
    raise ZeroDivisionError


async def test_one_that_raises_is_told_and_the_turns_go_on() -> None:
    faults: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["message"]))
    budget, loop = budget_of(10)
    broken, fine = Sized(1, fails), Sized(1)
    budget.wait(broken)
    budget.wait(fine)
    loop.run()
    assert (faults, fine.calls, len(loop.handles)) == (["reading"], 0, 1)
    loop.run()
    assert (broken.calls, fine.calls) == (1, 1)
    loop.run()
    assert loop.handles == []


def test_by_default_a_turn_has_a_quarter_of_a_mebibyte() -> None:
    budget = ReadBudget(cast(asyncio.AbstractEventLoop, Loop()))
    assert repr(budget) == "<ReadBudget 262144 of 262144 left, 0 wait>"

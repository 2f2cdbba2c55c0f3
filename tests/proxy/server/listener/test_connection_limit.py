"""Which connection closes when there are more than the limit: the longest silent, and never one with a request."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest

from proxy.server.listener.connection_limit import GRACE_SECONDS, SEARCH_SECONDS, UNDECIDED, ConnectionLimit
from tests.kit.client import Connection, get
from tests.kit.clock import virtual
from tests.proxy.server.listener.test_listener import serving


class Client:
    def __init__(self, clients: list[Client], *, asks: bool = False, asked: bool = False) -> None:
        self.clients = clients
        self.asks = asks
        self.asked = asked or asks
        self.idle_since = asyncio.get_running_loop().time()
        self.closing = False
        self.refused = False
        clients.append(self)

    def make_way(self) -> None:
        self.closing = True

    def refuse_full(self) -> None:
        self.refused = True


def limited(most: int) -> tuple[list[Client], ConnectionLimit]:
    clients: list[Client] = []
    return clients, ConnectionLimit(most, clients, asyncio.get_running_loop())


def closed(clients: list[Client]) -> list[int]:
    return [number for number, client in enumerate(clients) if client.closing]


@virtual
async def test_of_a_burst_those_that_stay_silent_make_room_for_those_that_ask() -> None:
    clients, limit = limited(4)
    for _ in range(9):
        assert limit.admit(Client(clients))
    for number in (0, 4, 8):
        clients[number].asks = clients[number].asked = True
    assert closed(clients) == []
    await asyncio.sleep(2 * GRACE_SECONDS)
    assert closed(clients) == [1, 2, 3, 5, 6]
    assert not any(client.refused for client in clients)


@virtual
async def test_where_all_ask_the_new_one_is_refused_at_once() -> None:
    clients, limit = limited(2)
    for _ in range(2):
        assert limit.admit(Client(clients, asks=True))
    assert not limit.admit(Client(clients))


@virtual
async def test_where_all_come_to_ask_within_the_grace_the_silent_new_one_is_refused() -> None:
    clients, limit = limited(2)
    for _ in range(3):
        assert limit.admit(Client(clients))
    for client in clients[:2]:
        client.asks = True
    await asyncio.sleep(2 * GRACE_SECONDS)
    assert [client.refused for client in clients] == [False, False, True]
    assert closed(clients) == []


@virtual
async def test_one_that_comes_within_the_grace_of_another_has_its_own() -> None:
    clients, limit = limited(2)
    for _ in range(3):
        assert limit.admit(Client(clients))
    for client in clients[:2]:
        client.asks = True
    await asyncio.sleep(GRACE_SECONDS * 0.8)
    assert limit.admit(Client(clients))
    await asyncio.sleep(GRACE_SECONDS * 0.5)
    assert [client.refused for client in clients] == [False, False, True, False]
    clients[3].asks = True
    await asyncio.sleep(GRACE_SECONDS)
    assert [client.refused for client in clients] == [False, False, True, False]


@virtual
async def test_no_more_than_a_bound_is_undecided() -> None:
    clients, limit = limited(1)
    admitted = sum(limit.admit(Client(clients)) for _ in range(UNDECIDED + 50))
    assert admitted == UNDECIDED + 1
    limit.close()
    await asyncio.sleep(2 * GRACE_SECONDS)
    assert closed(clients) == []


@virtual
async def test_one_whose_closing_raises_is_not_the_others() -> None:
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    clients, limit = limited(1)
    for _ in range(3):
        limit.admit(Client(clients))
    error = RuntimeError("a connection that cannot be closed")

    def fail() -> None:
        clients[0].closing = True
        raise error

    clients[0].make_way = fail  # type: ignore[method-assign]
    await asyncio.sleep(2 * GRACE_SECONDS)
    assert faults == [error]
    assert closed(clients) == [0, 1]


async def test_a_burst_of_silent_connections_does_not_keep_one_in_the_same_turn_from_being_served() -> None:
    async with serving(max_connections=4) as (url, _):
        for _ in range(5):
            silent = await asyncio.gather(*(Connection.open(url) for _ in range(20)))
            assert (await get(url, "/one")).body == b"/one"
            for one in silent:
                await one.close()


@virtual
async def test_the_longest_silent_makes_way_and_who_had_a_request_last() -> None:
    clients, limit = limited(3)
    asked = Client(clients, asked=True)
    await asyncio.sleep(1.0)
    first, second = Client(clients), Client(clients)
    await asyncio.sleep(1.0)
    second.idle_since = first.idle_since - 0.5
    for number in (2, 1, 0):
        assert limit.admit(Client(clients, asks=True))
        assert clients[number].closing
        del clients[-1]
    assert asked.closing
    assert not limit.admit(Client(clients))


@virtual
async def test_at_the_limit_nobody_makes_way_and_found_once_is_used_for_the_next() -> None:
    clients, limit = limited(3)
    for _ in range(3):
        assert limit.admit(Client(clients))
    await asyncio.sleep(1.0)
    assert closed(clients) == []
    for number in range(2):
        assert limit.admit(Client(clients, asks=True))
        assert closed(clients) == list(range(number + 1))
    clients[2].idle_since += 0.5  # it had a request since the search
    assert limit.admit(Client(clients, asks=True))
    assert closed(clients) == [0, 1, 2]


@pytest.mark.parametrize("change", ["asks", "closing"])
@virtual
async def test_one_that_is_not_idle_any_more_since_the_search_is_passed_over(change: str) -> None:
    clients, limit = limited(2)
    for _ in range(2):
        limit.admit(Client(clients))
    await asyncio.sleep(1.0)
    assert limit.admit(Client(clients, asks=True))
    setattr(clients[1], change, True)
    made_way: list[int] = []
    clients[1].make_way = lambda: made_way.append(1)  # type: ignore[method-assign]
    assert not limit.admit(Client(clients, asks=True))
    assert made_way == []


@virtual
async def test_a_new_search_waits_and_one_idle_for_the_grace_is_old_enough() -> None:
    clients, limit = limited(1)
    loop = asyncio.get_running_loop()
    busy = Client(clients, asks=True)
    assert not limit.admit(Client(clients))
    clients.pop()
    busy.asks = False
    busy.idle_since = loop.time() - 1.0
    assert not limit.admit(Client(clients)), "searched just now"
    clients.pop()
    await asyncio.sleep(SEARCH_SECONDS)
    assert limit.admit(Client(clients, asks=True))
    assert busy.closing
    clients, limit = limited(1)
    young = Client(clients)
    await asyncio.sleep(GRACE_SECONDS)
    young.idle_since = loop.time() - GRACE_SECONDS
    assert limit.admit(Client(clients, asks=True))
    assert young.closing


@virtual
async def test_who_is_undecided_is_decided_on_once_and_who_asks_or_left_meanwhile_stays() -> None:
    clients, limit = limited(1)
    assert limit.admit(Client(clients, asks=True))
    idle = [Client(clients) for _ in range(3)]
    assert all(limit.admit(client) for client in idle[:1])
    for client in idle[1:]:
        assert limit.admit(client)
    idle[0].asks = True
    idle[1].closing = True
    idle[2].asks = True
    await asyncio.sleep(GRACE_SECONDS)
    await asyncio.sleep(0)
    assert [client.refused for client in idle] == [False] * 3
    assert (limit._timer, limit._undecided) == (None, deque())


@virtual
async def test_closing_leaves_no_timer_and_a_second_time_nothing() -> None:
    clients, limit = limited(1)
    for _ in range(2):
        assert limit.admit(Client(clients))
    timer = limit._timer
    assert timer is not None
    limit.close()
    limit.close()
    assert (timer.cancelled(), limit._timer) == (True, None)

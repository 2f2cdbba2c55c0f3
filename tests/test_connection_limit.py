"""Which connection closes when there are more than the limit: the longest silent, and never one with a request."""

from __future__ import annotations

import asyncio
from typing import Any

from proxy.server.listener.connection_limit import GRACE_SECONDS, UNDECIDED, ConnectionLimit
from tests.client import Connection, get
from tests.clock import virtual
from tests.test_door import serving


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

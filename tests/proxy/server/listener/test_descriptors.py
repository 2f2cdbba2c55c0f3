"""File descriptors: how many clients leave room for engines, and a gateway that is short of them."""

from __future__ import annotations

import asyncio
import json
import os
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.server.listener.descriptors import (
    BACKLOG,
    LEAST_BACKLOG,
    RESERVE,
    descriptor_budget,
    in_use,
    limit,
    raise_limit,
)
from tests.kit.client import Connection, NoAnswer, get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.running import pause
from tests.system.test_process import proxy

CHAT = "/v1/chat/completions"


def ask(number: int) -> dict[str, object]:
    text = [{"role": "user", "content": f"number {number}"}]
    return {"model": "m1", "messages": text, "temperature": 1}


def test_where_all_fits_nothing_is_changed_or_said() -> None:
    found = descriptor_budget(20_000, 30, clients=4096, engines=2, inflight=4096)
    assert (found.clients, found.backlog, found.warning) == (4096, BACKLOG, "")


def test_where_it_does_not_fit_one_line_says_so_with_the_numbers() -> None:
    found = descriptor_budget(1024, 24, clients=4096, engines=1, inflight=256)
    assert found.clients < 1024
    assert "\n" not in found.warning
    for number in ("4096", "256", f"{RESERVE + 1}", "1024", f"{found.clients}"):
        assert number in found.warning


@given(
    bound=st.integers(0, 5000),
    used=st.integers(0, 200),
    clients=st.integers(1, 5000),
    engines=st.integers(1, 300),
    inflight=st.integers(1, 5000),
)
def test_clients_leave_each_of_them_a_connection_to_an_engine(
    bound: int, used: int, clients: int, engines: int, inflight: int
) -> None:
    found = descriptor_budget(bound, used, clients=clients, engines=engines, inflight=inflight)
    assert 1 <= found.clients <= clients
    assert LEAST_BACKLOG <= found.backlog <= BACKLOG
    if bound - used >= 24:
        upstream = min(found.clients, engines * inflight)
        assert used + found.clients + upstream + (found.backlog if found.warning else 0) <= bound


def test_the_limit_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = min(soft, 512)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lower, hard))
    try:
        raise_limit()
        assert limit() == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert 3 <= in_use() < limit()


@pytest.mark.parametrize(
    ("bound", "used", "clients", "engines", "inflight", "found"),
    [
        (30 + 100 + 20 + 66, 30, 100, 2, 10, (100, BACKLOG)),  # all fits, to the last one
        (30 + 100 + 20 + 65, 30, 100, 2, 10, (96, 23)),
        (30 + 100 + 100 + 66, 30, 100, 2, 1000, (100, BACKLOG)),  # no more to engines than from clients
        (1000, 0, 4096, 1, 4096, (405, 125)),
        (1000, 0, 4096, 1, 100, (710, 125)),
        (100_000, 0, 200_000, 1, 1, (98_910, BACKLOG)),
        (64, 16, 10, 1, 1, (10, LEAST_BACKLOG)),
        (10, 8, 10, 1, 9, (1, LEAST_BACKLOG)),
        (0, 8, 10, 1, 9, (1, LEAST_BACKLOG)),
    ],
)
def test_the_places_to_the_number(
    bound: int, used: int, clients: int, engines: int, inflight: int, found: tuple[int, int]
) -> None:
    made = descriptor_budget(bound, used, clients=clients, engines=engines, inflight=inflight)
    assert (made.clients, made.backlog) == found
    needed = used + clients + min(clients, engines * inflight) + RESERVE + engines
    assert bool(made.warning) is (needed > bound)
    if made.warning:
        assert f" need {needed} file descriptors, but the limit is {bound} " in made.warning


@pytest.mark.parametrize(("soft", "found"), [(0, 0), (7, 7), (-1, 2**31)])
def test_no_limit_is_a_large_number(monkeypatch: pytest.MonkeyPatch, soft: int, found: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, 9))
    assert limit() == found


@pytest.mark.parametrize(
    ("soft", "hard", "error", "asked"),
    [(5, 5, None, []), (5, 9, None, [(9, 9)]), (5, 9, OSError(), [(9, 9)]), (5, 9, ValueError(), [(9, 9)])],
)
def test_the_limit_is_raised_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, error: Exception | None, asked: list[tuple[int, int]]
) -> None:
    told: list[tuple[int, int]] = []

    def set_(what: int, limits: tuple[int, int]) -> None:
        told.append(limits)
        if error is not None:
            raise error

    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", set_)
    raise_limit()
    assert told == asked


def test_where_the_open_ones_cannot_be_listed_some_are_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: str) -> list[str]:
        raise FileNotFoundError(path)

    assert in_use() == len(os.listdir("/dev/fd"))
    monkeypatch.setattr(os, "listdir", gone)
    assert in_use() == 16


@pytest.mark.e2e
@pytest.mark.timeout(60)
@pytest.mark.parametrize("descriptors", [64, 256])
async def test_idle_clients_that_take_every_place_leave_those_who_ask_theirs(descriptors: int) -> None:
    async with (
        Engine(echo_script()) as engine,
        Engine(echo_script()) as other,
        proxy(
            *("--backend", engine.url, "--backend", other.url, "--redis", "off"), descriptors=f"{descriptors}"
        ) as gateway,
    ):
        asking = [await Connection.open(gateway.url) for _ in range(6)]
        for client in asking:
            await client.request("GET", "/health")
            assert (await client.read()).status == 200
        idle = await asyncio.gather(*(Connection.open(gateway.url) for _ in range(descriptors * 2)))

        async def one(client: Connection, number: int) -> int:
            await client.request("POST", CHAT, json.dumps(ask(number)).encode())
            return (await client.read()).status

        for round_ in range(4):
            statuses = await asyncio.gather(*(one(client, 10 * round_ + n) for n, client in enumerate(asking)))
            assert statuses == [200] * 6
        for client in (*asking, *idle):
            await client.close()
        while (await _health(gateway.url)) != 200:
            await pause()
        assert (await post_json(gateway.url, CHAT, ask(99))).status == 200
        page = (await get(gateway.url, "/metrics")).body.decode()
    for each in (engine, other):
        assert f'gateway_backend_up{{backend="{each.url}"}} 1' in page
        assert f'gateway_backend_breaker{{backend="{each.url}"}} 0' in page
    assert "gateway_upstream_errors_total{" not in page
    told = [line for line in gateway.logged if "file descriptors" in line.get("detail", "")]
    assert len(told) == 1


async def _health(url: str) -> int:
    try:
        return (await get(url, "/health")).status
    except (ConnectionError, NoAnswer):
        return 0

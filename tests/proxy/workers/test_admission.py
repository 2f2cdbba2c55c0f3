"""Limits that gateways share: the script does what the model of `test_leases.py` does, and a Redis that refuses
costs no more than the share."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.flights.queue import PoolQueue
from proxy.redis import Client, SingleServer, address
from proxy.telemetry import Log
from proxy.workers.admission import RENEW, OwnEngines, SharedAdmission, read
from proxy.workers.leases import Call
from tests.kit.redis_server import redis_server
from tests.kit.running import lines, until
from tests.proxy.workers.test_leases import Redis

TIMEOUT = 5.0


@asynccontextmanager
async def client_of(path: str) -> AsyncIterator[Client]:
    client = SingleServer(address(f"unix://{path}")).client(connect_timeout=TIMEOUT)
    try:
        yield client
    finally:
        await client.close()


async def renew(client: Client, gateway: str, call: Call, key: str = "k", ms: int = 60_000) -> Any:
    words = (call.number, call.held, call.asked, call.limit, call.inflight, call.wanted, ms)
    return await client.call("EVAL", RENEW, 1, key, gateway, *words, timeout=TIMEOUT)


async def test_the_script_does_what_the_model_does() -> None:
    calls = [
        ("a", Call(1, 0, 0, 8, 0, 0)),
        ("a", Call(2, 0, 8, 8, 0, 3)),
        ("b", Call(1, 0, 4, 8, 0, 1)),
        ("a", Call(3, 4, 4, 8, 4, 9)),
        ("b", Call(2, 0, 9, 8, 0, 5)),
        ("a", Call(3, 0, 0, 8, 0, 0)),  # late
        ("c", Call(1, 3, 3, 8, 3, 3)),  # comes back with requests in flight
        ("b", Call(3, 4, 1, 6, 4, 4)),
        ("a", Call(4, 1, 4, 8, 1, 9)),
    ]
    model = Redis()
    async with redis_server() as path, client_of(path) as client:
        for gateway, call in calls:
            expected = model.renew(0.0, gateway, call, lease=60)
            raw = await renew(client, gateway, call)
            reply = read(raw)
            if expected is None:
                assert (raw, reply) == (-1, None)
                continue
            assert reply is not None
            at = (reply.places, reply.limit, reply.known)
            assert at == (expected.places, expected.limit, expected.known), (gateway, call)
            others = {name: replace(each, turn=0) for name, each in reply.others.items()}
            assert others == {name: replace(each, turn=0) for name, each in expected.others.items()}


async def test_a_record_ends_with_its_lease_and_what_is_none_is_removed() -> None:
    async with redis_server() as path, client_of(path) as client:
        await renew(client, "a", Call(1, 5, 5, 8, 5, 5), ms=1)
        for name, value in ((b"x", b"\xff"), (b"y", b"1 2 3"), (b"z", b"9" * 400)):
            await client.call("HSET", "k", name, value, timeout=TIMEOUT)
        for number in itertools.count(1):
            reply = read(await renew(client, "b", Call(number, 0, 8, 8, 0, 8)))
            assert reply is not None
            if not reply.others:  # a millisecond later
                break
        assert reply is not None
        assert reply.places == 8
        assert await client.call("HKEYS", "k", timeout=TIMEOUT) == [b"b"]
        assert 0 < await client.call("PTTL", "k", timeout=TIMEOUT) <= 60_000


@pytest.mark.parametrize(
    "raw", [None, b"", 7, [], [1, 2, 3, 4, 5], [1, 2, 1, 4, [[b"a", 1]]], [b"1", 2, 1, 4, []]]
)
def test_what_is_no_reply_is_not_read_as_one(raw: Any) -> None:
    assert read(raw) is None


class Engine:
    """As `upstream.Backend`."""

    def __init__(self, name: str, most: int) -> None:
        self.name, self.most, self.inflight, self.places = name, most, 0, -1
        self.told = 0
        self.leaving = False

    def allot(self, places: int) -> None:
        self.places = places

    def mark_reached(self) -> None:
        self.told += 1


@asynccontextmanager
async def admission(
    path: str,
    log_to: Path,
    engines: Sequence[Engine],
    *,
    fixed: bool = True,
    timeout: float = TIMEOUT,
    clock: Callable[[], float] | None = None,
) -> AsyncIterator[tuple[SharedAdmission, dict[str, int]]]:
    """Of a gateway with these engines, and its queue by engine."""
    fd = os.open(log_to, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = Log(fd, "json", "info")
    queued: dict[str, int] = {}
    shared = SharedAdmission(
        SingleServer(address(f"unix://{path}")),
        timeout=timeout,
        namespace="test",
        log=log,
        clock=clock or asyncio.get_running_loop().time,
    )
    own = OwnEngines(
        lambda: engines,
        queues=lambda: [cast(PoolQueue, SimpleNamespace(pool=name, queued=n)) for name, n in queued.items()],
        serving=lambda pool: [pool or ""],
        fixed=fixed,
    )
    await shared.start(own)
    try:
        yield shared, queued
    finally:
        await shared.close()
        log.close(30)
        os.close(fd)


async def test_an_engine_that_is_added_again_does_not_wait_until_its_old_record_ends(tmp_path: Path) -> None:
    engines = [Engine("http://e:1", 8)]
    # On a clock that stands no refused call is made again, and no record is late.
    async with (
        redis_server() as path,
        admission(path, tmp_path / "log", engines, clock=lambda: 0.0) as (shared, _),
    ):
        await until(lambda: engines[0].places == 8)
        engines.clear()
        shared.tick()
        engines.append(Engine("http://e:1", 8))
        await until(lambda: engines[0].places == 8)


async def test_two_gateways_divide_a_limit_by_demand_and_one_that_ends_leaves_it_at_once(tmp_path: Path) -> None:
    one, other = Engine("http://e:1", 8), Engine("http://e:1", 8)
    async with redis_server() as path, admission(path, tmp_path / "a", [one]) as (first, queued):
        assert one.places == 8, "it is known before the first request"
        async with admission(path, tmp_path / "b", [other]) as (second, _):
            await until(lambda: (one.places, other.places) == (4, 4))
            queued["http://e:1"] = 50
            one.inflight = 4
            await until(lambda: (one.places, other.places) == (7, 1))
            assert (first.live, first.gateways, second.gateways) == (True, 2, 2)
            await until(lambda: other.told > 0)
        await until(lambda: one.places == 8)
        assert first.families()[1].samples == [({}, 1.0)]


async def test_limits_that_differ_are_said_once_and_the_smaller_holds(tmp_path: Path) -> None:
    one, other = Engine("http://e:1", 8), Engine("http://e:1", 4)
    async with (
        redis_server() as path,
        admission(path, tmp_path / "a", [one]) as (_, queued),
        admission(path, tmp_path / "b", [other]),
    ):
        await until(lambda: (one.places, other.places) == (2, 2))
        queued["http://e:1"] = 3
        one.inflight = 2
        await until(lambda: (one.places, other.places) == (3, 1))
    said = [line for line in lines(tmp_path / "a") if line["msg"] == "engine limits differ"]
    assert [(line["max_inflight"], line["least"]) for line in said] == [(8, 4)]
    assert not [line for line in lines(tmp_path / "b") if line["msg"] == "engine limits differ"]


async def test_a_redis_that_refuses_costs_no_more_than_the_share_and_is_said_once(tmp_path: Path) -> None:
    one, other = Engine("http://e:1", 8), Engine("http://e:1", 8)
    async with (
        redis_server() as path,
        client_of(path) as client,
        admission(path, tmp_path / "a", [one]) as (first, _),
        admission(path, tmp_path / "b", [other]),
    ):
        await until(lambda: (one.places, other.places) == (4, 4))
        one.inflight = 3
        (key,) = await client.call("KEYS", "*", timeout=TIMEOUT)
        await client.call("SET", key, "no hash", timeout=TIMEOUT)
        await until(lambda: not first.live)
        assert (one.places, other.places) == (4, 4)
        await client.call("SCRIPT", "FLUSH", timeout=TIMEOUT)
        await client.call("DEL", key, timeout=TIMEOUT)
        await until(lambda: first.live)
    words = [line["msg"] for line in lines(tmp_path / "a")]
    assert words == ["admission shared", "admission away", "admission back"]
    (away,) = (line for line in lines(tmp_path / "a") if line["msg"] == "admission away")
    assert "WRONGTYPE" in str(away["detail"]), away


async def test_a_look_that_raises_is_not_the_last_one(tmp_path: Path) -> None:
    engines, raised = [Engine("http://e:1", 8)], list[str]()
    loop = asyncio.get_running_loop()
    async with redis_server() as path, admission(path, tmp_path / "a", engines) as (_, queued):
        loop.set_exception_handler(lambda _, context: raised.append(context["message"]))
        queued["http://e:1"] = cast(int, "no number")
        await until(lambda: "the admission of all gateways" in raised)
        engines.append(Engine("http://e:2", 8))
        queued["http://e:1"] = 1
        await until(lambda: engines[1].places == 8)


async def test_an_engine_that_comes_later_has_no_place_before_redis_gave_one(tmp_path: Path) -> None:
    engines = [Engine("http://e:1", 8)]
    async with redis_server() as path, admission(path, tmp_path / "a", engines) as (shared, _):
        engines.append(Engine("http://e:2", 2))
        await until(lambda: engines[1].places == 2)
        gone = engines.pop(0)
        await until(lambda: "e:1" not in repr(shared))
        assert gone.places == 8


async def test_requests_at_an_engine_that_one_gateway_removed_count_for_all(tmp_path: Path) -> None:
    one, other = Engine("http://e:1", 6), Engine("http://e:1", 6)
    async with (
        redis_server() as path,
        client_of(path) as client,
        admission(path, tmp_path / "a", [one]) as (first, _),
        admission(path, tmp_path / "b", [other]) as (_, queued),
    ):
        await until(lambda: (one.places, other.places) == (3, 3))
        one.inflight = other.inflight = 3
        queued["http://e:1"] = 9
        one.leaving = True
        await until(lambda: one.places == 0)
        (key,) = await client.call("KEYS", "*", timeout=TIMEOUT)
        records: list[list[int]] = []
        while len(records) < 3:  # two calls later it is still there
            raw = await client.call("HGET", key, first._gateway, timeout=TIMEOUT)
            record = [int(number) for number in raw.split()]
            if record not in records:
                records.append(record)
        assert [record[2:6] for record in records[1:]] == [[3, 10**6, 3, 3]] * 2
        assert other.places == 3
        one.leaving = False
        await until(lambda: one.places > 0)
        assert (one.places, other.places) == (3, 3)
        one.leaving, one.inflight = True, 1
        await until(lambda: other.places == 5)
    assert "engine limits differ" not in [line["msg"] for line in lines(tmp_path / "a")]

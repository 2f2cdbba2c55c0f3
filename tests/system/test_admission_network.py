"""Two gateways and a Redis on hosts of their own: what each may have at an engine while packets to Redis, or only
those from it, are lost."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ops.drill.process import started
from proxy.embedded.redis import server_binary
from tests.kit.client import get
from tests.kit.engine import Engine
from tests.kit.networks import Host, network
from tests.kit.patience import patience
from tests.kit.redis_fleet import RedisNode
from tests.kit.running import lines, pause, until
from tests.system.test_shared_admission import LIMIT, Counting, clients

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
PORT = 8000
LISTENS = re.compile(r"gateway at (http://\S+)")
SHARE = LIMIT // 2


@asynccontextmanager
async def gateway(host: Host, engine: Engine, redis: RedisNode, log: Path) -> AsyncIterator[str]:
    words = ["--host", host.address, "--port", str(PORT), "--backend", f"http://{engine.host}:{engine.port}"]
    words += ["--redis", f"redis://{redis.name}", "--admission", "fleet", "--max-inflight", str(LIMIT)]
    words += ["--probe", "off", "--share", "off"]
    command = [*host.within, sys.executable, "-m", "proxy", *words]
    with log.open("w") as out:
        async with started(command, LISTENS, 60.0, stdout=out.fileno()) as process:
            yield process.address


async def value(url: str, name: str) -> float:
    page = (await get(url, "/metrics")).body.decode()
    (found,) = re.findall(rf"^gateway_{name}(?:\{{.*\}})? (\S+)$", page, re.M)
    return float(found)


async def become(urls: tuple[str, str], name: str, *expected: float) -> None:
    """Wait until a metric of both gateways is this."""
    while [await value(url, name) for url in urls] != [*expected]:
        await pause()


async def served(a: Counter[int], b: Counter[int]) -> None:
    """Wait until both have answered some more requests."""
    before = a[200], b[200]
    await until(lambda: a[200] >= before[0] + 20 and b[200] >= before[1] + 20)


def told(folder: Path, message: str) -> tuple[int, int]:
    """How often each gateway has logged it."""
    one, other = ([line["msg"] for line in lines(folder / name)].count(message) for name in ("a", "b"))
    return one, other


async def test_a_gateway_that_loses_redis_has_its_share_and_both_serve_all_the_time(tmp_path: Path) -> None:
    counting = Counting(turns=100)
    with network(3) as hosts:
        first, second, third = hosts
        ours = third.address.rsplit(".", 1)[0] + ".1"
        redis = RedisNode(tmp_path, 6379, on=third)
        await redis.start(server_binary())
        try:
            async with (
                Engine(counting, host=ours) as engine,
                gateway(first, engine, redis, tmp_path / "a") as one,
                gateway(second, engine, redis, tmp_path / "b") as other,
                clients(one, 12) as a,
                clients(other, 12) as b,
                patience(200.0),
            ):
                both = (one, other)
                await become(both, "backend_max_inflight", SHARE, SHARE)
                most = counting.most
                assert most <= (LIMIT if told(tmp_path, "admission away") == (0, 0) else LIMIT + SHARE)
                for cut, join in (
                    (third.cut, third.join),  # neither reaches it
                    (lambda: first.drop(third), lambda: first.take(third)),  # one gets no reply
                    (lambda: third.drop(first), lambda: third.take(first)),  # one's calls are lost
                ):
                    alone = cut != third.cut
                    counting.most = 0
                    cut()
                    await become(both, "admission_live", 0, alone)
                    await become(both, "backend_max_inflight", SHARE, LIMIT if alone else SHARE)
                    await served(a, b)
                    assert counting.most <= (LIMIT + SHARE if alone else LIMIT)
                    join()
                    await become(both, "admission_live", 1, 1)
                    await become(both, "backend_max_inflight", SHARE, SHARE)
                    losses = told(tmp_path, "admission away")
                    await served(a, b)  # what a gateway had beyond its share has ended: all take as long
                    await until(lambda: counting.now <= LIMIT)
                    counting.most = counting.now
                    await served(a, b)
                    most = counting.most
                    steady = told(tmp_path, "admission away") == losses  # no gateway stood still for 2.8 s
                    assert most <= (LIMIT if steady else LIMIT + SHARE)
                await become(both, "admission_live", 1, 1)  # one that ends while it is away never comes back
                while (away := told(tmp_path, "admission away")) != told(tmp_path, "admission back"):
                    await pause()
            assert {*a, *b} == {200}
            assert away[0] >= 3
            assert away[1] >= 1
        finally:
            await redis.stop()

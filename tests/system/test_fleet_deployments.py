"""The fleet on a Redis Cluster and behind Sentinels: claims in every slot, and a failover in the middle of a
stream."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from functools import partial

import pytest

from proxy.redis import WireError
from tests.kit.client import Connection, call, get, post_json
from tests.kit.engine import Engine, Turn
from tests.kit.redis_fleet import RedisNode, eventually, redis_cluster, redis_sentinels
from tests.kit.running import HELLO, HELLO_STREAM, gateway, until
from tests.system.test_fleet import CHAT, followed, node, rest, texts, two
from tests.system.test_resuming import left
from tests.system.test_shared_admission import FLEET, LIMIT, Counting, ceilings, fire

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
DONE = b"data: [DONE]\n\n"


async def asked(url: str, seed: int) -> Connection:
    client = await Connection.open(url)
    await client.request("POST", CHAT, json.dumps(HELLO_STREAM | {"seed": seed}).encode())
    return client


async def kept_stream(engine: Engine, url: str) -> tuple[Turn, str, list[bytes]]:
    async with left(engine, url) as stream:
        return stream


async def test_claims_of_every_master_are_followed_and_a_failover_cuts_no_leader() -> None:
    async with (
        redis_cluster(replicas=True) as cluster,
        Engine() as engine,
        two(engine, cluster.url(), probe="on", resume="off") as (one, other),
    ):
        clients = []
        for seed in range(9):
            first = await asked(one.url, seed)
            turn = await engine.next_request()
            await turn.send("a")
            assert await texts(first, 2) == ["", "a"]
            second = await asked(other.url, seed)
            assert await texts(second, 2) == ["", "a"]
            clients.append((turn, first, second))
        places = await cluster.keys()
        assert all(any(b":facts:" in key for key in keys) for keys in places.values()), "each master has some"
        for master in cluster.masters:
            assert b"MOVED" not in await master.call("INFO", "errorstats"), (
                "each script goes to its master at once"
            )
        alone = await asked(one.url, 100)
        turn = await engine.next_request()
        body = asyncio.ensure_future(post_json(other.url, CHAT, HELLO | {"seed": 100}))
        await until(lambda: node(other).following == 10)
        await turn.finish("c")
        assert (await body).json()["choices"][0]["message"]["content"] == "c"
        assert (await rest(alone))[-1] == DONE
        await alone.close()
        for turn, first, second in clients[:5]:
            await turn.finish("b")
            assert await rest(first) == (frames := await rest(second))
            assert frames[-1] == DONE
        await cluster.replicas[0].call("CLUSTER", "FAILOVER")
        await eventually(lambda: _is_master(cluster.replicas[0]))
        for turn, first, second in clients[5:]:
            await turn.finish("b")
            whole = await rest(first)
            assert whole[-1] == DONE
            frames = await rest(second)
            assert frames == whole or b'"upstream_truncated"' in frames[-1]
        assert engine.generations == 10
        for _, first, second in clients:
            await first.close()
            await second.close()


async def test_clients_come_back_by_a_cluster_and_a_deletion_reaches_the_gateway_that_generates() -> None:
    """Records, logs and claims of each stream lie on several masters."""
    async with (
        redis_cluster() as cluster,
        Engine() as engine,
        two(engine, cluster.url()) as (one, other),
    ):
        streams = [await kept_stream(engine, one.url) for _ in range(6)]
        for turn, name, events in streams[:3]:
            async with await Connection.open(other.url) as client:
                await client.request("GET", f"/v1/streams/{name}?after=1")
                await turn.finish("c")
                got = await rest(client)
                assert (got[:2], got[-1]) == (events[1:], DONE)
        for turn, name, _ in streams[3:]:
            assert (await call(other.url, "DELETE", f"/v1/streams/{name}")).status == 200
            await turn.cancelled()
            assert (await get(one.url, f"/v1/streams/{name}")).status == 404
        assert engine.generations == 6


async def test_one_limit_of_an_engine_by_a_cluster_and_through_a_failover() -> None:
    counting = Counting()
    async with redis_cluster(replicas=True) as cluster, Engine(counting) as engine:
        changes = FLEET | {"redis": cluster.url()}
        async with gateway(engine, **changes) as one, gateway(engine, **changes) as other:
            both = [Counter({200: 60}), Counter({200: 20})]
            await until(lambda: ceilings(one, other) == [3, 3])
            assert list(await asyncio.gather(fire(one.url, 60), fire(other.url, 20))) == both
            assert counting.most == LIMIT
            for replica in cluster.replicas:
                await replica.call("CLUSTER", "FAILOVER")
                await eventually(partial(_is_master, replica))
            assert list(await asyncio.gather(fire(one.url, 60), fire(other.url, 20))) == both
            await until(lambda: sum(ceilings(one, other)) == LIMIT)
            counting.most = 0
            assert list(await asyncio.gather(fire(one.url, 60), fire(other.url, 20))) == both
            assert counting.most == LIMIT


async def test_a_gateway_that_starts_while_a_master_is_away_shares_by_the_others() -> None:
    async with redis_cluster("--cluster-require-full-coverage", "no") as cluster, Engine() as engine:
        seeds = cluster.url(*cluster.masters[:2])
        cluster.masters[2].freeze()
        try:
            async with two(engine, seeds, redis_timeout_ms=1000):  # which are live
                pass
        finally:
            cluster.masters[2].thaw()


async def _is_master(replica: RedisNode) -> bool:
    try:
        return b"role:master" in await replica.call("INFO", "replication")
    except WireError:
        return False  # it closes its connections as it changes its part


async def test_a_failover_by_sentinels_cuts_no_leader() -> None:
    async with (
        redis_sentinels() as watched,
        Engine() as engine,
        two(engine, watched.url(), resume="off") as (one, other),
    ):
        async with followed(engine, one, other) as (turn, first, second):
            await watched.sentinels[0].call("SENTINEL", "FAILOVER", "mymaster")
            await eventually(lambda: _is_master(watched.replica))
            await turn.finish("c")
            whole, frames = await rest(first), await rest(second)
            assert whole[-1] == DONE
            assert frames == whole or b'"upstream_truncated"' in frames[-1]
        await until(lambda: node(one).live and node(other).live)

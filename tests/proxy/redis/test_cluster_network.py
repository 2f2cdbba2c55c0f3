"""Masters on hosts of their own: one that no packet reaches, one that is slow."""

from __future__ import annotations

import asyncio

from redis.crc import key_slot

from tests.kit.networks import network
from tests.kit.patience import patience
from tests.kit.redis_fleet import redis_cluster
from tests.kit.redis_users import keys, users
from tests.kit.running import until

PARTIAL = ("--cluster-require-full-coverage", "no")


async def test_a_master_that_no_packet_reaches_costs_its_own_keys_until_it_is_back() -> None:
    """Unlike a dead process it refuses nothing: no connection is answered, and none is closed."""
    with network(3) as hosts:
        # The cluster itself does not miss it: then its masters would refuse look-ups for a while.
        patient = ("--cluster-node-timeout", "60000")
        async with (
            redis_cluster(*PARTIAL, *patient, hosts=hosts) as cluster,
            users(cluster.url(), timeout=3.0) as one,
        ):
            stored = keys(60)
            await one.store(stored)
            assert await one.hits(stored) == 60
            slots = [key_slot(b"gateway:" + key.hex().encode()) for key in stored]
            theirs = sum(slot * 3 // 16384 == 1 for slot in slots)
            assert 0 < theirs < 60
            hosts[1].cut()
            async with patience(5):  # it is waited for once
                counts = {await one.hits(stored) for _ in range(30)}
            assert counts == {60 - theirs}
            await one.store(keys(20))
            hosts[1].join()
            await until(lambda: not one.deployment.troubles)
            while await one.hits(stored) < 60:  # noqa: ASYNC110 - until the others call it up again
                await asyncio.sleep(0)
            assert one.servers.count(("away", cluster.masters[1].name)) == 1
            assert one.servers[-1][0] == "back"
            assert one.told["look-ups"] == []


async def test_a_master_that_answers_late_is_left_until_it_answers_in_time() -> None:
    async with redis_cluster(*PARTIAL) as cluster, users(cluster.url(), timeout=3.0) as one:
        stored = keys(40)
        await one.store(stored)
        slow = cluster.masters[0]
        await slow.call("CLIENT", "PAUSE", 12_000, "ALL")
        assert 0 < await one.hits(stored) < 40
        await until(lambda: not one.deployment.troubles)
        assert await one.hits(stored) == 40
        assert one.servers == [("away", slow.name), ("back", slow.name)]

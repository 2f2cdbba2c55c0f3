"""A real Redis Cluster: where keys lie, how commands find them while slots move, what a lost master costs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from redis.crc import key_slot

from proxy.access.ratelimit.buckets import Limit, Limits
from proxy.embedded.redis import server_binary
from proxy.redis.cluster import ClusterClient
from proxy.redis.resp import Lost
from tests.kit.client import get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.patience import patience
from tests.kit.ports import free_port
from tests.kit.redis_fleet import RedisCluster, RedisNode, eventually, redis_cluster
from tests.kit.redis_server import redis_server, server_with_tls
from tests.kit.redis_users import SLOW, Users, claim, keys, users
from tests.kit.running import HELLO, gateway, lines, until

CHAT = "/v1/chat/completions"
SERVERS = list(dict.fromkeys(path for path in (server_binary(), server_with_tls()) if path is not None))


def on(node: RedisNode, cluster: RedisCluster, count: int) -> list[bytes]:
    """So many keys of answers whose slots this master serves at the start."""
    part = cluster.masters.index(node)
    found: list[bytes] = []
    while len(found) < count:
        (key,) = keys(1)
        if key_slot(b"gateway:" + key.hex().encode()) * 3 // 16384 == part:
            found.append(key)
    return found


def slot_of_caller(caller: str) -> int:
    """The slot of a caller's limits, whose keys have a digest of its name for a tag."""
    return key_slot(hashlib.blake2b(caller.encode(), digest_size=16).hexdigest().encode())


@pytest.mark.parametrize("binary", SERVERS, ids=lambda path: path.name)
async def test_answers_and_limits_are_spread_over_the_masters_and_found_again(binary: Path) -> None:
    async with redis_cluster(binary=binary) as cluster, users(cluster.url(cluster.masters[1])) as one:
        assert one.deployment.servers == sorted(node.name for node in cluster.masters)
        stored = keys(300)
        await one.store(stored)
        assert [await one.hits(stored[n : n + 50]) for n in range(0, 300, 50)] == [50] * 6
        assert await one.hits(keys(5)) == 0
        limited = Limits(Limit(0.0001, 1000), None, 1000)
        for caller in range(60):
            decision = await one.ask(claim(f"p{caller}", f"caller {caller}", limited, limited))
            assert decision is not None
        found = list((await cluster.keys()).values())
        answers = [[key for key in of if b":limit:" not in key] for of in found]
        counted = [[key for key in of if b":limit:" in key and b"probe" not in key] for of in found]
        assert sum(map(len, answers)) in (300, 301)  # the probe of stores lives for a millisecond
        assert min(map(len, answers)) > 50
        assert min(map(len, counted)) >= 2 * 5
        assert sum(b"{all}" not in key for of in counted for key in of) == 2 * 60
        together = sorted(sum(b"{all}" in key for key in of) for of in counted)
        assert together == [0, 0, 2], "meters and streams of all callers are in one slot"
        assert await one.cache.flush() == 300
        assert await one.hits(stored) == 0
        assert (one.told, one.servers) == ({"look-ups": [], "stores": [], "limits": []}, [])


async def test_slots_that_move_under_load_cost_no_answer_and_no_decision() -> None:
    """MOVED and ASK: every look-up finds everything, and the limits count each request once."""
    async with redis_cluster() as cluster, users(cluster.url()) as one:
        source, target = cluster.masters[0], cluster.masters[1]
        stored = on(source, cluster, 60)
        await one.store(stored)
        moving = sorted({key_slot(b"gateway:" + key.hex().encode()) for key in stored})
        done = asyncio.Event()
        found, granted = [], 0
        own = Limits(Limit(0.0001, 10_000), None, 10_000)

        async def move() -> None:
            for slot in moving:
                await cluster.migrate(slot, source, target)
            done.set()

        moved = asyncio.create_task(move())
        while not done.is_set():
            found.append(await one.hits(stored))
            decision = await one.ask(claim(f"p{granted}", f"c{granted % 40}", own))
            assert decision is not None
            assert decision.over is None
            granted += 1
        await moved
        assert set(found) == {60}
        assert await one.hits(stored) == 60
        assert not await source.call("KEYS", "gateway:[0-9a-f]*[0-9a-f]")
        total = 0.0
        for caller in range(40):
            decision = await one.ask(claim(f"q{caller}", f"c{caller}", own))
            assert decision is not None
            total += decision.own.requests - 1
        assert round(total) == granted
        assert (one.told, one.servers) == ({"look-ups": [], "stores": [], "limits": []}, [])
        assert one.ops["error"] == 0


async def test_keys_of_a_slot_half_way_are_found_at_both_ends() -> None:
    async with redis_cluster() as cluster, users(cluster.url()) as one:
        source, target = cluster.masters[2], cluster.masters[0]
        (key,) = on(source, cluster, 1)
        slot = key_slot(b"gateway:" + key.hex().encode())
        await cluster.migrate(slot, source, target, finish=False)
        await one.store([key])  # it does not exist at the source: ASK
        assert await target.call("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
        assert await one.hits([key]) == 1
        assert await source.call("CLUSTER", "COUNTKEYSINSLOT", slot) == 0
        assert one.ops["error"] == 0


async def test_a_caller_whose_limits_are_half_way_is_limited_here_until_they_have_arrived() -> None:
    """TRYAGAIN: one of the script's two keys is at the source, the other at the target. It was not carried out."""
    own = Limits(Limit(0.0001, 100), None, 100)
    async with redis_cluster() as cluster, users(cluster.url()) as one:
        slot = slot_of_caller("a")
        source = cluster.masters[slot * 3 // 16384]
        target = cluster.masters[(slot * 3 // 16384 + 1) % 3]
        assert await one.ask(claim("1", "a", own)) is not None
        await cluster.migrate(slot, source, target, finish=False)
        (meter,) = [key for key in await source.call("CLUSTER", "GETKEYSINSLOT", slot, 9) if b":m:" in key]
        await source.call("MIGRATE", target.host, target.port, meter, 0, 5000)
        assert await one.ask(claim("2", "a", own)) is None
        assert await one.ask(claim("3", "another caller", own)) is not None
        await cluster.migrate(slot, source, target)
        decision = await one.ask(claim("4", "a", own))
        assert decision is not None
        assert (round(decision.own.requests), decision.own.streams) == (2, 2), "the second was not counted there"
        assert (one.told["limits"], one.servers) == ([], [])


async def test_a_master_that_is_killed_is_replaced_by_its_replica_and_reported_once(tmp_path: Path) -> None:
    async with redis_cluster(replicas=True) as cluster, users(cluster.url(), timeout=5.0) as one:
        victim, heir = cluster.masters[1], cluster.replicas[1]
        theirs, others = on(victim, cluster, 20), on(cluster.masters[2], cluster, 20)  # which a probe asks too
        await one.store(theirs + others)
        assert await one.hits(theirs + others) == 40
        await eventually(lambda: heir.has(20))
        victim.kill()
        while heir.name not in one.deployment.servers:
            await asyncio.sleep(0)  # look-ups that are not sent take no turn of the loop
            async with patience(2.0):  # no request waits for the failover
                assert await one.hits(theirs + others) in (0, 20, 40)
        await until(lambda: victim.name not in one.deployment.servers)
        while await one.hits(theirs + others) != 40:  # noqa: ASYNC110 - until the election is known everywhere
            await asyncio.sleep(0)
        assert one.servers == [("away", victim.name), ("added", heir.name), ("removed", victim.name)]
        await one.store(theirs)
        assert len(one.told["look-ups"]) <= 2, "CLUSTERDOWN until the replica is elected, at most once"


async def test_a_frozen_master_costs_its_own_keys_only_and_is_waited_for_once() -> None:
    async with (
        redis_cluster("--cluster-require-full-coverage", "no") as cluster,
        users(cluster.url(), timeout=3.0) as one,  # no other master is ever so late
    ):
        frozen = cluster.masters[2]
        theirs, others = on(frozen, cluster, 10), on(cluster.masters[0], cluster, 10)
        await one.store(theirs + others)
        own = Limits(Limit(0.0001, 1000))
        frozen.freeze()
        assert await one.hits(theirs + others) == 10
        assert one.deployment.troubles.keys() == {frozen.name}
        async with patience(5):
            for _ in range(20):
                assert await one.hits(theirs + others) == 10
        decisions = [await one.ask(claim(f"p{n}", f"c{n}", own)) for n in range(30)]
        assert 0 < decisions.count(None) < 30, "callers there are limited by each process"
        assert [one.limits.local] == [True]
        assert one.servers == [("away", frozen.name)]
        assert one.details[0].startswith("no ")
        frozen.thaw()
        await until(lambda: not one.deployment.troubles)
        assert await one.hits(theirs + others) == 20
        assert [one.limits.local] == [False]
        assert one.servers[:2] == [("away", frozen.name), ("back", frozen.name)]
        assert one.told == {"look-ups": [], "stores": [], "limits": []}


async def test_with_all_masters_gone_look_ups_miss_at_once_and_come_back_with_them() -> None:
    async with redis_cluster() as cluster, users(cluster.url(), timeout=3.0) as one:
        for node in cluster.masters:
            node.freeze()
        stored = keys(30)
        assert await one.hits(stored) == 0
        await until(lambda: not one.cache.available)
        assert await one.ask(claim("p", own=Limits(SLOW))) is None
        for node in cluster.masters:
            node.thaw()
        await until(lambda: one.cache.available and one.limits.available and not one.deployment.troubles)
        await one.store(stored)
        assert await one.hits(stored) == 30
        assert sorted(one.servers) == sorted(
            (change, node.name) for node in cluster.masters for change in ("away", "back")
        )


async def test_a_seed_that_is_gone_is_passed_over_and_no_seed_at_all_is_said() -> None:
    async with redis_cluster() as cluster:
        seed = f"127.0.0.1:{free_port()}"
        both = cluster.url().replace("//", f"//{seed},", 1)
        async with users(both) as one:
            assert len(one.deployment.servers) == 3
        async with users(f"redis+cluster://{seed}", timeout=0.5) as one:
            assert one.told["look-ups"] == ["no server of the Redis Cluster answers"]
            assert one.deployment.servers == []
            with pytest.raises(Lost):
                await one.cache.flush()


async def test_a_server_that_is_no_cluster_is_told_from_one_that_is_away() -> None:
    port = free_port()
    async with (
        redis_server("--port", str(port)),
        users(f"redis+cluster://127.0.0.1:{port}", timeout=0.5) as one,
    ):
        assert one.told["look-ups"] == ["it is no Redis Cluster: write redis:// in place of redis+cluster://"]


async def test_masters_that_are_full_refuse_stores_and_still_answer() -> None:
    async with redis_cluster("--maxmemory-policy", "noeviction") as cluster, users(cluster.url()) as one:
        stored = keys(20)
        await one.store(stored)
        for node in cluster.masters:
            await node.call("CONFIG", "SET", "maxmemory", "1")
        await one.store(keys(3))
        (trouble,) = one.told["stores"]
        assert trouble is not None
        assert trouble.startswith("it refused (OOM)")
        assert await one.hits(stored) == 20
        assert await one.ask(claim("p", own=Limits(SLOW))) is None
        for node in cluster.masters:
            await node.call("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: not one.cache.accepts.open and one.limits.available)
        assert await one.ask(claim("p", own=Limits(SLOW))) is not None


async def test_a_flushed_cluster_knows_scripts_and_permits_again() -> None:
    bounds = Limits(None, None, 1)
    async with redis_cluster() as cluster, users(cluster.url(), lease=1.5) as one:
        held = claim("lives", own=bounds, everyone=Limits(SLOW, None, 5))
        assert await one.ask(held) is not None
        for node in cluster.masters:
            await node.call("FLUSHALL")
            await node.call("SCRIPT", "FLUSH")
        while (decision := await one.ask(claim("next", own=bounds))) is not None and decision.over is None:
            one.limits.refund(claim("next", own=bounds), stream=True)
        assert decision is not None, "the permit that lives was renewed"
        assert decision.over == ("caller", "streams")
        assert one.told["limits"] == []


@pytest.mark.parametrize("tokens", [0, 10])
async def test_where_all_callers_are_at_their_limit_a_caller_is_charged_nothing(tokens: int) -> None:
    own = Limits(SLOW, Limit(0.0001, 1000), 5)
    async with redis_cluster() as cluster, users(cluster.url()) as one, users(cluster.url()) as other:
        tight = Limits(None, None, 1)
        first = await one.ask(claim("1", own=own, everyone=tight, tokens=tokens))
        assert first is not None
        assert (first.over, first.own, first.everyone.streams) == (None, (1, tokens, 1), 1)

        async def refused(user: Users, permit: str) -> bool:
            """Whether it is charged nothing, and what all have sent before has been done."""
            decision = await user.ask(claim(permit, own=own, everyone=tight, tokens=tokens))
            assert decision is not None
            assert decision.over == ("global", "streams")
            return tuple(decision.own) == pytest.approx((1, tokens, 1), abs=0.01)

        for user in (one, other, one):
            async with patience(10):
                while not await refused(user, "x"):  # the other's refund may be under way
                    pass
            for n in range(3):
                assert await refused(user, f"x{n}"), "its own refund is ahead of it"
        one.limits.refund(
            claim("1", own=own, everyone=tight, tokens=tokens), requests=-1, tokens=-tokens, stream=True
        )
        again = await one.ask(claim("2", own=own, everyone=tight, tokens=tokens))  # behind the refund
        assert again is not None
        assert again.over is None
        assert again.own == pytest.approx((1, tokens, 1), abs=0.01)


async def test_of_many_requests_at_two_gateways_precisely_the_limits_pass() -> None:
    async with redis_cluster() as cluster, users(cluster.url()) as one, users(cluster.url()) as other:
        own, everyone = Limits(Limit(0.0001, 30)), Limits(Limit(0.0001, 70))
        asked = [
            user.ask(claim(f"{caller}{n}", caller, own, everyone))
            for n in range(50)
            for caller in "ab"
            for user in (one, other)
        ]
        decisions = await asyncio.gather(*asked)
        assert None not in decisions
        assert [d.over for d in decisions if d is not None].count(None) == 60, "30 of each caller"
        more = await asyncio.gather(*(one.ask(claim(f"c{n}", f"c{n}", own, everyone)) for n in range(40)))
        assert [d.over for d in more if d is not None].count(None) == 10, "70 of all"


async def test_all_callers_master_gone_a_caller_is_limited_here_and_refunded_there() -> None:
    own = everyone = Limits(Limit(0.0001, 40))
    async with (
        redis_cluster("--cluster-require-full-coverage", "no") as cluster,
        users(cluster.url(), timeout=3.0) as one,
    ):
        place = key_slot(b"{all}") * 3 // 16384
        counted = cluster.masters[place]
        elsewhere = (f"c{n}" for n in range(1000) if slot_of_caller(f"c{n}") * 3 // 16384 != place)
        await one.ask(claim("0", "x", own, everyone))
        counted.freeze()
        asked = [next(elsewhere) for _ in range(12)]
        assert [await one.ask(claim(c, c, own, everyone)) for c in asked] == [None] * 12
        counted.thaw()
        await until(lambda: not one.deployment.troubles and one.limits.available)
        for caller in asked:
            decision = await one.ask(claim(f"{caller}'", caller, own))
            assert decision is not None
            assert decision.own.requests == pytest.approx(1, abs=0.01), "it was given back"


async def test_a_user_with_the_rights_that_are_documented_needs_no_more() -> None:
    page = (Path(__file__).parents[3] / "ops/docs/redis.md").read_text()
    rights = next(line for line in page.splitlines() if line.startswith("ACL SETUSER gateway on"))
    words = rights.replace(">PASSWORD", ">pw").split()[2:]
    user = ("--user", *words, "--user", "default", "on", "nopass", "~*", "&*", "+@all")
    async with redis_cluster(*user) as cluster, users(cluster.url(user="gateway:pw@")) as one:
        stored = keys(30)
        await one.store(stored)
        assert await one.hits(stored) == 30
        bounds = Limits(SLOW, SLOW, 5)
        taken = claim("p", own=bounds, everyone=bounds, tokens=3)
        assert await one.ask(taken) is not None
        one.limits.refund(taken, tokens=-1, stream=True)
        (key,) = on(cluster.masters[0], cluster, 1)
        slot = key_slot(b"gateway:" + key.hex().encode())
        await cluster.migrate(slot, cluster.masters[0], cluster.masters[1], finish=False)
        await one.store([key])
        assert await one.hits([key]) == 1, "ASKING is allowed"
        assert await one.cache.flush() == 31
        assert one.told == {"look-ups": [], "stores": [], "limits": []}
        for node in cluster.masters:
            await node.call("ACL", "SETUSER", "gateway", "-cluster|slots")
        async with users(cluster.url(user="gateway:pw@"), timeout=0.5) as lacking:
            (trouble,) = lacking.told["look-ups"]
            assert trouble is not None
            assert trouble.startswith("it refused (NOPERM cluster): its ACL user lacks")
        async with users(cluster.url(user="gateway:no@"), timeout=0.5) as stranger:
            (trouble,) = stranger.told["look-ups"]
            assert trouble is not None
            assert trouble.startswith("it refused the login (WRONGPASS)")


async def test_the_gateway_serves_through_a_failover_and_says_so(engine: Engine, tmp_path: Path) -> None:
    engine.auto(echo_script(tokens=3))
    log = tmp_path / "log"
    async with redis_cluster(replicas=True) as cluster:
        limits = {"rate_limit_rps": 1000.0, "global_limit_rps": 1000.0}
        async with gateway(engine, redis=cluster.url(), log_to=log, **limits) as app:
            state = (await get(app.url, "/-/state")).json()["redis"]
            assert (state["is"], state["state"], state["detail"]) == ("yours", "in use", "")
            assert state["servers"] == sorted(node.name for node in cluster.masters)
            statuses = []
            victim = cluster.masters[0]
            metrics = (await get(app.url, "/metrics")).body
            assert b'gateway_redis_servers_away{redis="redis"} 0' in metrics
            victim.kill()
            for n in range(100_000):
                answer = await post_json(app.url, CHAT, HELLO | {"seed": n % 50})
                statuses.append(answer.status)
                if victim.name not in (await get(app.url, "/-/state")).json()["redis"]["servers"]:
                    break
            assert set(statuses) == {200}
            verdicts: set[str] = set()
            while verdicts != {"hit"}:  # a look-up may still meet the election
                again = [await post_json(app.url, CHAT, HELLO | {"seed": seed}) for seed in range(5)]
                verdicts = {answer.head["x-gateway-cache"] for answer in again}
                await until(lambda: not len(app.group))
        events = [
            (line["msg"], line.get("server")) for line in lines(log) if line["msg"].startswith("redis server")
        ]
        assert events == [
            ("redis server away", victim.name),
            ("redis server added", cluster.replicas[0].name),
            ("redis server removed", victim.name),
        ]


async def test_a_slot_without_a_master_is_said_and_the_others_are_used() -> None:
    async with redis_cluster("--cluster-require-full-coverage", "no") as cluster, users(cluster.url()) as one:
        (lost, *kept), owner = on(cluster.masters[0], cluster, 5), cluster.masters[0]
        await one.store([lost, *kept])
        for node in cluster.masters:
            await node.call("CLUSTER", "DELSLOTS", key_slot(b"gateway:" + lost.hex().encode()))
        assert await one.hits([lost, *kept]) == 4
        await until(lambda: one.servers == [("away", "slots")])
        assert await one.hits([lost, *kept]) == 4
        assert owner.name in one.deployment.servers
        assert one.told["look-ups"] == []


class Connection:
    """To a master. While it closes, `meanwhile` happens."""

    pending = 0

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.closed = 0
        self._meanwhile = meanwhile

    async def close(self) -> None:
        await asyncio.sleep(0)
        self._meanwhile()
        self.closed += 1


async def test_connections_that_open_and_close_while_it_closes_are_each_closed_once() -> None:
    made: list[Connection] = []

    def master(host: str) -> Any:
        return SimpleNamespace(place=(host, 1))

    def dial(place: tuple[str, int], connect_timeout: float, max_pending: int) -> Connection:
        made.append(Connection(lambda: client.link(master("late")) if place == ("b", 1) else None))
        return made[-1]

    client = ClusterClient(cast(Any, SimpleNamespace(dial=dial)), connect_timeout=1.0, max_pending=1)
    for host in "abc":
        client.link(master(host))
    await asyncio.gather(client.close(), client.drop_idle([("a", 1), ("b", 1)]))
    assert [one.closed for one in made] == [1, 1, 1, 1]

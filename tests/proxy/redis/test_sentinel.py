"""A master behind real Sentinels: killed, frozen, demoted, and Sentinels that do not answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.access.ratelimit.buckets import Limit, Limits
from proxy.embedded.redis import server_binary
from tests.kit.client import get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.patience import patience
from tests.kit.ports import free_port
from tests.kit.redis_fleet import Watched, eventually, redis_sentinels
from tests.kit.redis_server import server_with_tls
from tests.kit.redis_users import SLOW, Users, claim, keys, users
from tests.kit.running import HELLO, gateway, lines, until

CHAT = "/v1/chat/completions"
SERVERS = list(dict.fromkeys(path for path in (server_binary(), server_with_tls()) if path is not None))


async def moved(one: Users, watched: Watched) -> None:
    """Until the gateway uses the replica, with requests meanwhile: none waits for the election."""
    stored = keys(5)
    while one.deployment.servers != [watched.replica.name]:
        await asyncio.sleep(0)
        async with patience(2.0):
            await one.hits(stored)
    await until(lambda: one.cache.available and one.limits.available)


@pytest.mark.parametrize("binary", SERVERS, ids=lambda path: path.name)
async def test_a_master_that_is_killed_is_followed_to_its_replica(binary: Path) -> None:
    async with (
        redis_sentinels(password="pw", binary=binary) as watched,
        users(watched.url(user=":pw@"), timeout=5.0) as one,
    ):
        assert one.deployment.servers == [watched.master.name]
        stored = keys(20)
        await one.store(stored)
        assert await one.hits(stored) == 20
        own = Limits(Limit(0.0001, 5))
        assert [await one.ask(claim(f"{n}", own=own)) is not None for n in range(3)] == [True] * 3
        await eventually(lambda: watched.replica.has(21))
        watched.master.kill()
        await moved(one, watched)
        assert await one.hits(stored) == 20
        decision = await one.ask(claim("4", own=own))
        assert decision is not None
        assert (decision.over, round(decision.own.requests)) == (None, 4), "counted once, and not forgotten"
        assert one.servers == [("removed", watched.master.name), ("added", watched.replica.name)]
        assert len(one.told["look-ups"]) == 2, "away, once, and back"
        assert one.told["look-ups"][1] is None


async def test_a_frozen_master_is_left_and_not_written_to_when_it_wakes() -> None:
    async with redis_sentinels() as watched, users(watched.url(), timeout=1.5) as one:
        stored = keys(10)
        await one.store(stored)
        await eventually(lambda: watched.replica.has(10))
        watched.master.freeze()
        await moved(one, watched)
        assert await one.hits(stored) == 10
        watched.master.thaw()
        await eventually(watched.master.follows)
        await one.store(keys(3))
        assert one.told["stores"] == [], "no READONLY: the old master is not asked any more"
        assert await one.ask(claim("p", own=Limits(SLOW))) is not None
        assert one.servers == [("removed", watched.master.name), ("added", watched.replica.name)]


async def test_a_failover_by_hand_loses_no_answer() -> None:
    async with redis_sentinels() as watched, users(watched.url(), timeout=5.0) as one:
        stored = keys(10)
        await one.store(stored)
        await eventually(lambda: watched.replica.has(10))
        await watched.sentinels[0].call("SENTINEL", "FAILOVER", "mymaster")
        await moved(one, watched)
        await one.store(keys(3))
        assert await one.hits(stored) == 10


async def test_a_sentinel_that_is_frozen_or_gone_is_passed_over() -> None:
    async with redis_sentinels() as watched:
        watched.sentinels[0].freeze()
        gone = f"127.0.0.1:{free_port()}"
        async with users(watched.url().replace("//", f"//{gone},"), timeout=1.0) as one:
            await until(lambda: one.deployment.servers == [watched.master.name] and one.cache.available)
            for node in watched.sentinels:
                node.kill()
            stored = keys(3)
            await one.store(stored)
            assert await one.hits(stored) == 3, "the last known master is used"


@pytest.mark.parametrize(
    ("service", "says"),
    [("other", "the Sentinels know no master of the name 'other'"), ("", "no Sentinel answers")],
)
async def test_a_name_that_no_sentinel_knows_and_no_sentinel_are_two_things(service: str, says: str) -> None:
    if not service:
        async with users(f"redis+sentinel://127.0.0.1:{free_port()}/mymaster", timeout=0.5) as one:
            assert one.told["look-ups"] == [says]
            assert one.deployment.servers == []
        return
    async with redis_sentinels() as watched, users(watched.url(service=service), timeout=0.5) as one:
        assert one.told["look-ups"] == [says]


async def test_the_gateway_shows_the_master_and_logs_the_change(engine: Engine, tmp_path: Path) -> None:
    engine.auto(echo_script(tokens=3))
    log = tmp_path / "log"
    async with redis_sentinels(password="pw") as watched:
        settings = {"redis": watched.url(user=":pw@"), "rate_limit_rps": 1000.0}
        async with gateway(engine, log_to=log, **settings) as app:
            state = (await get(app.url, "/-/state")).json()["redis"]
            assert (state["state"], state["servers"]) == ("in use", [watched.master.name])
            watched.master.kill()
            servers = [watched.master.name]
            while servers != [watched.replica.name]:
                assert (await post_json(app.url, CHAT, HELLO)).status == 200
                servers = (await get(app.url, "/-/state")).json()["redis"]["servers"]
            verdict = ""
            while verdict != "hit":
                answer = await post_json(app.url, CHAT, HELLO)
                verdict = answer.head["x-gateway-cache"]
                await until(lambda: not len(app.group))
        told = [line for line in lines(log) if line["msg"].startswith("redis")]
        assert [line["msg"] for line in told if "server" in line] == ["redis server removed", "redis server added"]
        assert [line["msg"] for line in told].count("redis away") == 1
        assert "pw@" not in log.read_text()

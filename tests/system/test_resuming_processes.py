"""Clients that come back to their stream where gateways are processes: one that was killed, and workers of one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.kit.client import Connection, get, streaming
from tests.kit.engine import Engine
from tests.kit.patience import patience
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO_STREAM, until
from tests.system.test_fleet import CHAT, rest
from tests.system.test_fleet_processes import DONE, figure, reaches
from tests.system.test_limits_processes import two
from tests.system.test_resuming import GRACE, IDS, SAMPLED, name_of
from tests.system.test_resuming_fleet import client_of
from tests.system.test_workers import workers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
FETCHED = 'resumable_streams_total{what="fetched"}'


async def test_a_gateway_that_is_killed_leaves_its_streams_to_the_other() -> None:
    """A deterministic stream is continued, a sampled one ends where it was, with an error."""
    async with Engine() as engine, redis_server() as path:
        flags = ("--fleet", "auto", "--probe", "off", "--cache-ttl-seconds", "60")
        async with (
            two(engine, f"unix://{path}", *flags) as (one, other),
            client_of(f"unix://{path}") as redis,
            streaming(one.url, CHAT, HELLO_STREAM, IDS) as exact,
        ):
            await reaches(one, "fleet_live", 1)
            await reaches(other, "fleet_live", 1)
            turn = await engine.next_request()
            await turn.send("a", "b")
            async with streaming(one.url, CHAT, SAMPLED, GRACE) as sampled:
                turn = await engine.next_request()
                await turn.send("a", "b")
                firsts = []
                for client in (exact, sampled):
                    firsts.append([event.raw for event in [await client.event() for _ in range(3)] if event])
                names = [name_of(client.head) for client in (exact, sampled)]
                async with patience(30):
                    while True:
                        logs = await redis.call(b"KEYS", b"*:log:*", timeout=5)
                        texts = [await redis.call(b"GETRANGE", log, 0, -1, timeout=5) for log in logs]
                        if sum(b'"b"' in text for text in texts) == 2:
                            break
                one.process.kill()
                await turn.cancelled(30)
            assert engine.generations == 2
            async with await Connection.open(other.url) as again:
                await again.request("GET", f"/v1/streams/{names[0]}", headers=[("Last-Event-ID", "2")])
                assert (await again.read_head()).status == 200
                ended = asyncio.ensure_future(get(other.url, f"/v1/streams/{names[1]}?after=0"))
                await until(lambda: engine.generations == 3)
                turn = await engine.next_request()
                await turn.send("a", "b")
                await turn.finish("c")
                events = await rest(again)
                assert events[0] == firsts[0][2]
                assert b'"c"' in events[1]
                assert events[-1].endswith(DONE)
            *begun, last = (await ended).events()
            assert begun == firsts[1]
            assert b"upstream_truncated" in last
            assert engine.generations == 3
            assert await figure(other, FETCHED) == 2


async def test_a_client_comes_back_to_any_worker(tmp_path: Path) -> None:
    """With the embedded Redis."""
    async with Engine() as engine:
        flags = ("--backend", engine.url, "--fleet", "auto", "--redis", "auto")
        async with workers(2, tmp_path / "log", *flags) as gateway:
            async with patience(60):
                while not await gateway.all_live():  # noqa: ASYNC110 - a metric sets no event
                    await asyncio.sleep(0)
            async with streaming(gateway.url, CHAT, SAMPLED, GRACE) as client:
                turn = await engine.next_request()
                await turn.send("a", "b")
                first = [event.raw for event in [await client.event() for _ in range(3)] if event]
                name = name_of(client.head)
                await client.abort()
            clients: list[Connection] = []
            async with patience(60):  # a connection each, until the kernel has chosen both workers
                while len(clients) < 8 or await gateway.counter(FETCHED) < 1:
                    if len(clients) == 8:
                        await clients.pop().abort()
                    client = await Connection.open(gateway.url)
                    await client.request("GET", f"/v1/streams/{name}")
                    if (await client.read_head()).status == 200:
                        clients.append(client)
                    else:  # those that have gone may count for a moment
                        await client.abort()
            await turn.finish("c")
            answers = [await rest(client) for client in clients]
            assert all(answer == answers[0] for answer in answers)
            assert answers[0][:3] == first
            assert answers[0][-1] == DONE
            assert json.loads(clients[0].head.get("x-gateway-resume") or "0") == 30  # type: ignore[union-attr]
            for client in clients:
                await client.close()


async def test_workers_without_a_fleet_keep_no_streams(tmp_path: Path) -> None:
    """A client would come back to another worker."""
    async with Engine() as engine, workers(2, tmp_path / "log", "--backend", engine.url) as gateway:
        async with streaming(gateway.url, CHAT, SAMPLED, GRACE) as client:
            turn = await engine.next_request()
            await turn.send("a")
            assert "x-gateway-stream" not in await client.read_head()
            await client.abort()
            await turn.cancelled()
        assert (await get(gateway.url, "/v1/streams/NAME")).status == 404

"""Gateways that share flights, as real processes: the one that leads is killed or frozen, and workers of one
gateway are as several gateways."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit.client import Connection, get, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.patience import patience
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO_STREAM, pause, until
from tests.system.test_fleet import CHAT, OTHER, rest, texts
from tests.system.test_limits_processes import two
from tests.system.test_process import Gateway
from tests.system.test_workers import workers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
BODY = json.dumps(HELLO_STREAM).encode()
THIRD = HELLO_STREAM | {"messages": [{"role": "user", "content": "a third"}]}
DONE = b"data: [DONE]\n\n"


async def figure(gateway: Gateway, name: str) -> float:
    """The sum of a metric's series, by the beginning of their lines."""
    page = (await get(gateway.url, "/metrics")).body.decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(f"gateway_{name}"))


async def reaches(gateway: Gateway, name: str, value: float) -> None:
    async with patience(30):
        while await figure(gateway, name) < value:
            await pause()


@asynccontextmanager
async def pair(engine: Engine) -> AsyncIterator[tuple[Gateway, Gateway]]:
    async with (
        redis_server() as path,
        two(engine, f"unix://{path}", "--fleet", "auto", "--probe", "off") as (one, other),
    ):
        await reaches(one, "fleet_live", 1)
        await reaches(other, "fleet_live", 1)
        yield one, other


@asynccontextmanager
async def followed(
    engine: Engine, one: Gateway, other: Gateway, *begun: str, body: dict[str, Any] = HELLO_STREAM
) -> AsyncIterator[tuple[Turn, Connection, Connection]]:
    """A stream of these tokens so far that a client of each gateway reads; the second follows the first."""
    for gateway in (one, other):  # on a busy machine Redis may answer late, and it is left alone for a while then
        await reaches(gateway, "fleet_live", 1)
    async with streaming(one.url, CHAT, body) as first:
        turn = await engine.next_request()
        async with streaming(other.url, CHAT, body) as second:
            await reaches(other, "fleet_following", 1)
            if begun:
                await turn.send(*begun)
                for client in (first, second):
                    assert await texts(client, 1 + len(begun)) == ["", *begun]
            yield turn, first, second


async def test_a_leader_that_is_killed_is_replaced() -> None:
    """A stream that has begun is continued by the gateway that followed; one that has not is generated there."""
    async with (
        Engine() as engine,
        pair(engine) as (one, other),
        followed(engine, one, other, "a", "b") as (_, _, begun),
        streaming(one.url, CHAT, OTHER),
    ):
        turn = await engine.next_request()
        async with streaming(other.url, CHAT, OTHER) as waiting:
            await reaches(other, "fleet_following", 2)
            one.process.kill()
            await turn.cancelled()
            await until(lambda: engine.generations == 3)
            again = await engine.next_request()
            await again.finish("x")
            assert (await rest(waiting))[-1] == DONE
            assert await figure(other, 'fleet_flights_total{what="taken_over"}') == 1
            await until(lambda: engine.generations == 4)
            second = await engine.next_request()
            await second.send("a", "b")
            await second.finish("c")
            frames = await rest(begun)
            assert b'"c"' in b"".join(frames)
            assert b'"a"' not in b"".join(frames)
            assert frames[-1] == DONE
            assert await figure(other, 'fleet_flights_total{what="lost"}') == 1
            assert await figure(other, 'streams_continued_total{how="replay",outcome="exact"}') == 1


async def test_a_leader_that_freezes_and_a_follower_that_is_killed() -> None:
    async with Engine() as engine, pair(engine) as (one, other):
        # For less than a heartbeat's life: nobody notices.
        async with followed(engine, one, other, "a", "b") as (turn, first, second):
            one.process.send_signal(signal.SIGSTOP)
            await turn.send("c")
            one.process.send_signal(signal.SIGCONT)
            await turn.finish("d")
            assert await rest(first) == (frames := await rest(second))
            assert frames[-1] == DONE
            assert engine.generations == 1
        # For longer, before the first token: the follower takes over, and the leader goes on for its own readers.
        async with followed(engine, one, other, body=OTHER) as (turn, first, second):
            one.process.send_signal(signal.SIGSTOP)
            await until(lambda: engine.generations == 3)
            again = await engine.next_request()
            await again.finish("from the second")
            assert b"from the second" in b"".join(await rest(second))
            one.process.send_signal(signal.SIGCONT)
            await turn.finish("from the first")
            frames = await rest(first)
            assert b"from the first" in b"".join(frames)
            assert frames[-1] == DONE
        # A follower that dies is interested no more: the last reader anywhere has gone.
        async with followed(engine, one, other, "a", body=THIRD) as (turn, first, _):
            await first.abort()
            await turn.send("b")
            other.process.kill()
            await turn.cancelled(30)


async def test_twins_at_the_workers_of_one_gateway_are_one_generation(tmp_path: Path) -> None:
    async with Engine() as engine, redis_server() as path:
        flags = ("--backend", engine.url, "--redis", f"unix://{path}", "--fleet", "auto")
        async with workers(2, tmp_path / "log", *flags) as gateway:
            async with patience(60):
                while not await gateway.all_live():
                    await pause()
            clients = [await Connection.open(gateway.url) for _ in range(24)]
            for client in clients:
                async with patience(60):
                    await client.request("POST", CHAT, BODY)
            turn = await engine.next_request()
            await turn.send("a")
            for client in clients:
                assert await texts(client, 2) == ["", "a"]
            await turn.finish()
            answers = [await rest(client) for client in clients]
            assert all(answer == answers[0] for answer in answers)
            assert answers[0][-1] == DONE
            assert engine.generations == 1
            assert await gateway.counter('fleet_flights_total{what="followed"}') == 1
            for client in clients:
                await client.close()

"""Several gateways with one Redis hold one limit at an engine; without Redis each has its share; the places of one
that is killed come back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.app import App
from proxy.workers import admission, leases
from tests.kit.client import get, post_json
from tests.kit.engine import Engine, Turn
from tests.kit.patience import patience
from tests.kit.redis_server import redis_server
from tests.kit.running import gateway, lines, pause, until
from tests.system.test_limits_processes import bare_redis
from tests.system.test_process import proxy
from tests.system.test_workers import workers

LIMIT = 6
CHAT = "/v1/chat/completions"
FLEET: dict[str, Any] = {"admission": "fleet", "max_inflight": LIMIT, "share": "off"}


class Counting:
    """An engine that holds each request for some turns of the loop, and counts those at once, of clients that are
    there. `fills`: it holds them until so many are there."""

    def __init__(self, turns: int = 50, fills: int = 0) -> None:
        self.turns = turns
        self.fills = fills
        self.most = self.answered = 0
        self._open: set[Turn] = set()

    @property
    def now(self) -> int:
        return sum(not turn.is_cancelled for turn in self._open)

    async def __call__(self, turn: Turn) -> None:
        self._open.add(turn)
        self.most = max(self.most, self.now)
        try:
            await until(lambda: self.most >= self.fills)
            for _ in range(self.turns):
                await asyncio.sleep(0)
            await turn.answer("hello")
            self.answered += 1
        finally:
            self._open.discard(turn)


async def fire(url: str, count: int) -> Counter[int]:
    body = {"model": "m1", "messages": [{"role": "user", "content": "hi"}], "temperature": 1}
    answers = await asyncio.gather(*(post_json(url, CHAT, body) for _ in range(count)))
    return Counter(answer.status for answer in answers)


async def always(url: str, count: int) -> None:
    while True:
        await fire(url, count)


@asynccontextmanager
async def clients(url: str, count: int) -> AsyncIterator[Counter[int]]:
    """So many clients that ask again at once, until the end."""
    statuses: Counter[int] = Counter()
    ended = False

    async def one() -> None:
        while not ended:
            statuses.update(await fire(url, 1))

    tasks = [asyncio.create_task(one()) for _ in range(count)]
    try:
        yield statuses
    finally:
        ended = True
        await asyncio.gather(*tasks)


def ceilings(*apps: App) -> list[int]:
    return [app.backends.all[0].max_inflight for app in apps]


async def test_two_gateways_never_have_more_than_the_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (admission, leases):  # no lease ends here, however long the process stands still
        monkeypatch.setattr(module, "LEASE", 600.0)
    counting = Counting(fills=LIMIT)
    async with (
        redis_server() as path,
        Engine(counting) as engine,
        gateway(engine, redis=f"unix://{path}", **FLEET) as one,
        gateway(engine, redis=f"unix://{path}", **FLEET) as other,
    ):
        await until(lambda: ceilings(one, other) == [3, 3])
        fleet = (await get(one.url, "/-/state")).json()["fleet"]
        assert fleet == {"generations": None, "engine_limits": True, "gateways": 2}
        both = tuple(await asyncio.gather(fire(one.url, 60), fire(other.url, 20)))
        assert both == (Counter({200: 60}), Counter({200: 20}))
        assert counting.most == LIMIT


async def test_without_redis_each_has_its_share_and_with_it_again_one_limit(tmp_path: Path) -> None:
    counting = Counting()
    logs = tmp_path / "log"
    async with (
        bare_redis(tmp_path) as (redis, process),
        Engine(counting) as engine,
        gateway(engine, redis=redis, log_to=logs, **FLEET) as one,
        gateway(engine, redis=redis, **FLEET) as other,
        clients(one.url, 12) as heavy,
    ):
        await until(lambda: ceilings(one, other) == [5, 1])
        process.kill()
        await until(lambda: ceilings(one, other) == [3, 3])
        assert b"gateway_admission_live 0\n" in (await get(one.url, "/metrics")).body
        assert await fire(other.url, 20) == {200: 20}
        assert counting.most <= LIMIT + LIMIT // 2, "what one had in flight, and the other's share"
        await until(lambda: counting.now <= LIMIT)
        counting.most = 0
        answered = counting.answered
        await until(lambda: counting.answered > answered + 30)
        assert counting.most <= LIMIT
    assert heavy.keys() == {200}
    words = Counter(line["msg"] for line in lines(logs))
    assert (words["admission shared"], words["admission away"], words["admission back"]) == (1, 1, 0)


@pytest.mark.e2e
async def test_a_killed_gateway_s_places_come_back_to_the_workers_of_another(tmp_path: Path) -> None:
    counting = Counting(turns=300)
    async with redis_server() as path, Engine(counting) as engine, patience(90.0):
        flags = ("--backend", engine.url, "--max-inflight", str(LIMIT), "--share", "off", "--admission", "fleet")
        redis = ("--state-redis", f"unix://{path}")
        async with (
            workers(2, tmp_path / "log", *flags, *redis) as many,
            proxy(*flags, *redis, "--redis", "off", "--probe", "off") as killed,
            clients(many.url, 24) as statuses,
        ):
            other = asyncio.create_task(always(killed.url, 40))
            while (await many.counter("admission_gateways"), counting.now) != (2.0, LIMIT):
                await pause()
            assert await many.counter("admission_live") == 1
            killed.process.kill()
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)
            while await many.counter("backend_max_inflight") != LIMIT:
                await pause()
            await killed.process.communicate()
        assert counting.most <= LIMIT
        assert statuses.keys() == {200}
        said = [line["msg"] for line in lines(tmp_path / "log")]
        assert said.count("admission shared") == 1
        assert "admission away" not in said


async def test_a_gateway_that_begins_without_redis_serves_after_the_time_of_a_lease(tmp_path: Path) -> None:
    counting = Counting(fills=LIMIT)
    async with (
        Engine(counting) as engine,
        gateway(engine, redis=f"unix://{tmp_path}/none", log_to=tmp_path / "log", **FLEET) as one,
    ):
        assert ceilings(one) == [0], "other gateways may have all places"
        assert b"gateway_admission_live 0\n" in (await get(one.url, "/metrics")).body
        assert await fire(one.url, 20) == {200: 20}
        assert counting.most == LIMIT
    assert [line["msg"] for line in lines(tmp_path / "log")].count("admission away") == 1

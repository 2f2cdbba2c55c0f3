"""What one worker finds out of an engine holds for all at once, as real processes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from tests.kit.engine import Engine, Turn
from tests.kit.patience import patience
from tests.system.test_workers import PATIENCE, post, workers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


async def test_a_breaker_that_one_worker_opens_is_open_for_all_and_counted_once(tmp_path: Path) -> None:
    async def fails(turn: Turn) -> None:
        await turn.respond(500, {"error": {"message": "broken"}})

    flags = (
        "--breaker-failures",
        "3",
        "--breaker-seconds",
        "600",
        "--breaker-max-seconds",
        "600",
        "--retries",
        "0",
    )
    async with Engine(fails) as engine, workers(3, tmp_path / "log", "--backend", engine.url, *flags) as gateway:
        async with aiohttp.ClientSession() as session:  # one connection: one worker
            while not gateway.events("engine breaker open"):
                await post(session, gateway.url, user="a")
        statuses: Counter[int] = Counter()
        async with patience(PATIENCE):
            for _ in range(2):  # collected by the same channel: what was told before has arrived
                await gateway.counts("backend_breaker_changes_total{", 1)
            asked = engine.generations
            connector = aiohttp.TCPConnector(force_close=True)
            async with aiohttp.ClientSession(connector=connector) as session:
                for number in range(24):  # a connection each: they reach all workers
                    statuses[await post(session, gateway.url, user=f"b{number}")] += 1
        assert statuses == {503: 24}
        assert engine.generations == asked, "no request went to the engine"
        assert len(gateway.events("engine breaker open")) == 1

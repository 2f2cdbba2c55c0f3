"""The wiring: who is told of an engine that has come up, and why a gateway is in no fleet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.upstream.fleet import Fleet
from tests.kit.engine import Engine
from tests.kit.running import gateway, lines


async def test_the_probes_of_engines_are_woken_by_news_of_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Callable[[], None]] = []
    real = Fleet.on_news

    def on_news(self: Any, call: Callable[[], None]) -> None:
        told.append(call)
        real(self, call)

    monkeypatch.setattr(Fleet, "on_news", on_news)
    async with gateway(engine) as app:
        assert told == [app.shapes.wake]


@pytest.mark.parametrize(
    ("ttl", "why"),
    [
        (60, "there is no Redis (--redis off)"),
        (0, "answers are not stored (--cache-ttl-seconds 0)"),
    ],
)
async def test_the_log_says_why_the_fleet_is_off(engine: Engine, tmp_path: Path, ttl: int, why: str) -> None:
    log = tmp_path / "log"
    async with gateway(engine, fleet="auto", redis="off", cache_ttl_seconds=ttl, log_to=log):
        pass
    assert [line["detail"] for line in lines(log) if line["msg"] == "fleet off"] == [why]

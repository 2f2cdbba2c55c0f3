"""The wiring: who is told of an engine that has come up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from proxy.upstream.fleet import Fleet
from tests.kit.engine import Engine
from tests.kit.running import gateway


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

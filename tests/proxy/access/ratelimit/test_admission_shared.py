"""Limits shared through Redis: its connection has the settings' times, and what becomes of it is told."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.access.ratelimit import admission
from proxy.redis.resp import WireError
from tests.proxy.access.ratelimit.test_admission_costs import Settings
from tests.proxy.telemetry.test_metrics import samples


async def test_whether_limits_are_shared_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[Any] = []

    class Redis:
        def __init__(self, url: str, *, timeout: float, namespace: str, on_change: Any) -> None:
            told.append((url, timeout, namespace))
            self.on_change = on_change
            self.availability = SimpleNamespace(trouble=None)

        @property
        def local(self) -> bool:
            return self.availability.trouble is not None

        async def start(self) -> None:
            told.append("start")

        async def stop(self) -> None:
            told.append("stop")

    monkeypatch.setattr(admission, "RedisLimits", Redis)
    settings = Settings(tmp_path)
    async with AsyncExitStack() as stack:
        flags = ("--rate-limit-rps", "1", "--redis-timeout-ms", "250", "--redis-namespace", "n")
        made = await settings.made(stack, *flags, redis="redis://h")
        shared = made.limiter.shared
        assert told == [("redis://h", 0.25, "n"), "start"]
        assert samples(settings.metrics)["gateway_limits_local"] == 0
        shared.availability.trouble = WireError("gone")
        shared.on_change(shared.availability.trouble)
        assert samples(settings.metrics)["gateway_limits_local"] == 1
        shared.on_change(None)
    assert told[-1] == "stop"
    assert [(line["level"], line["msg"], line.get("detail")) for line in settings.lines()] == [
        ("warning", "limits are each process's own", "gone"),
        ("info", "limits are shared again", None),
    ]

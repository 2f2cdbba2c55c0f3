"""What operators are told of the memory budget: gauges, refusals, and now and then who holds it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, cast

import pytest

from proxy.config.settings import Settings
from proxy.errors import GatewayError
from proxy.flights.memory import KINDS, TELL_SECONDS, Memory, MemoryWatch, memory_for
from proxy.resources import prepare
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Metrics
from tests.kit.running import lines

MIB = 1024 * 1024


class Watching:
    def __init__(self, path: Path) -> None:
        self.now = 0.0
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        self.log = Log(self.fd, "json", "info")
        self.metrics = Metrics()
        watch = MemoryWatch(self.metrics, self.log, lambda tenant: "team-a", lambda: self.now)
        self.memory = Memory(100, on_refused=watch.refused)
        watch.begin(self.memory)

    def told(self) -> list[dict[str, object]]:
        self.log.close(30)
        os.close(self.fd)
        return lines(self.path)


async def test_a_refusal_names_who_holds_most_and_is_told_now_and_then_only(tmp_path: Path) -> None:
    watching = Watching(tmp_path / "log")
    memory = watching.memory
    memory.hold("10.0.0.7", "uploads", 50)
    memory.hold(b"a digest of a tenant", "unread", 20)
    for now in (0.0, 1.0, TELL_SECONDS):
        watching.now = now
        with pytest.raises(GatewayError):
            memory.hold("10.0.0.7", "uploads", 1)
    assert watching.metrics.samples("memory_refused_total") == [({"kind": "uploads"}, 3)]
    held = {labels["kind"]: value for labels, value in watching.metrics.samples("memory_held_bytes")}
    assert (held["uploads"], held["unread"], held["answers"]) == (50, 20, 0)
    assert watching.metrics.samples("memory_budget_bytes") == [({}, 100)]
    told = watching.told()
    assert [line["msg"] for line in told] == ["memory budget exhausted"] * 2
    assert told[0]["heaviest"] == "10.0.0.7=50 team-a=20"
    assert (told[0]["level"], told[0]["budget"], told[0]["held"]) == ("warning", 100, 70)


async def test_the_settings_budget_is_the_one_that_is_watched(tmp_path: Path) -> None:
    watching = Watching(tmp_path / "log")
    settings = Settings(backends=("http://127.0.0.1:1",), memory_budget=32 * MIB)
    loop = asyncio.get_running_loop()
    memory = memory_for(settings, Metrics(), watching.log, loop, prepare(settings).rules.identity.name_of)
    assert memory.budget == 32 * MIB
    with pytest.raises(GatewayError):
        memory.hold(b"a tenant that no key has", "uploads", 33 * MIB)
    assert watching.told()[0]["kind"] == "uploads"


class Noted:
    """A log that keeps its events."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def event(self, level: str, msg: str, **fields: Any) -> None:
        self.told.append({"level": level, "msg": msg} | fields)


def test_who_holds_most_is_told_once_in_a_while_to_the_second() -> None:
    log, metrics, now = Noted(), Metrics(), [0.0]
    watch = MemoryWatch(metrics, cast(Log, log), lambda tenant: f"key {tenant.decode()}", lambda: now[0])
    watch.refused("early")
    assert log.told == [], "nothing is watched yet"
    memory = Memory(1000)
    watch.begin(memory)
    for size, owner in enumerate((b"a", "x" * 70, 7, b"b"), 1):
        memory.hold(owner, "uploads", size)
    for at in (100.0, 100.0 + TELL_SECONDS - 0.01, 100.0 + TELL_SECONDS):
        now[0] = at
        watch.refused("uploads")
    line = {"level": "warning", "msg": "memory budget exhausted", "kind": "uploads", "budget": 1000, "held": 10}
    assert log.told == [line | {"heaviest": "key b=4 7=3 " + "x" * 64 + "=2"}] * 2
    counted = {labels["kind"]: n for labels, n in metrics.samples("memory_refused_total")}
    assert counted == {"early": 1, "uploads": 3}
    assert {labels["kind"] for labels, _ in metrics.samples("memory_held_bytes")} == set(KINDS)

"""Which of the embedded engine and Redis are started, in what words, and that none is left where one fails."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.app import children
from proxy.config.settings import Settings
from proxy.embedded.redis import NotInstalled
from proxy.embedded.supervise import ChildFailed
from proxy.telemetry.log import Log
from tests.kit.running import lines

OWN = ("http://mine",)


class Fake:
    """An embedded engine or Redis that only says what is asked of it."""

    def __init__(self, told: list[str], name: str, fails: bool) -> None:
        self.told, self.name, self.fails = told, name, fails

    def __call__(self, *given: object, on_event: Any) -> Fake:
        self.on_event = on_event
        self.told.append(f"{self.name} {given}")
        return self

    async def start(self) -> str:
        self.told.append(f"start {self.name}")
        self.on_event("up", "pid 1")
        if self.fails:
            raise ChildFailed(self.name)
        return f"url of {self.name}"

    async def stop(self) -> None:
        self.told.append(f"stop {self.name}")


async def begun(
    monkeypatch: pytest.MonkeyPatch, folder: Path, settings: Settings, *, fails: str = ""
) -> tuple[Any, list[str], list[dict[str, Any]]]:
    told: list[str] = []
    monkeypatch.setattr("proxy.embedded.engine.EmbeddedEngine", Fake(told, "engine", fails == "engine"))
    monkeypatch.setattr("proxy.embedded.redis.EmbeddedRedis", Fake(told, "redis", fails == "redis"))
    log = Log(os.open(folder / "log", os.O_WRONLY | os.O_CREAT))
    found: Any = None
    try:
        async with AsyncExitStack() as stack:
            found = await children(settings, log, stack)
            told.append("runs")
    except ChildFailed as e:
        found = str(e)
    log.close(30)
    return found, told, lines(folder / "log")


async def test_both_come_along_where_neither_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(redis="auto", redis_memory_mb=33)
    found, told, logged = await begun(monkeypatch, tmp_path, settings)
    assert found == (["url of engine"], "url of redis", "embedded")
    starts = ["engine ()", "redis (33,)", "start engine", "start redis", "runs"]
    assert told == [*starts, "stop redis", "stop engine"]
    assert [(line["msg"], line["detail"]) for line in logged] == [
        ("embedded engine up", "pid 1"),
        ("embedded redis up", "pid 1"),
    ]


@pytest.mark.parametrize(
    ("settings", "found", "started"),
    [
        (Settings(backends=OWN, redis="off"), (["http://mine"], None, "off"), []),
        (Settings(backends=OWN, redis="redis://h"), (["http://mine"], "redis://h", "yours"), []),
        (Settings(backends=OWN, redis="auto"), (["http://mine"], "url of redis", "embedded"), ["redis"]),
        (Settings(redis="off"), (["url of engine"], None, "off"), ["engine"]),
        (Settings(redis="redis://h"), (["url of engine"], "redis://h", "yours"), ["engine"]),
    ],
)
async def test_what_is_named_is_not_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Settings, found: object, started: list[str]
) -> None:
    result, told, _ = await begun(monkeypatch, tmp_path, settings)
    assert result == found
    assert [line for line in told if line.startswith("start")] == [f"start {name}" for name in started]


async def test_where_the_engine_fails_both_are_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, told, _ = await begun(monkeypatch, tmp_path, Settings(redis="auto"), fails="engine")
    assert found == "engine"
    assert told[-2:] == ["stop redis", "stop engine"]
    assert "runs" not in told


@pytest.mark.parametrize("lack", [NotInstalled, ChildFailed])
@pytest.mark.parametrize("backends", [OWN, ()])
async def test_where_no_redis_is_installed_or_starts_it_warns_and_serves_without(
    backends: tuple[str, ...], lack: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def missing(self: Fake) -> str:
        if self.name == "redis":
            raise lack("no Redis: pip install one")
        return "url of engine"

    monkeypatch.setattr(Fake, "start", missing)
    found, _, logged = await begun(monkeypatch, tmp_path, Settings(backends=backends, redis="auto"))
    assert found == ([*backends] or ["url of engine"], None, "off")
    assert [(line["level"], line["msg"], line["detail"]) for line in logged] == [
        ("warning", "no redis", "no Redis: pip install one")
    ]

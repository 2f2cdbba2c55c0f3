"""What a changed settings file changes while the gateway runs, what not, and that a broken one changes nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.config.settings import Settings
from proxy.errors import SettingsError
from proxy.resources import EngineReload
from proxy.telemetry.log import Log
from tests.kit.running import lines, until

ONE, TWO, THREE = "http://a", "http://b", "http://c"


class Bench:
    """A file in memory: what reading it gives. Applying it takes until `go` is set."""

    def __init__(self, path: Path, settings: Settings | None = None) -> None:
        self.path = path
        self.settings = settings or Settings(backends=(ONE,), config="x.toml")
        self.gives: Settings | SettingsError = self.settings
        self.applied: list[Sequence[str]] = []
        self.go = asyncio.Event()
        self.log = Log(os.open(path, os.O_WRONLY | os.O_CREAT))
        self.reload = EngineReload(self.settings, self.reads, self.apply, self.log)

    def reads(self) -> Settings:
        if isinstance(self.gives, SettingsError):
            raise self.gives
        return self.gives

    async def apply(self, urls: Sequence[str]) -> None:
        self.applied.append(urls)
        await self.go.wait()

    def take(self) -> str:
        return self.reload.load()()

    def told(self) -> list[dict[str, Any]]:
        self.log.close(30)
        return lines(self.path)


async def test_engines_are_applied_one_change_at_a_time_and_the_last_of_several_wins(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "log")
    task = asyncio.create_task(bench.reload.run())
    bench.gives = replace(bench.settings, backends=(ONE, TWO))
    assert bench.take() == "engines: 1 added, 0 removed"
    await until(lambda: bench.applied == [(ONE, TWO)])
    for backends in ((TWO,), (TWO, THREE)):
        bench.gives = replace(bench.settings, backends=backends)
        bench.take()
    bench.go.set()
    await until(lambda: len(bench.applied) == 2)
    assert bench.applied[1] == (TWO, THREE)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert bench.told() == []


@pytest.mark.parametrize(
    ("gives", "says"),
    [
        (SettingsError("file x.toml: not a TOML file: line 3"), "line 3"),
        (Settings(config="x.toml"), "at least one"),
    ],
)
async def test_a_broken_file_is_refused(tmp_path: Path, gives: Settings | SettingsError, says: str) -> None:
    bench = Bench(tmp_path / "log")
    bench.gives = gives
    with pytest.raises(SettingsError, match=says):
        bench.reload.load()
    assert bench.told() == []


async def test_with_the_embedded_engine_a_file_without_engines_is_as_good(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "log", Settings(config="x.toml"))
    bench.gives = replace(bench.settings, queue_limit=9)
    bench.take()
    assert [line["msg"] for line in bench.told()] == ["settings need a restart"]


async def test_what_else_is_new_is_told_to_need_a_restart(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "log")
    bench.gives = replace(bench.settings, backends=(TWO,), port=1, redis="redis://:secret@h")
    bench.take()
    (line,) = bench.told()
    assert (line["msg"], line["detail"]) == ("settings need a restart", "port, redis")


async def test_what_is_added_and_what_is_removed_are_told_by_their_numbers(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "log")
    for backends, told in (
        ((TWO, THREE), "engines: 2 added, 1 removed"),
        ((THREE,), "engines: 0 added, 1 removed"),
        ((THREE,), "engines: 0 added, 0 removed"),
    ):
        bench.gives = replace(bench.settings, backends=backends, warnings=("odd",))
        assert bench.take() == told
    own = Bench(tmp_path / "own", Settings(config="x.toml"))
    assert own.take() == "nothing that can change at run time"
    assert (bench.told(), own.told()) == ([], [])

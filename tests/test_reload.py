"""The settings file while running: what changes with it, what does not, and that a broken one changes nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxy.config import Settings
from proxy.errors import SettingsError
from proxy.log import Log
from proxy.reload import EVERY, Mark, Reload, mark_of
from tests.clock import virtual
from tests.running import lines

ONE, TWO = "http://a", "http://b"


class Bench:
    """A file in memory: what reading it gives, and its mark."""

    def __init__(self, path: Path, settings: Settings | None = None) -> None:
        self.path = path
        self.settings = settings or Settings(backends=(ONE,), config="x.toml")
        self.gives: Settings | SettingsError = self.settings
        self.mark: Mark = (1, 1, 1)
        self.applied: list[Sequence[str]] = []
        self.read = 0
        self.log = Log(os.open(path, os.O_WRONLY | os.O_CREAT))
        self.reload = Reload(self.settings, self.reads, self.apply, self.log, mark=lambda path: self.mark)

    def reads(self) -> Settings:
        self.read += 1
        if isinstance(self.gives, SettingsError):
            raise self.gives
        return self.gives

    async def apply(self, urls: Sequence[str]) -> None:
        self.applied.append(urls)

    def told(self) -> list[dict[str, Any]]:
        self.log.close()
        return lines(self.path)


@virtual
async def _watched(bench: Bench) -> None:
    task = asyncio.create_task(bench.reload.run())
    await asyncio.sleep(EVERY * 3.5)
    assert bench.read == 0
    bench.mark = (2, 1, 1)
    bench.gives = replace(bench.settings, backends=(ONE, TWO))
    await asyncio.sleep(EVERY * 3)
    assert (bench.read, bench.applied) == (1, [(ONE, TWO)])
    bench.reload.wake()
    await asyncio.sleep(0.01)
    assert bench.read == 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_file_that_changes_is_read_within_a_second_and_on_demand_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "log")
    _watched(bench)
    assert bench.told() == []


async def test_a_broken_file_is_told_and_changes_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "log")
    bench.gives = SettingsError("file x.toml: not a TOML file: line 3")
    await bench.reload.look()
    bench.gives = replace(bench.settings, backends=())
    await bench.reload.look()
    assert bench.applied == []
    told = bench.told()
    assert [(line["level"], line["msg"]) for line in told] == [("warning", "settings refused")] * 2
    assert "line 3" in told[0]["detail"]
    assert "at least one" in told[1]["detail"]


async def test_with_the_embedded_engine_a_file_without_engines_is_as_good(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "log", Settings(config="x.toml"))
    bench.gives = replace(bench.settings, queue_limit=9)
    await bench.reload.look()
    assert bench.applied == []
    assert [line["msg"] for line in bench.told()] == ["settings need a restart"]


async def test_what_else_is_new_is_told_to_need_a_restart(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "log")
    bench.gives = replace(bench.settings, backends=(TWO,), port=1, redis="redis://:secret@h")
    await bench.reload.look()
    assert bench.applied == [(TWO,)]
    (line,) = bench.told()
    assert (line["msg"], line["detail"]) == ("settings need a restart", "port, redis")


def test_a_file_s_mark_changes_when_it_is_written_or_replaced_and_is_none_without_one(tmp_path: Path) -> None:
    file, other = tmp_path / "a.toml", tmp_path / "b.toml"
    assert mark_of(str(file)) is None
    file.write_text("x")
    first = mark_of(str(file))
    other.write_text("y")
    assert first is not None
    os.utime(other, ns=(0, first[0]))  # of the same time and size
    assert mark_of(str(file)) == first
    other.replace(file)
    assert mark_of(str(file)) not in (None, first)

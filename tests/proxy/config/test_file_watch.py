"""The watch on files: what counts as a change, when it is loaded, that a bad one changes nothing, and stalls."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from proxy.config.file_watch import EVERY, REREAD, RESTLESS, STALL_SECONDS, Contents, FileWatch, Take, Watched
from proxy.errors import SettingsError
from tests.kit.clock import virtual
from tests.kit.running import until


class Told:
    """What the watch has said, in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, ...]] = []

    def reloaded(self, name: str, paths: Sequence[str], who: str, changed: str) -> None:
        self.lines.append(("good", name, who, changed))

    def not_reloaded(self, name: str, paths: Sequence[str], who: str, reason: str) -> None:
        self.lines.append(("failed", name, who, reason))

    def stalled(self, seconds: float) -> None:
        self.lines.append(("stalled",))

    def answers(self) -> None:
        self.lines.append(("answers",))


def at_once(work: Callable[[], Any]) -> asyncio.Future[Any]:
    """No thread: virtual time knows none."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    try:
        future.set_result(work())
    except Exception as e:  # noqa: BLE001 - as the thread does
        future.set_exception(e)
    return future


class Bench:
    """One file, whose text is in force; `bad` in it cannot be loaded."""

    def __init__(self, path: Path, text: str = "one", in_thread: Any = at_once) -> None:
        self.path = path
        path.write_text(text)
        self.told = Told()
        self.loaded = text
        self.loads = 0
        contents = Contents([str(path)])
        self.watch = FileWatch(
            [Watched("file", (str(path),), self.load)], contents, self.told, in_thread=in_thread
        )
        self.task: asyncio.Task[None] | None = None

    def load(self) -> Take:
        self.loads += 1
        try:
            text = self.path.read_text()
        except OSError as e:
            raise SettingsError(e.strerror or "") from None
        if "bad" in text:
            raise SettingsError(f"{text} is bad")

        def take() -> str:
            self.loaded = text
            return text

        return take

    async def __aenter__(self) -> Bench:
        self.task = asyncio.create_task(self.watch.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def rewritten(path: Path, text: str) -> None:
    path.write_text(text)


def renamed(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def same_mark(path: Path, text: str) -> None:
    """Of the same size and times, as a file system with coarse time stamps has it."""
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@virtual
@pytest.mark.parametrize("change", [rewritten, renamed, same_mark])
async def test_a_changed_content_is_loaded_once_however_it_came(
    tmp_path: Path, change: Callable[[Path, str], None]
) -> None:
    async with Bench(tmp_path / "a") as bench:
        await asyncio.sleep(EVERY * 3.5)
        assert bench.loads == 0
        change(bench.path, "two")
        await asyncio.sleep(EVERY * 2)
        assert bench.told.lines == [("good", "file", "file", "two")]
        await asyncio.sleep(EVERY * 3 * REREAD)
        assert (bench.loaded, bench.loads) == ("two", 1)
        os.utime(bench.path)  # touched, and not changed
        await asyncio.sleep(EVERY * 3)
        assert bench.loads == 1


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@virtual
@pytest.mark.parametrize("change", [fifo, device])
async def test_what_is_no_file_is_not_read_and_the_next_file_is(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    async with Bench(tmp_path / "a") as bench:
        change(bench.path)
        await asyncio.sleep(EVERY * 3.5)
        assert [line[0] for line in bench.told.lines] == ["failed"]
        assert (bench.loaded, bench.loads) == ("one", 0)
        bench.path.unlink()
        bench.path.write_text("two")
        await asyncio.sleep(EVERY * 3.5)
        assert bench.loaded == "two"


@virtual
async def test_a_content_that_stat_does_not_tell_of_is_found_within_its_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bench(tmp_path / "a") as bench:
        monkeypatch.setattr("proxy.config.file_watch._mark_of", lambda found: (1,))
        await asyncio.sleep(EVERY * (REREAD + 1.5))
        bench.path.write_text("two")
        await asyncio.sleep(EVERY * (REREAD + 2))
        assert bench.loaded == "two"


@virtual
async def test_a_symlink_swap_as_kubernetes_does_it_is_a_change(tmp_path: Path) -> None:
    for name, text in (("..1", "one"), ("..2", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "link").symlink_to("..data/file")
    async with Bench(tmp_path / "link") as bench:
        await asyncio.sleep(EVERY * 2.5)
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")
        await asyncio.sleep(EVERY * 2)
        assert bench.loaded == "two"


@virtual
async def test_what_is_written_piece_by_piece_is_loaded_when_it_rests(tmp_path: Path) -> None:
    async with Bench(tmp_path / "a") as bench:
        await asyncio.sleep(EVERY / 2)
        for text in ("", "t", "tw", "two"):
            bench.path.write_text(text)
            await asyncio.sleep(EVERY)
        assert bench.loads == 0  # no half of it was in force
        await asyncio.sleep(EVERY)
        assert (bench.loaded, bench.loads) == ("two", 1)


@virtual
async def test_what_never_rests_is_loaded_all_the_same(tmp_path: Path) -> None:
    async with Bench(tmp_path / "a") as bench:
        for number in range(RESTLESS + 2):
            bench.path.write_text(f"number {number}")
            await asyncio.sleep(EVERY)
        assert bench.loads == 1


@virtual
async def test_what_comes_back_before_it_is_loaded_is_no_change(tmp_path: Path) -> None:
    async with Bench(tmp_path / "a") as bench:
        await asyncio.sleep(EVERY / 2)
        bench.path.unlink()
        await asyncio.sleep(EVERY)
        bench.path.write_text("one")
        await asyncio.sleep(EVERY * 5)
        assert (bench.loads, bench.told.lines) == (0, [])


@virtual
async def test_a_bad_file_is_told_once_changes_nothing_and_is_tried_again_when_it_changes(tmp_path: Path) -> None:
    async with Bench(tmp_path / "a") as bench:
        bench.path.write_text("bad")
        await asyncio.sleep(EVERY * 20)
        assert (bench.loaded, bench.told.lines) == ("one", [("failed", "file", "file", "bad is bad")])
        bench.path.unlink()
        await asyncio.sleep(EVERY * 20)
        assert bench.told.lines[1:] == [("failed", "file", "file", "No such file or directory")]
        bench.path.write_text("one")  # what was in force all the time: it is good again
        await asyncio.sleep(EVERY * 3)
        assert bench.told.lines[2:] == [("good", "file", "file", "one")]


@virtual
async def test_an_exception_that_nobody_foresaw_is_a_failed_load_and_the_watch_goes_on(tmp_path: Path) -> None:
    async with Bench(tmp_path / "a") as bench:
        bench.path.write_bytes(b"\xff")  # UnicodeDecodeError
        await asyncio.sleep(EVERY * 3)
        assert bench.told.lines[0][0] == "failed"
        bench.path.write_text("two")
        await asyncio.sleep(EVERY * 3)
        assert bench.loaded == "two"


@virtual
async def test_on_demand_all_are_loaded_changed_or_not_and_several_that_ask_are_one_round(tmp_path: Path) -> None:
    async with Bench(tmp_path / "a") as bench:
        first, second = bench.watch.wake(), bench.watch.wake()
        assert first is second
        await first
        assert bench.told.lines == [("good", "file", "signal", "one")]
        await bench.watch.wake()
        assert bench.loads == 2


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "loop", "name", "nul"])
def test_what_can_not_be_read_has_a_digest_of_its_own_and_holds_nobody_up(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    name = {"name": "x" * 5000, "nul": "a\0b"}.get(kind, str(path))
    contents = Contents([name, ""])
    assert contents.first == contents.look() != {}
    if kind in ("missing", "directory"):
        if kind == "directory":
            path.rmdir()
        path.write_text("one")
        assert contents.look() != contents.first


async def test_a_file_system_that_does_not_answer_holds_no_loop_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert STALL_SECONDS > EVERY
    monkeypatch.setattr("proxy.config.file_watch.STALL_SECONDS", 0.01)
    go, before = threading.Event(), threading.enumerate()
    bench = Bench(tmp_path / "a", in_thread=None)
    monkeypatch.setattr(Contents, "look", lambda self: go.wait(10) and self.first)
    async with bench:
        await until(lambda: bench.told.lines == [("stalled",)])
        assert sum(thread.name == "files" for thread in set(threading.enumerate()).difference(before)) == 1
        go.set()
        await until(lambda: ("answers",) in bench.told.lines)


async def test_files_are_read_and_loaded_in_a_thread_and_put_in_force_on_the_loop(tmp_path: Path) -> None:
    ran: list[tuple[str, str]] = []

    def load() -> Take:
        ran.append(("load", threading.current_thread().name))

        def take() -> str:
            ran.append(("take", threading.current_thread().name))
            return ""

        return take

    path = tmp_path / "a"
    path.write_text("one")
    watched = [Watched("file", (str(path),), load)]
    watch = FileWatch(watched, Contents([str(path)]), Told(), every=0.01)
    task = asyncio.create_task(watch.run())
    renamed(path, "two")
    await until(lambda: len(ran) == 2)
    assert ran == [("load", "files"), ("take", "MainThread")]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

"""The parts of the watch on files: what is read again, what a digest covers, when a load is due, by whom."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.config import file_watch
from proxy.config.file_watch import (
    EVERY,
    REREAD,
    RESTLESS,
    STALL_SECONDS,
    Content,
    Contents,
    FileWatch,
    Take,
    Watched,
    in_daemon,
    uncollected,
)
from proxy.errors import SettingsError
from tests.kit.clock import virtual
from tests.proxy.config.test_file_watch import Bench, Told, at_once


def nothing() -> Take:
    return lambda: ""


# -- contents


def test_a_file_is_read_again_where_it_is_marked_as_changed_or_after_some_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    whole = file_watch._digest_of

    def counted(path: str) -> tuple[bytes, tuple[int, ...]]:
        reads.append(path)
        return whole(path)

    monkeypatch.setattr(file_watch, "_digest_of", counted)
    path = tmp_path / "a"
    path.write_text("one")
    content = Content(str(path))
    found = []
    for _ in range(2 * REREAD + 1):
        content.look()
        found.append(len(reads))
    assert found == [1] * REREAD + [2] * REREAD + [3]
    path.write_text("two, longer")
    content.look()
    assert len(reads) == 4
    for _ in range(REREAD - 1):
        content.look()
    assert len(reads) == 4  # its age begins anew with each read


def test_what_cannot_be_read_has_its_reason_for_a_digest_and_is_read_when_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    content = Content(str(path))
    first = content.look()
    path.rename(tmp_path / "b")
    assert content.look() == b"error 2"
    (tmp_path / "b").rename(path)
    assert content.look() == first
    assert Content("a\0b").look() == b"error ValueError"
    assert Content(str(tmp_path)).look() == b"no regular file"


def test_a_digest_covers_what_is_loaded_and_no_byte_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "MOST_BYTES", 10)
    monkeypatch.setattr(file_watch, "_PIECE", 4)
    path = tmp_path / "a"

    def digest(text: str) -> bytes:
        path.write_text(text)
        return file_watch._digest_of(str(path))[0]

    same = digest("0123456789a")
    assert digest("0123456789ab") == digest("0123456789ac" * 3) == same
    assert (
        len({same, digest("0123456789b"), digest("012345678"), digest("0123456788a"), digest("x123456789a")}) == 5
    )


def test_files_that_are_looked_at_are_closed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("a", "."):
        for _ in range(5):
            file_watch._digest_of(str(tmp_path / name))
    assert len(os.listdir("/proc/self/fd")) == before


# -- when a load is due


def due(*digests: bytes, forced: bool = False) -> list[bool]:
    file = file_watch._File(Watched("f", ("a",), nothing), {"a": b"0"})
    return [file.due({"a": digest}, forced) for digest in digests]


@pytest.mark.parametrize(
    ("digests", "loads"),
    [
        ([b"0", b"0"], [False, False]),
        ([b"1", b"1", b"1"], [False, True, False]),
        ([b"1", b"2", b"2", b"2"], [False, False, True, False]),
        ([b"1", b"0", b"1", b"1"], [False, False, False, True]),
        ([b"%d" % n for n in range(1, RESTLESS + 3)], [False] * (RESTLESS - 1) + [True] + [False] * 2),
        (
            [b"%d" % n for n in range(1, RESTLESS)] + [b"0"] + [b"%d" % n for n in range(1, RESTLESS)],
            [False] * (2 * RESTLESS - 1),
        ),
        (
            [b"1", b"1", *(b"x%d" % n for n in range(RESTLESS))],
            [False, True] + [False] * (RESTLESS - 1) + [True],
        ),
    ],
    ids=["same", "changed", "settling", "back", "restless", "restless and back", "restless after a load"],
)
def test_a_load_is_due_when_another_content_has_settled_or_does_not_settle(
    digests: list[bytes], loads: list[bool]
) -> None:
    assert due(*digests) == loads


def test_on_demand_a_load_is_due_always_and_counts_as_one() -> None:
    file = file_watch._File(Watched("f", ("a",), nothing), {"a": b"0"})
    assert file.due({"a": b"1"}, True)
    assert not file.due({"a": b"1"}, False)
    for n in range(RESTLESS - 1):
        assert not file.due({"a": b"x%d" % n}, False)
    assert file.due({"a": b"y"}, True)
    assert [file.due({"a": b"z%d" % n}, False) for n in range(RESTLESS)] == [False] * (RESTLESS - 1) + [True]


# -- the watch


@virtual
async def test_a_watch_of_nothing_waits_to_be_asked() -> None:
    looks: list[float] = []

    def in_thread(work: Callable[[], Any]) -> asyncio.Future[Any]:
        looks.append(asyncio.get_running_loop().time())
        return at_once(work)

    watch = FileWatch([], Contents([]), Told(), in_thread=in_thread)
    assert (len(watch), repr(watch)) == (0, "<FileWatch of nothing>")
    task = asyncio.create_task(watch.run())
    await asyncio.sleep(100 * EVERY)
    assert looks == []
    await watch.wake()
    assert len(looks) == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@virtual
async def test_who_asks_twice_has_two_rounds_and_one_that_left_is_not_told(tmp_path: Path) -> None:
    async with Bench(tmp_path / "a") as bench:
        assert len(bench.watch) == 1
        first = bench.watch.wake()
        first.cancel()
        await asyncio.sleep(0.1)
        await bench.watch.wake()
        assert [line[:3] for line in bench.told.lines] == [("good", "file", "signal")] * 2
        await asyncio.sleep(EVERY * 3)
        assert bench.loads == 2


@virtual
async def test_a_file_system_that_does_not_answer_is_told_after_its_time_and_again_when_it_does(
    tmp_path: Path,
) -> None:
    loop = asyncio.get_running_loop()
    told: list[tuple[float, str, float]] = []

    class Stalls(Told):
        def stalled(self, seconds: float) -> None:
            told.append((loop.time(), "stalled", seconds))

        def answers(self) -> None:
            told.append((loop.time(), "answers", 0.0))

    for takes, expected in ((STALL_SECONDS - 1, 0), (STALL_SECONDS + 5, 2)):
        told.clear()
        began = loop.time()

        def in_thread(work: Callable[[], Any], takes: float = takes) -> asyncio.Future[Any]:
            future: asyncio.Future[Any] = loop.create_future()
            loop.call_later(takes, lambda: future.set_result(work()))
            return future

        watch = FileWatch([], Contents([]), Stalls(), in_thread=in_thread)
        task = asyncio.create_task(watch.run())
        await watch.wake()
        assert loop.time() - began == pytest.approx(takes)
        assert [(what, seconds) for _, what, seconds in told] == [("stalled", STALL_SECONDS), ("answers", 0.0)][
            :expected
        ]
        assert [at - began for at, _, _ in told] == pytest.approx([STALL_SECONDS, takes][:expected])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_what_is_no_regular_file_is_not_loaded_whatever_comes_before_it(tmp_path: Path) -> None:
    loads: list[int] = []

    def load() -> Take:
        loads.append(1)
        return lambda: ""

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for paths in (["missing", "fifo"], ["a\0b", "fifo"], ["file", "fifo"], [".", "fifo"]):
        with pytest.raises(SettingsError, match="is not a regular file, so it is not reloaded"):
            file_watch._loaded(Watched("f", [str(tmp_path / path) for path in paths], load))
    assert loads == []
    file_watch._loaded(Watched("f", [str(tmp_path / path) for path in ("missing", "file", ".")], load))
    assert loads == [1]


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_what_is_loaded_is_kept_from_the_collector(enabled: bool, fails: bool) -> None:
    during: list[bool] = []

    def load() -> Take:
        during.append(gc.isenabled())
        if fails:
            raise SettingsError("x")
        return lambda: "taken"

    before = gc.isenabled()
    gc.unfreeze()
    (gc.enable if enabled else gc.disable)()
    try:
        if fails:
            with pytest.raises(SettingsError):
                uncollected(load)
        else:
            assert uncollected(load)() == "taken"
        assert (during, gc.isenabled(), gc.get_freeze_count() > 0) == ([False], enabled, enabled)
    finally:
        gc.freeze()  # as `tests/conftest.py` left it
        (gc.enable if before else gc.disable)()


# -- the thread


def since(before: list[threading.Thread]) -> set[threading.Thread]:
    """The threads without those of earlier tests."""
    return set(threading.enumerate()).difference(before)


async def test_work_is_done_in_a_thread_that_the_end_does_not_wait_for() -> None:
    seen: list[threading.Thread] = []

    def work() -> str:
        seen.append(threading.current_thread())
        return "done"

    assert await in_daemon(work) == "done"
    (thread,) = seen
    assert (thread.daemon, thread.name) == (True, "files")


async def test_what_work_raises_is_raised_where_it_is_awaited() -> None:
    def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await in_daemon(work)


async def test_work_that_nobody_waits_for_any_more_is_forgotten() -> None:
    go, before = threading.Event(), threading.enumerate()
    told: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    future = in_daemon(go.wait)
    future.cancel()
    go.set()
    await in_daemon(lambda: None)  # its own thread: let that of the first end too
    while any(thread.name == "files" for thread in since(before)):  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert told == []


def test_work_that_ends_after_the_loop_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    go, before = threading.Event(), threading.enumerate()
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    async def begins() -> None:
        in_daemon(go.wait)

    asyncio.run(begins())
    threads = [thread for thread in since(before) if thread.name == "files"]
    go.set()
    for thread in threads:
        thread.join(10)
    assert (len(threads), told) == (1, [])

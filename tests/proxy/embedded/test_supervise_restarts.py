"""A supervised child that dies: when it is started again, what is told, and how it is ended, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.embedded.supervise import (
    GRACE,
    LINE_CHARS,
    LOOK_EVERY,
    SETTLED,
    SHOWN_LINES,
    TAIL_LINES,
    Child,
    ChildFailed,
)
from tests.kit.clock import virtual

Life = float | Exception


def after(seconds: float) -> asyncio.Future[None]:
    """Of virtual time."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not over.done():
            over.set_result(None)

    loop.call_later(seconds, end)
    return over


class Lives(Child):
    """A child without a process: each life is so long, or fails at once. The last one does not end."""

    def __init__(self, *lives: Life, jitter: float = 1.0) -> None:
        self.told: list[tuple[str, str]] = []

        async def serves() -> bool:
            return True

        def tell(event: str, detail: str) -> None:
            self.told.append((event, detail))

        super().__init__("child", ["x"], serves, on_event=tell, jitter=lambda: jitter)
        self._lives: Iterator[Life] = iter(lives)
        self.began: list[float] = []

    async def _run(self, up: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        self.began.append(loop.time())
        life = next(self._lives, None)
        if isinstance(life, Exception):
            raise life
        if not up.done():
            up.set_result(None)
        if life is None:
            await loop.create_future()
        else:
            await after(life)

    @property
    def pauses(self) -> list[str]:
        return [detail.partition(" in ")[2].partition(" s;")[0] for event, detail in self.told if event == "died"]


async def lived(child: Lives) -> None:
    await child.start()
    await after(1000.0)
    await child.stop()
    await child.stop()  # there is nothing left to end


@virtual
async def test_pauses_grow_to_the_longest() -> None:
    child = Lives(*[0.0] * 9)
    await lived(child)
    assert child.pauses == ["0.10", "0.20", "0.40", "0.80", "1.60", "3.20", "6.40", "10.00", "10.00"]
    assert child.restarts == 9
    assert child.began[-1] == pytest.approx(12.7 + 20.0)


@virtual
async def test_a_child_that_was_up_for_long_starts_with_the_first_pause_again() -> None:
    child = Lives(0.0, 0.0, SETTLED, SETTLED + 0.1, 0.0, jitter=0.5)
    await lived(child)
    assert child.pauses == ["0.05", "0.10", "0.20", "0.05", "0.10"]


@virtual
async def test_a_restart_that_fails_is_told_and_tried_again() -> None:
    child = Lives(0.0, ChildFailed("it did not serve"), OSError("no process"), 0.0)
    await lived(child)
    assert [detail for event, detail in child.told if event == "failed"] == ["it did not serve", "no process"]
    assert child.pauses == ["0.10", "0.20", "0.40", "0.80"]


@virtual
async def test_a_first_start_that_fails_is_raised_and_not_tried_again() -> None:
    for error, words in ((ChildFailed("broken"), "^broken$"), (OSError("none"), "^child: none$")):
        child = Lives(error, 0.0)
        with pytest.raises(ChildFailed, match=words):
            await child.start()
        assert (child.restarts, child.told, len(child.began)) == (0, [], 1)


class Process:
    """A process that ends `ends_after` seconds after it is asked to, or is gone already."""

    def __init__(self, *, ends_after: float = 0.0, gone: bool = False) -> None:
        self.returncode: int | None = None
        self.told: list[str] = []
        self._ends_after = ends_after
        self._gone = gone
        self._ended = asyncio.Event()

    def end(self, code: int) -> None:
        self.returncode = code
        self._ended.set()

    def terminate(self) -> None:
        self.told.append("terminate")
        if self._gone:
            asyncio.get_running_loop().call_later(1.0, self.end, -9)
            raise ProcessLookupError
        asyncio.get_running_loop().call_later(self._ends_after, self.end, -15)

    def kill(self) -> None:
        self.told.append("kill")
        if self._gone:
            raise ProcessLookupError
        self.end(-9)

    async def wait(self) -> None:
        await self._ended.wait()


def child_of(serves: Any = None, patience: float = 1.0) -> Child:
    return Child("child", ["x"], serves, patience=patience)


@pytest.mark.parametrize(
    ("after", "told", "at"),
    [
        (0.5, ["terminate"], 0.5),
        (GRACE - 0.1, ["terminate"], GRACE - 0.1),
        (GRACE + 5, ["terminate", "kill"], GRACE),
    ],
)
@virtual
async def test_a_child_has_its_grace_to_end(after: float, told: list[str], at: float) -> None:
    process = Process(ends_after=after)
    await child_of()._end(cast(Any, process))
    assert process.told == told
    assert asyncio.get_running_loop().time() == pytest.approx(at)


@virtual
async def test_a_child_that_has_ended_or_is_just_ending_is_left_alone() -> None:
    ended = Process()
    ended.end(3)
    await child_of()._end(cast(Any, ended))
    assert ended.told == []
    going = Process(gone=True)
    await child_of()._end(cast(Any, going))
    assert (going.told, going.returncode) == (["terminate", "kill"], -9)


@virtual
async def test_a_child_is_looked_at_until_it_serves_or_ends_or_its_time_is_over() -> None:
    looks = 0

    async def third() -> bool:
        nonlocal looks
        looks += 1
        return looks == 3

    process = Process()
    assert await child_of(third)._until_it_serves(cast(Any, process)) is None
    assert asyncio.get_running_loop().time() == pytest.approx(2 * LOOK_EVERY)

    async def says_yes_and_ends() -> bool:
        process.end(4)
        return True

    assert await child_of(says_yes_and_ends)._until_it_serves(cast(Any, process)) is not None
    process = Process()
    assert await child_of(says_yes_and_ends)._until_it_serves(cast(Any, process)) == "ended with status 4"

    async def never() -> bool:
        return False

    began = asyncio.get_running_loop().time()
    process = Process()
    assert await child_of(never)._until_it_serves(cast(Any, process)) == "did not serve within 1 s"
    assert asyncio.get_running_loop().time() - began == pytest.approx(1.0)


@virtual
async def test_the_end_of_what_a_child_says_is_kept_and_less_of_it_told() -> None:
    child = child_of()
    assert child._said() == "nothing"
    stdout = asyncio.StreamReader()
    stdout.feed_data(
        b"\n\n" + b"".join(b"line %d\n" % n for n in range(TAIL_LINES + 20)) + b"x" * 1000 + b"\n\xff\n"
    )
    stdout.feed_eof()
    await child._read(cast(Any, SimpleNamespace(stdout=stdout)))
    assert len(child._tail) == TAIL_LINES
    said = child._said().split(" | ")
    assert len(said) == SHOWN_LINES
    assert said[-1] == "\ufffd"
    assert said[-2] == "x" * LINE_CHARS


def test_before_its_start_a_child_has_no_process() -> None:
    child = child_of()
    assert (child.pid, child.restarts) == (None, 0)

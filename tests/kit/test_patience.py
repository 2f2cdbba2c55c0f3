"""A test's patience: by the machine's progress."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys

import pytest

from tests.kit.clock import virtual
from tests.kit.patience import LEAST, SHARE, STEP, Patience, Recent, contended, patience, run_process


class Machine:
    def __init__(self) -> None:
        self.now = 100.0
        self.contended: float | None = 7.0

    def patience(self, seconds: float) -> Patience:
        return Patience(seconds, lambda: self.now, lambda: self.contended)


def test_on_an_idle_machine_patience_is_the_clock_s() -> None:
    machine = Machine()
    waiting = machine.patience(10.0)
    assert waiting.left == 10.0
    machine.now += 9.5
    assert waiting.left == 0.5
    machine.now += 0.5 - LEAST / 2
    assert waiting.left == LEAST
    machine.now += LEAST
    assert waiting.left == 0.0


def test_time_in_which_a_task_waited_for_a_cpu_counts_as_a_share() -> None:
    machine = Machine()
    waiting = machine.patience(10.0)
    machine.now += 50.0
    machine.contended = 57.0
    assert math.isclose(waiting.left, 10.0 - 50.0 * SHARE)
    machine.now += 5.1
    assert waiting.left == 0.0


def test_time_in_which_the_process_stood_still_is_not_counted() -> None:
    machine = Machine()
    waiting = machine.patience(2 * STEP)
    assert waiting.step() == STEP
    machine.now += 60.0
    assert waiting.step() == STEP
    machine.now += STEP
    assert waiting.step() == 0.0


def test_more_contended_time_than_time_does_not_lengthen_patience() -> None:
    machine = Machine()
    waiting = machine.patience(1.0)
    machine.now += 1.0
    machine.contended = 1000.0
    assert math.isclose(waiting.left, 1.0 - SHARE)


@pytest.mark.parametrize(("load", "left"), [(1.0, 0.0), (9.0, 1.0 - 2.0 * SHARE)])
def test_where_it_is_not_counted_the_load_decides(
    monkeypatch: pytest.MonkeyPatch, load: float, left: float
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    machine = Machine()
    machine.contended = None
    waiting = machine.patience(1.0)
    machine.now += 2.0
    assert math.isclose(waiting.left, left)


def test_what_linux_counts_grows_or_is_not_there() -> None:
    before = contended()
    after = contended()
    assert (before is None and after is None) or (before is not None and after is not None and after >= before)


def test_a_reading_is_taken_again_when_it_is_old() -> None:
    machine = Machine()
    recent = Recent(lambda: machine.contended, lambda: machine.now)
    assert recent() == 7.0
    machine.contended = 8.0
    assert recent() == 7.0
    machine.now += LEAST
    assert recent() == 8.0


async def test_a_body_that_hangs_ends_with_a_time_out() -> None:
    with pytest.raises(TimeoutError):
        async with patience(0.01):
            await asyncio.Event().wait()


@virtual
async def test_a_body_that_ends_in_time_is_left_alone_and_so_is_what_follows() -> None:
    async with patience(10.0):
        await asyncio.sleep(9.0)
    await asyncio.sleep(9.0)


def hang(code: str = "import signal; signal.pause()") -> list[str]:
    return [sys.executable, "-c", code]


def test_a_process_that_hangs_is_killed() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_process(hang(), seconds=0.01)


def test_a_process_is_given_its_input_and_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "step", lambda self: 0.001)  # every look but the last is too early
    done = run_process(hang("print(input() * 2)"), seconds=9.0, input="ab", capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "abab\n", "")
    with pytest.raises(subprocess.CalledProcessError):
        run_process(hang("exit(3)"), seconds=9.0, check=True)

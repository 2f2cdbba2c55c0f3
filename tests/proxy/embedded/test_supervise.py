"""A supervised child: up before `start` returns, up again when it dies, gone with its gateway."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from proxy.embedded import supervise
from proxy.embedded.supervise import Child, ChildFailed
from tests.kit.patience import run_process
from tests.proxy.embedded.processes import DEADLINE, Events, Watched

Serves = Callable[[], Awaitable[bool]]

FOR_EVER = [sys.executable, "-c", "import signal; signal.pause()"]
DEAF = """
import pathlib, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
while True:
    signal.pause()
"""
PARENT = """
import asyncio, sys
from proxy.embedded.supervise import Child

async def yes():
    return True

async def main():
    child = Child("sleeper", [sys.executable, "-c", "import signal; signal.pause()"], yes)
    await child.start()
    print(child.pid, flush=True)
    await asyncio.Event().wait()

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


async def yes() -> bool:
    return True


async def no() -> bool:
    return False


def exists(path: Path) -> Serves:
    async def look() -> bool:
        return os.access(path, os.F_OK)

    return look


def seen(path: Path) -> Serves:
    """It serves from the first look on, which the child can see."""

    async def look() -> bool:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        return True

    return look


def after(path: Path, script: str) -> list[str]:
    """A child that does not end before it has been looked at, however late that is."""
    return ["sh", "-c", f"while [ ! -e {path} ]; do sleep 0.02; done; {script}"]


def pid_of(child: Child) -> int:
    assert child.pid is not None
    return child.pid


async def test_a_stopped_child_is_gone_and_stays_gone() -> None:
    events = Events()
    child = Child("sleeper", FOR_EVER, yes, on_event=events)
    await child.start()
    process = Watched(pid_of(child))
    await child.stop()
    assert process.gone(0)
    assert [event for event, _ in events.told] == ["up"]
    await child.stop()  # a second time is no error


async def test_start_returns_only_once_the_child_serves(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = Child("deaf", [sys.executable, "-c", DEAF.replace("SIG_IGN", "SIG_DFL"), str(mark)], exists(mark))
    await child.start()
    assert mark.exists()
    await child.stop()


async def test_a_child_that_is_killed_is_started_again() -> None:
    events = Events()
    child = Child("sleeper", FOR_EVER, yes, on_event=events, jitter=lambda: 0.0)
    await child.start()
    first = pid_of(child)
    os.kill(first, signal.SIGKILL)
    await events.until(lambda: len(events.details("up")) == 2)
    assert pid_of(child) != first
    assert child.restarts == 1
    await child.stop()


async def test_the_pause_before_a_restart_doubles_while_it_keeps_dying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "SETTLED", math.inf)  # on a busy machine it may take long to die
    events, looked = Events(), tmp_path / "looked"
    command = after(looked, "echo last words; exit 3")
    child = Child("dying", command, seen(looked), on_event=events, jitter=lambda: 1.0)
    await child.start()
    await events.until(lambda: len(events.details("died")) == 3)
    await child.stop()
    assert events.details("died") == [
        f"restart in {pause} s; its last output: last words" for pause in ("0.10", "0.20", "0.40")
    ]


async def test_what_an_earlier_life_said_is_not_told_of_a_later_one(tmp_path: Path) -> None:
    events, mark, looked = Events(), tmp_path / "mark", tmp_path / "looked"
    says = f"if [ -e {mark} ]; then echo second; else touch {mark}; echo first; fi; exit 3"
    child = Child("dying", after(looked, says), seen(looked), on_event=events, jitter=lambda: 0.0)
    await child.start()
    await events.until(lambda: len(events.details("died")) == 2)
    await child.stop()
    assert [detail.partition("its last output: ")[2] for detail in events.details("died")] == ["first", "second"]


async def test_a_child_that_is_deaf_to_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "GRACE", 0.05)
    mark = tmp_path / "mark"
    child = Child("deaf", [sys.executable, "-c", DEAF, str(mark)], exists(mark))
    await child.start()
    process = Watched(pid_of(child))
    await child.stop()
    assert process.gone(0)


async def test_a_child_that_ends_before_it_serves_says_why() -> None:
    child = Child("broken", ["sh", "-c", "seq 100000; echo no such model >&2; exit 7"], no)
    with pytest.raises(ChildFailed, match=r"broken ended with status 7: .*99999 \| 100000 \| no such model"):
        await child.start()


async def test_a_command_that_is_not_there_is_named() -> None:
    child = Child("absent", ["/no/such/program"], no)
    with pytest.raises(ChildFailed, match=r"absent ended with status 1: .*No such file or directory"):
        await child.start()


async def test_a_process_that_cannot_be_made_is_an_error_and_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    child = Child("unmade", FOR_EVER, no)
    with pytest.raises(ChildFailed, match=r"unmade: .*No such file"):
        await child.start()


async def test_a_child_that_never_serves_is_given_up_and_ended() -> None:
    pids: list[Watched] = []

    async def look() -> bool:
        if not pids:
            pids.append(Watched(pid_of(child)))
        return False

    child = Child("mute", FOR_EVER, look, patience=0.1)
    with pytest.raises(ChildFailed, match=r"mute did not serve within 0\.1 s: nothing"):
        await child.start()
    assert pids[0].gone(0)


async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    seen: asyncio.Future[Watched] = asyncio.get_running_loop().create_future()

    async def look() -> bool:
        if not seen.done():
            seen.set_result(Watched(pid_of(child)))
        return False

    child = Child("slow", FOR_EVER, look)
    starting = asyncio.create_task(child.start())
    process = await seen
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert process.gone(0)


def test_under_uvloop_a_child_starts_comes_back_and_stops() -> None:
    async def main() -> None:
        events = Events()
        child = Child("sleeper", FOR_EVER, yes, on_event=events, jitter=lambda: 0.0)
        await child.start()
        os.kill(pid_of(child), signal.SIGKILL)
        await events.until(lambda: len(events.details("up")) == 2)
        process = Watched(pid_of(child))
        await child.stop()
        assert process.gone(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_killed_parent_takes_its_child_along(loop: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, loop], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = Watched(int(parent.stdout.readline()))
        parent.kill()
        assert child.gone()


def test_the_launcher_starts_nothing_for_a_parent_that_is_gone() -> None:
    launch = [sys.executable, "-m", "proxy.embedded.launch", "1", "echo", "started"]
    done = run_process(launch, capture_output=True, text=True, seconds=DEADLINE)
    assert (done.returncode, done.stdout) == (1, "")


async def test_ctrl_c_at_the_terminal_does_not_reach_the_child() -> None:
    child = Child("sleeper", FOR_EVER, yes)
    await child.start()
    try:
        assert os.getpgid(pid_of(child)) in (os.getpgid(0), pid_of(child))  # before or after the exec
        assert os.getsid(pid_of(child)) == pid_of(child)
    finally:
        await child.stop()

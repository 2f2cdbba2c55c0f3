"""What every test gets: Hypothesis profiles, time limit, leak check, choice of markers, scripted engine."""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_timeout
from hypothesis import settings

from tests.kit.accepting import mend_accept
from tests.kit.engine import Engine
from tests.kit.leaks import check_groups, check_tasks, recorded_groups
from tests.kit.patience import Alarm

# HYPOTHESIS_PROFILE=deep is the nightly look; `fast` keeps the pure tests under seconds.
settings.register_profile("fast", deadline=None, max_examples=60, derandomize="CI" in os.environ)
settings.register_profile("deep", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

LONGEST = (
    *("tests/system/test_contained.py", "tests/system/test_chaos.py", "tests/loadgen/cli/test_find.py"),
    *("tests/loadgen/cli/test_loads.py", "tests/ops/bench/vllm/test_admission.py", "tests/ops/test_mutation.py"),
    *("tests/proxy/test_terminal_streams.py", "tests/proxy/redis/test_cluster.py"),
    *("tests/proxy/redis/test_sentinel.py", "tests/real/test_gpu_bench.py"),
)
"""Files of half a minute and more: one that a worker takes late is what the others wait for. The last one measures
a vLLM of its own, so it comes before the tests that share one."""
LONG = ("tests/ops/", "tests/loadgen/", "tests/system/", "tests/proxy/embedded/", "tests/proxy/server/page/")
"""Folders of tests that start processes."""


def pytest_configure() -> None:
    """The same for programs that tests start, wherever pytest was started; and a fault of asyncio is mended.

    A file is compiled once: else it is a third of the start of each program. A background job of a shell ignores
    Ctrl-C, and so would what it starts.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    mend_accept()


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Garbage is not looked for meanwhile: all that is made stays. Nor is that looked at later, which is 0.4 s for
    each collection. And workers share the compiling."""
    gc.disable()
    try:
        _import_tests(session.config)
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def _import_tests(config: pytest.Config) -> None:
    """In a worker that collects all tests: each worker begins with another part of the files, and finds the others
    compiled. In the same order each would compile every file, which is half of what it takes to collect them."""
    worker: dict[str, str] = getattr(config, "workerinput", {})
    if not worker or config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    files = sorted((config.rootpath / "tests").rglob("test_*.py"))
    begin = len(files) * int(worker["workerid"].removeprefix("gw")) // int(worker["workercount"])
    for file in files[begin:] + files[:begin]:
        with suppress(Exception):  # whatever a module raises is told when it is collected
            importlib.import_module(".".join(file.relative_to(config.rootpath).with_suffix("").parts))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m vllm`: files in which no test has the mark. To import the others takes half a minute."""
    if config.option.markexpr != "vllm" or collection_path.suffix != ".py":
        return None
    return "pytest.mark.vllm" not in collection_path.read_text() or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`vllm` tests need an installed vLLM: they run only where `-m vllm` asks for them by name.

    They are deselected, not skipped: an ordinary run then has no skips that mean nothing. `e2e` tests
    run by default and are left out with `-m "not e2e"`.

    The longest files come first, then those of long tests, so that workers end at about the same time; each takes
    the next file as it is.
    """
    items.sort(key=lambda item: (not item.nodeid.startswith(LONGEST), not item.nodeid.startswith(LONG)))
    if "vllm" in config.option.markexpr:
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("vllm")])
    items[:] = [item for item in items if not item.get_closest_marker("vllm")]


_alarm = pytest.StashKey[Alarm]()


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool | None:
    """The time limit of a test is patience (`tests.kit.patience`), except in a thread: there the clock decides."""
    if settings.method != "signal" or threading.current_thread() is not threading.main_thread():
        return None
    item.stash[_alarm] = Alarm(settings.timeout, lambda: pytest_timeout.timeout_sigalrm(item, settings))
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> bool | None:
    alarm = item.stash.get(_alarm, None)
    if alarm is None:
        return None
    alarm.cancel()
    return True


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """After the test and its other fixtures: no task in its loop, no flight in any FlightGroup.

    Only an async test gets a loop for it; a pure one costs nothing.
    """
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("no_leaked_tasks")
    with recorded_groups() as groups:
        yield
    check_groups(groups)


@pytest.fixture
async def no_leaked_tasks() -> AsyncIterator[None]:
    yield
    await check_tasks()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """A scripted fake engine: nothing is answered until the test says so."""
    async with Engine() as engine:
        yield engine


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Its reading end and its writing end; a test may close either."""
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass  # the test closed it

"""What Python would write to stderr by itself is in the log, however often, from wherever, whatever it says."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from proxy.telemetry.faults import MAX_TEXT, Faults, _crashed
from proxy.telemetry.log import Log
from tests.client import get
from tests.engine import Engine
from tests.running import gateway
from tests.test_log import Sink

pytestmark = pytest.mark.filterwarnings("default")


@contextmanager
def faults() -> Iterator[tuple[Faults, Callable[[], list[dict[str, Any]]]]]:
    """Installed, and what has been logged once it is closed."""
    sink = Sink()
    log = Log(-1, write=sink)
    made = Faults(log)
    made.install()

    def told() -> list[dict[str, Any]]:
        made.close()
        assert log.close(10)
        return [msgspec.json.decode(line) for line in sink.data.splitlines()]

    try:
        yield made, told
    finally:
        made.uninstall()
        log.close()


class Broken:
    def __del__(self) -> None:
        raise ValueError("in a destructor")

    def __repr__(self) -> str:
        raise TypeError("no words")


def in_a_callback(made: Faults) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(made.of_loop)
        loop.call_soon(lambda: 1 // 0)
        await asyncio.sleep(0)

    asyncio.run(run())


def in_a_task(made: Faults) -> None:
    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(made.of_loop)
        task = asyncio.ensure_future(asyncio.to_thread(int))
        task.add_done_callback(lambda _: 1 // 0)
        await task
        await asyncio.sleep(0)

    asyncio.run(run())


def in_a_destructor(made: Faults) -> None:
    Broken()
    gc.collect()


def in_a_thread(made: Faults) -> None:
    thread = threading.Thread(target=lambda: 1 // 0, name="worker")
    thread.start()
    thread.join()


def by_logging(made: Faults) -> None:
    logging.getLogger("some.library").error("it failed: %s", "why")


def by_logging_an_exception(made: Faults) -> None:
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("aiohttp.server").exception("handler failed")


def by_logging_what_does_not_fit(made: Faults) -> None:
    logging.getLogger("x").error("%d %d", "a", Broken())


def by_a_warning(made: Faults) -> None:
    warnings.warn("old", DeprecationWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("fail", "source", "says"),
    [
        (in_a_callback, "loop", "ZeroDivisionError"),
        (in_a_task, "loop", "ZeroDivisionError"),
        (in_a_destructor, "destructor", "in a destructor"),
        (in_a_thread, "thread", "ZeroDivisionError"),
        (by_logging, "some.library", "it failed: why"),
        (by_logging_an_exception, "aiohttp.server", "ValueError: why"),
        (by_logging_what_does_not_fit, "x", "_Said"),
        (by_a_warning, "py.warnings", "DeprecationWarning: old"),
    ],
)
def test_it_is_one_line_of_the_log_and_nothing_on_stderr(
    fail: Callable[[Faults], None], source: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with faults() as (made, told):
        fail(made)
        lines = [line for line in told() if line["source"] == source]
    assert len(lines) == 1
    assert lines[0]["msg"] == "fault"
    assert says in f"{lines[0].get('detail')} {lines[0].get('fault')}"
    assert capfd.readouterr().err == ""


def test_where_it_was_is_told_from_the_inside_out() -> None:
    with faults() as (made, told):
        in_a_thread(made)
        (line,) = told()
    places = line["where"].split(" < ")
    assert places[0].startswith("test_faults.py:")
    assert "threading.py" in places[-1]


def test_a_flood_is_a_few_lines_and_a_count() -> None:
    count = 20_000
    with faults() as (_, told):
        for _ in range(count):
            logging.getLogger("x").warning("again %s", "y" * 10_000)
        lines = told()
    assert len(lines) < 100
    assert all(len(line.get("detail", "")) <= MAX_TEXT for line in lines)
    assert any(line["msg"] in ("log lines left out", "faults left out") for line in lines)


def test_a_destructor_that_runs_while_the_log_is_locked_waits_for_nothing() -> None:
    loop = asyncio.new_event_loop()
    with faults() as (made, told):
        with made._log._lock:
            in_a_destructor(made)
            by_logging(made)
            made.of_loop(loop, {"message": "closed"})
        assert len(told()) >= 3
    loop.close()


def test_all_hooks_are_as_before_afterwards() -> None:
    root = logging.getLogger()
    before = (sys.excepthook, sys.unraisablehook, threading.excepthook, root.handlers[:])
    with faults():
        assert sys.excepthook is not before[0]
    assert (sys.excepthook, sys.unraisablehook, threading.excepthook, root.handlers[:]) == before


async def test_callbacks_that_fail_again_and_again_stop_no_request(engine: Engine) -> None:
    with faults() as (made, told):
        loop = asyncio.get_running_loop()
        before = loop.get_exception_handler()
        loop.set_exception_handler(made.of_loop)
        try:
            async with gateway(engine) as app:
                for _ in range(20):
                    for _ in range(500):
                        loop.call_soon(lambda: 1 // 0)
                    assert (await get(app.url, "/health")).status == 200
        finally:
            loop.set_exception_handler(before)
        lines = told()
    assert 0 < len(lines) < 200


def test_an_exception_that_ends_the_process_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("proxy.telemetry.faults.say", lambda words, wait: said.append(words))
    try:
        raise ValueError("it broke")
    except ValueError as error:
        _crashed(ValueError, error, error.__traceback__)
    (line,) = said
    assert line.startswith("proxy: ValueError: it broke at ")
    assert "test_faults.py" in line
    assert line.endswith("\n")

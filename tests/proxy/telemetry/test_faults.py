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
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from proxy.telemetry.faults import MAX_TEXT, MAX_WAITING, Faults, _crashed
from proxy.telemetry.log import Log
from tests.kit.client import get
from tests.kit.engine import Engine
from tests.kit.running import gateway
from tests.proxy.telemetry.test_log import Sink

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def time_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test is about that bound, and on a busy machine the thread may need longer."""
    monkeypatch.setattr("proxy.telemetry.faults.CLOSE_SECONDS", 30.0)


@contextmanager
def faults() -> Iterator[tuple[Faults, Callable[[], list[dict[str, Any]]]]]:
    """Installed, and what has been logged once it is closed."""
    sink = Sink()
    log = Log(-1, write=sink)
    made = Faults(log)
    made.install()

    def told() -> list[dict[str, Any]]:
        made.close()
        assert log.close(30)
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
    # A collection may come meanwhile, in which the garbage of earlier tests warns or raises.
    (line,) = [line for line in lines if says in f"{line.get('detail')} {line.get('fault')}"]
    assert line["msg"] == "fault"
    assert capfd.readouterr().err == ""


def test_where_it_was_is_told_from_the_inside_out() -> None:
    with faults() as (made, told):
        in_a_thread(made)
        (line,) = [line for line in told() if line["source"] == "thread"]
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


class Noted:
    """A log that keeps what it is told, and may be told to fail."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str, dict[str, Any]]] = []
        self.fails = 0

    def often(self, level: str, msg: str, like: str = "", **fields: Any) -> None:
        if self.fails:
            self.fails -= 1
            raise ZeroDivisionError
        self.lines.append((level, msg, like, fields))


def noted() -> tuple[Faults, Noted]:
    """Not installed; its thread begins when the test says so."""
    log = Noted()
    return Faults(cast(Log, log)), log


def test_faults_over_the_bound_are_counted_and_that_is_said_once() -> None:
    made, log = noted()
    for n in range(MAX_WAITING + 3):
        made.tell("error", "x", n, None)
    assert (made._queue.qsize(), repr(made)) == (MAX_WAITING, f"<Faults waiting={MAX_WAITING}>")
    made._thread.start()
    made.close()
    assert [line[3]["detail"] for line in log.lines if line[1] == "fault"] == [str(n) for n in range(MAX_WAITING)]
    assert [line for line in log.lines if line[1] != "fault"] == [("warning", "faults left out", "", {"count": 3})]


def test_a_log_that_fails_once_ends_nothing() -> None:
    made, log = noted()
    log.fails = 1
    for n in range(2):
        made.tell("error", "x", n, None)
    made._thread.start()
    made.close()
    assert [line[3]["detail"] for line in log.lines] == ["1"]


def test_what_is_told_of_each_hook() -> None:
    made, log = noted()
    error, loop = ValueError("why"), cast(asyncio.AbstractEventLoop, None)
    made.of_loop(loop, {"message": "m", "exception": error})
    made.of_loop(loop, {"message": "m", "exception": "odd"})
    made.of_loop(loop, {})
    unraisable: Any = SimpleNamespace(err_msg=None, exc_value=error)
    made._unraisable(unraisable)
    unraisable.err_msg = "words"
    made._unraisable(unraisable)
    thread: Any = SimpleNamespace(thread=None, exc_value=error)
    made._thread_failed(thread)
    thread.thread = SimpleNamespace(name="t" * 600)
    made._thread_failed(thread)
    made.tell("warning", "s" * 600, "d" * 600, None)
    made._thread.start()
    made.close()
    told = [(fields["source"], fields["detail"], fields["fault"]) for _, _, _, fields in log.lines]
    why = "ValueError: why"
    assert told == [
        ("loop", "m", why), ("loop", "m", ""), ("loop", "", ""), ("destructor", "Exception ignored", why),
        ("destructor", "words", why), ("thread", "", why), ("thread", "t" * MAX_TEXT, why),
        ("s" * MAX_TEXT, "d" * MAX_TEXT, ""),
    ]  # fmt: skip
    assert [level for level, *_ in log.lines] == ["error"] * 7 + ["warning"]
    assert log.lines[0][2] == f"loop {why} "
    assert log.lines[1][2] == "loop m "
    assert log.lines[-1][2] == f"{'s' * MAX_TEXT} {'d' * 80} "


def test_errors_of_libraries_are_errors_and_less_than_a_warning_is_nothing() -> None:
    made, log = noted()
    logger = logging.Logger("lib", logging.DEBUG)
    logger.addHandler(made._handler)
    logger.info("nothing")
    logger.warning("%s", "odd")
    logger.log(logging.ERROR - 1, "odd")
    logger.error("bad")
    logger.critical("worse")
    made._thread.start()
    made.close()
    told = [(level, fields["detail"]) for level, _, _, fields in log.lines]
    assert told == [("warning", "odd"), ("warning", "odd"), ("error", "bad"), ("error", "worse")]


def test_installed_it_takes_the_place_of_every_hook_and_is_gone_afterwards() -> None:
    root = logging.getLogger()
    other = logging.NullHandler()
    root.addHandler(other)
    try:
        with faults() as (made, _):
            assert root.handlers == [made._handler]
            assert (sys.excepthook, sys.unraisablehook) == (_crashed, made._unraisable)
            assert threading.excepthook == made._thread_failed
            showing = warnings.showwarning
        assert warnings.showwarning is not showing
        assert made._handler not in root.handlers
        assert other in root.handlers
        assert not made._thread.is_alive()
    finally:
        root.removeHandler(other)

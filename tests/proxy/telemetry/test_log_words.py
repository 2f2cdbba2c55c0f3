"""What a line of the log holds, to the character: levels, bounds of texts, columns, and what it says of itself."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from proxy.telemetry.log import MAX_FIELD, MAX_PROMPT, Log, RequestRecord
from proxy.telemetry.repeats import OFTEN
from tests.proxy.telemetry.test_log import NOW, RECORD, Sink, line, logged


def told(write: Callable[[Log], None]) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(line(write))
    return found


def record(**changes: Any) -> RequestRecord:
    return msgspec.structs.replace(RECORD, **changes)


@pytest.mark.parametrize(
    ("status", "error", "level"),
    [
        (399, "x", "warning"),
        (400, "x", "info"),
        (499, "x", "info"),
        (499, None, "info"),
        (500, None, "warning"),
        (501, "x", "warning"),
    ],
)
def test_the_level_of_a_request_at_the_bounds_of_its_status(status: int, error: str | None, level: str) -> None:
    assert told(lambda log: log.request(record(status=status, error=error)))["level"] == level


def test_a_prompt_at_the_bound_is_whole() -> None:
    whole = "é" * MAX_PROMPT
    assert told(lambda log: log.request(record(prompt=whole)))["prompt"] == whole
    assert told(lambda log: log.request(record(prompt="a")))["prompt"] == "a"


def test_a_field_of_an_event_is_cut_over_its_bound() -> None:
    whole = "é" * MAX_FIELD
    assert told(lambda log: log.event("info", "x", detail=whole))["detail"] == whole
    assert told(lambda log: log.event("info", "x", detail=whole + "é"))["detail"] == whole + "…"


def test_a_text_that_holds_no_url_is_shown_as_it_is() -> None:
    assert told(lambda log: log.event("info", "x", detail="someone@host said"))["detail"] == "someone@host said"


@pytest.mark.parametrize("sly", ["a\u2028b", "\x7f", "é\x7f\u202e", "\x85", "\U000e0001"])
def test_what_a_terminal_may_obey_is_written_by_its_number(sly: str) -> None:
    text = line(lambda log: log.event("info", "x", value=sly)).decode()
    assert all(char.isprintable() for char in text)
    assert msgspec.json.decode(text)["value"] == sly
    assert "\\u" in text


def test_what_json_cannot_say_is_said_in_words() -> None:
    found = told(lambda log: log.request(record(prompt_tokens=2**80, model_id="\ud800")))
    assert (found["prompt_tokens"], found["request_id"]) == (2**80, "r-1")
    assert "ud800" in found["model_id"]
    deep: list[Any] = []
    for _ in range(1_000_000):  # 3.14 has no limit but its stack
        deep = [deep]
    found = told(lambda log: log.event("info", "x", odd={(): {"a": "\ud800"}, "b": 2}, deep=deep, n=1))
    assert (found["n"], found["odd"]["b"], found["deep"]) == (1, 2, "a list, nested too deep")
    assert "ud800" in found["odd"]["()"]["a"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"client_left": True}, "200 miss     chat        left   model=m1"),
        ({"stream": False}, "200 miss     chat        whole  model=m1"),
        ({"prompt_tokens": None}, "tokens=?+128"),
        ({"completion_tokens": None}, "total=1.23s bytes=4096"),
        ({"ttft_ms": None}, "queue=0.2ms total=1.23s"),
        ({"queue_ms": 999.9, "total_ms": 1000.0}, "queue=999.9ms ttft=12.5ms total=1.00s"),
        ({"items": 3}, "items=0/3"),
        ({"items": 3, "items_cached": 2}, "items=2/3"),
        ({"items": 0}, "items=0"),
        ({"verdict": "a=b"}, '200 "a=b"    chat'),
        ({"endpoint": ""}, 'miss     ""          stream'),
        ({"error": "queue_full", "key": "k 1", "prompt": 'say "hi"'}, 'error=queue_full key="k 1" id=r-1'),
        ({"prompt": 'say "hi"', "trace_id": "t"}, 'id=r-1 trace=t prompt="say \\"hi\\""'),
        ({"model_id": "é", "backend": "\x1b"}, 'backend="\\u001b"'),
    ],
)
def test_the_columns_of_a_request(changes: dict[str, Any], words: str) -> None:
    assert words in line(lambda log: log.request(record(**changes)), "text").decode()


def test_a_message_may_have_spaces_and_a_value_in_quotes_where_it_has_some() -> None:
    text = line(lambda log: log.event("info", "two words", a="b c", d="e", f=[1, "g"]), "text").decode()
    assert text.endswith(' two words a="b c" d=e f="[1,\\"g\\"]"')
    text = line(lambda log: log.event("info", 'a="b"', a="=", d="\n"), "text").decode()
    assert text.endswith(' "a=\\"b\\"" a="=" d="\\n"')


def test_a_second_s_date_is_formatted_once_and_the_next_second_has_its_own() -> None:
    for start in (0.0, 1.25, NOW):
        times = iter([start, start + 0.001, start + 1, start + 1])
        sink = Sink()
        log = Log(-1, clock=lambda times=times: next(times), write=sink)  # type: ignore[misc]
        for n in range(4):
            log.event("info", "x", n=n)
        assert log.close(30)
        stamps = [msgspec.json.decode(text)["ts"] for text in sink.data.splitlines()]
        assert stamps[0][:19] == stamps[1][:19] != stamps[2][:19] == stamps[3][:19]
        assert stamps[0].startswith("1970-01-01T00:00:0" if start < 2 else "2025-11-24T02:14:33.123")


def test_often_says_nothing_under_the_level_and_zero_left_out_is_not_said() -> None:
    def write(log: Log) -> None:
        for _ in range(OFTEN):
            log.often("debug", "hidden")
            log.often("info", "shown")

    lines = [msgspec.json.decode(text) for text in logged(write).splitlines()]
    assert [(line["msg"], "left_out" in line) for line in lines] == [("shown", False)] * OFTEN


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_what_was_left_out_when_it_closes_is_told_at_once_at_its_own_level(fmt: str) -> None:
    def write(log: Log) -> None:
        for kind, count in (("a", 3), ("b", 2)):
            for _ in range(OFTEN + count):
                log.often("error", kind)

    sink = Sink()
    log = Log(-1, fmt, clock=lambda: NOW, write=sink, ticks=lambda: 0.0)
    write(log)
    assert log.close(30)
    last = sink.data.splitlines()[-2:]
    if fmt == "text":
        assert last == [
            b"02:14:33.123Z error   log lines left out of=%b count=%d" % of for of in ((b"a", 3), (b"b", 2))
        ]
    else:
        assert [(it["level"], it["of"], it["count"]) for it in map(msgspec.json.decode, last)] == [
            ("error", "a", 3),
            ("error", "b", 2),
        ]


def rests(log: Log) -> None:
    """Wait until the writer waits to be woken."""
    while True:
        if log._idle:
            return


class Stuck:
    """A write that does not return before it is let go."""

    def __init__(self) -> None:
        self.data = b""
        self.entered, self.go = threading.Event(), threading.Event()

    def __call__(self, fd: int, data: memoryview) -> int:
        self.entered.set()
        assert self.go.wait(30)
        self.data += bytes(data)
        return len(data)


def filled(fmt: str = "json", **more: Any) -> tuple[Log, Stuck, int]:
    """A log whose writer is stuck with one line, and the size of such a line."""
    stuck = Stuck()
    log = Log(-1, fmt, clock=lambda: NOW, write=stuck, **more)
    log.event("info", "x", n=1000)
    assert stuck.entered.wait(30)
    return log, stuck, log._pending


def test_half_of_what_may_wait_is_open_to_all_and_the_rest_is_shared() -> None:
    size = filled_size()
    log, stuck, _ = filled(max_pending=8 * size)
    asked: list[int] = []
    for n in range(1001, 1012):
        log.event("info", "x", lambda n=n: asked.append(n), n=n)  # type: ignore[misc]
    # One is being written, three wait beside it; then four that are shared, and three that found no room.
    assert (asked, log.dropped, log._pending) == (list(range(1004, 1012)), 4, 8 * size)
    stuck.go.set()
    assert log.close(30)
    lines = [msgspec.json.decode(text) for text in stuck.data.splitlines()]
    assert [line["n"] for line in lines if line["msg"] == "x"] == list(range(1000, 1008))
    assert log._pending == 0


def filled_size() -> int:
    log, stuck, size = filled()
    stuck.go.set()
    assert log.close(30)
    return size


def test_a_log_that_closed_with_its_reader_stuck_says_so_until_all_is_written() -> None:
    log, stuck, _ = filled()
    assert log.close(0.0) is False
    log.event("info", "after")
    assert log.dropped == 1
    stuck.go.set()
    assert log.close(30.0) is True
    assert b"after" not in stuck.data


@pytest.mark.parametrize(
    ("taken", "torn"),
    [([], False), ([None], True), ([None, None, None], True)],
)
def test_a_line_that_was_cut_is_ended_before_the_next_and_a_whole_one_is_not(
    taken: list[OSError | None], torn: bool
) -> None:
    sink = Sink(step=20)
    gone = OSError(errno.ENOSPC, "disk full")
    sink.failures = [*taken, gone, gone]
    log = Log(-1, write=sink, clock=lambda: NOW)
    for dropped in (1, 2):
        log.event("info", "lost")
        while log.dropped < dropped:
            pass
    assert sink.failures == []
    log.event("info", "kept")
    assert log.close(30)
    first, *rest = sink.data.splitlines()
    assert (b"kept" not in first) is torn
    assert b"" not in rest


@pytest.mark.parametrize("kinds", [["x"], ["later", "x"]])
def test_a_writer_that_rests_is_woken_to_say_what_was_left_out_in_seconds_that_are_over(kinds: list[str]) -> None:
    here, said = threading.current_thread(), threading.Event()
    data, now = b"", [0.0]

    def write(fd: int, piece: memoryview) -> int:
        nonlocal data
        data += bytes(piece)
        if b"left out" in data:
            said.set()
        return len(piece)

    log = Log(-1, write=write, ticks=lambda: now[0] if threading.current_thread() is here else 1.0)
    for kind in kinds:
        now[0] = 0.5 if kind == "later" else 0.0  # its second ends at 1.5
        for _ in range(OFTEN):
            log.often("info", kind)
        rests(log)
        log.often("info", kind)
    assert said.wait(30)
    rests(log)
    told = [msgspec.json.decode(text) for text in data.splitlines()]
    assert [line["of"] for line in told if line["msg"] == "log lines left out"] == ["x"]
    assert log.close(30)
    assert (b'"of":"later"' in data) is ("later" in kinds)


def test_a_known_secret_is_taken_out_of_a_text_without_a_url() -> None:
    def write(log: Log) -> None:
        log.hide(["hunter2-secret"])
        log.event("info", "x", detail="with args: hunter2-secret")

    assert told(write)["detail"] == "with args: ***"


def test_the_writer_s_thread_keeps_no_process_alive() -> None:
    log = Log(-1, write=Sink())
    assert log._thread.daemon
    assert log.close(30)


def test_a_reader_that_is_gone_is_written_to_once_a_line() -> None:
    tried: list[int] = []

    def write(fd: int, piece: memoryview) -> int:
        tried.append(len(piece))
        raise OSError(errno.EPIPE, "gone")

    log = Log(-1, write=write)
    log.event("info", "x")
    while len(tried) < 9 and not (log._idle and log.dropped):
        pass
    assert (len(tried), log.dropped) == (1, 1)
    assert log.close(30)

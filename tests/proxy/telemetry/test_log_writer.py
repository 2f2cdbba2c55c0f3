"""The log's writer: order, a bounded buffer, and readers that stall, trickle or are gone."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
from functools import partial

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry.log import Log
from proxy.telemetry.repeats import OFTEN
from tests.proxy.telemetry.test_log import NOW, RECORD, Sink, logged
from tests.proxy.test_terminal import fill


def test_lines_are_written_in_the_order_in_which_they_came() -> None:
    count = 1000

    def write(log: Log) -> None:
        for i in range(count):
            log.event("info", "x", i=i)

    assert [msgspec.json.decode(text)["i"] for text in logged(write).splitlines()] == list(range(count))


def test_a_line_is_written_without_being_asked_for(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log = Log(writer)
    for i in range(3):
        log.event("info", "x", i=i)
        text = b""
        while not text.endswith(b"\n"):
            text += os.read(reader, 4096)
        assert msgspec.json.decode(text)["i"] == i
    assert log.close(30)


def test_a_pipe_that_takes_a_few_bytes_at_a_time_gets_all_of_them() -> None:
    sink = Sink(step=7)
    log = Log(-1, write=sink)
    log.request(RECORD)
    log.event("info", "x")
    assert log.close(30)
    assert [msgspec.json.decode(text)["msg"] for text in sink.data.splitlines()] == ["request", "x"]


def test_a_stalled_reader_holds_nobody_up_and_is_told_later_what_it_missed(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    fill(writer)
    log = Log(writer, max_pending=10_000)
    log.event("info", "x", i=0)
    put = 1
    while log._lines:  # until the writer hangs in its write: between two, it would tell of the drops so far
        pass
    while log.dropped < 100:  # the log holds 10 kB: then lines go, and this still returns
        log.event("info", "x", i=put)
        put += 1
    dropped = log.dropped
    data = b""
    while b"log lines dropped" not in data or not data.endswith(b"\n"):
        data += os.read(reader, 65536)
    log.event("info", "after")
    assert log.close(30)
    data += os.read(reader, 65536)
    told = [msgspec.json.decode(text) for text in data.lstrip(b"x").splitlines()]
    kept = [fields["i"] for fields in told if fields["msg"] == "x"]
    assert kept == sorted(kept)
    assert len(kept) == put - dropped
    assert [fields["count"] for fields in told if fields["msg"] == "log lines dropped"] == [dropped]
    assert told[-1]["msg"] == "after"


def test_closing_does_not_wait_for_ever_for_a_stalled_reader(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log = Log(writer)
    log.event("info", "x", value="y" * 200_000)
    assert log.close(timeout=0.01) is False
    os.set_blocking(reader, False)
    while not log.close(timeout=0.01):  # the reader wakes up: the writer's thread ends
        with contextlib.suppress(BlockingIOError):  # the writer has all in the pipe, but has not ended yet
            os.read(reader, 65536)


def test_a_line_after_the_end_is_dropped() -> None:
    log = Log(-1, write=Sink())
    assert log.close(30)
    log.event("info", "x")
    assert log.dropped == 1
    assert log.close(30)


def test_a_reader_that_is_gone_does_not_stop_the_process(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    log = Log(writer)
    log.event("info", "x")
    assert log.close(30)
    assert log.dropped == 1


def test_after_a_failed_write_the_next_line_begins_anew_and_says_what_was_lost() -> None:
    sink = Sink(step=10)
    sink.failures = [None, OSError(errno.ENOSPC, "disk full")]
    log = Log(-1, write=sink, clock=lambda: NOW)
    log.event("info", "lost")
    while not log.dropped:
        pass
    log.event("info", "kept")
    assert log.close(30)
    torn, *whole = sink.data.splitlines()
    assert torn == b'{"ts":"202'
    assert [(told["msg"], told.get("count")) for told in map(msgspec.json.decode, whole)] == [
        ("kept", None),
        ("log lines dropped", 1),
    ]


def test_a_pipe_that_someone_made_non_blocking_is_waited_for(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    log = Log(writer)
    log.event("info", "x", value="y" * 200_000)
    data = b""
    while not data.endswith(b"\n"):
        select.select([reader], [], [])
        data += os.read(reader, 65536)
    assert log.close(30)
    assert log.dropped == 0
    assert len(msgspec.json.decode(data)["value"]) == 200_000


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["ok", "fail", "busy"])), max_size=12))
def test_every_line_is_written_once_or_counted_as_dropped(plan: list[tuple[int, str]]) -> None:
    sink = Sink(step=64)
    failures = {"ok": None, "fail": OSError(errno.EPIPE, "gone"), "busy": None}
    sink.failures = [failures[kind] for _, kind in plan]
    log = Log(-1, write=sink, max_pending=1500)
    put = 0
    for count, _ in plan:
        for _ in range(count):
            log.event("info", "x", i=put)
            put += 1
    assert log.close(timeout=10)
    whole = [text for text in sink.data.splitlines() if text.endswith(b"}") and b'"msg":"x"' in text]
    seen = [msgspec.json.decode(text)["i"] for text in whole if text.startswith(b'{"ts"')]
    assert seen == sorted(set(seen))
    assert len(seen) <= put <= len(seen) + log.dropped


def test_what_happens_again_and_again_is_some_lines_and_how_many_more_it_was() -> None:
    now = [0.0]
    sink = Sink()
    log = Log(-1, write=sink, ticks=lambda: now[0])
    for second in range(3):
        now[0] = float(second)
        for _ in range(100):
            log.often("info", "unreadable request", client="1.2.3.4")
    assert log.close(30)
    told = [msgspec.json.decode(line) for line in sink.data.splitlines()]
    written = [line for line in told if line["msg"] == "unreadable request"]
    assert len(written) == 3 * OFTEN
    left_out = sum(line.get("left_out", 0) for line in written)
    left_out += sum(line["count"] for line in told if line["msg"] == "log lines left out")
    assert len(written) + left_out == 300


def test_what_was_left_out_is_told_though_nothing_more_happens(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log = Log(writer)
    for _ in range(100):
        log.often("info", "x")
    data = b""
    while b"left out" not in data:  # a second later
        data += os.read(reader, 65536)
    told = msgspec.json.decode(data.splitlines()[-1])
    assert (told["of"], told["count"], told["level"]) == ("x", 100 - OFTEN, "info")
    assert log.close(30)


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_a_line_about_the_log_that_cannot_be_made_ends_no_other_line(pipe: tuple[int, int], fmt: str) -> None:
    """Its time is asked in the writer's thread, and fails there: of the lines left out, then of those dropped."""
    here, asked, ticks = threading.current_thread(), threading.Event(), [0.0]

    def clock() -> float:
        if threading.current_thread() is here:
            return NOW
        asked.set()
        raise RuntimeError("no clock")

    reader, writer = pipe
    log = Log(writer, fmt, clock=clock, ticks=lambda: ticks[0], max_pending=200_000)
    for _ in range(2 * OFTEN):
        log.often("info", "x")
    ticks[0] = 5.0
    log.event("info", "after")
    assert asked.wait(30)
    asked.clear()
    for _ in range(5000):
        log.event("info", "many", text="y" * 100)
    assert log.dropped
    data = b""
    # `asked` may be set while much is not written yet: all must be read, or the last line comes after one read.
    while log._pending or not asked.is_set() or select.select([reader], [], [], 0)[0]:
        if select.select([reader], [], [], 0.1)[0]:
            data += os.read(reader, 65536)
    log.event("info", "last")
    assert log.close(30)
    data += os.read(reader, 65536)
    assert b"after" in data
    assert b"last" in data.splitlines()[-1]


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_kinds_are_told_apart_and_each_line_below_the_level_is_nothing(fmt: str) -> None:
    def write(log: Log) -> None:
        for n in range(10 * OFTEN):
            log.often("debug", "x", str(n))
            log.often("info", "x", str(n % 3))

    assert len([line for line in logged(write, fmt).splitlines() if b"left out" not in line]) == 3 * OFTEN


def test_one_clients_lines_push_out_no_others_where_the_reader_is_slow(pipe: tuple[int, int]) -> None:
    heavy, light = 1, 2  # numbers: the hashes of texts are random, and two of 64 may share a place
    reader, writer = pipe
    log = Log(writer, max_pending=100_000)
    while select.select([], [writer], [], 0)[1]:  # until the pipe is full, the writer may take what waits
        log.request(RECORD, lambda: heavy)
    before = log.dropped
    while log.dropped < before + 500:
        log.request(RECORD, lambda: heavy)
    for n in range(20):
        log.event("info", "light", lambda: light, n=n)
    log.event("info", "own")
    data = b""
    while b"log lines dropped" not in data or not data.endswith(b"\n"):
        data += os.read(reader, 65536)
    assert log.close(30)
    os.set_blocking(reader, False)
    with contextlib.suppress(BlockingIOError):  # what was written between the last look and the end
        while more := os.read(reader, 65536):
            data += more
    told = [msgspec.json.decode(text) for text in data.splitlines()]
    assert [line["n"] for line in told if line["msg"] == "light"] == list(range(20))
    assert sum(line["msg"] == "own" for line in told) == 1
    assert sum(line["count"] for line in told if line["msg"] == "log lines dropped") == log.dropped >= 500


def test_whose_a_line_is_is_not_asked_while_there_is_room() -> None:
    asked: list[int] = []

    def write(log: Log) -> None:
        for n in range(100):
            log.request(RECORD, partial(asked.append, n))

    logged(write)
    assert asked == []


def test_a_known_secret_is_in_no_event() -> None:
    def write(log: Log) -> None:
        log.hide(["hunter2-secret"])
        log.event(
            "warning", "redis away", detail="unknown command, with args: hunter2-secret redis://u:p@h?x=hunter2"
        )

    (line,) = logged(write).splitlines()
    assert b"hunter2" not in line
    assert b"***" in line

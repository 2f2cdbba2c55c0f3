"""Lines of the log: what they say, that no value can forge one, and that a stalled reader holds nobody up."""

from __future__ import annotations

import errno
import os
import re
import select
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.log import BATCH, LEVELS, MAX_PROMPT, Log, RequestRecord

NOW = 1_763_950_473.123456  # 2025-11-24T02:14:33.123Z
RECORD = RequestRecord(
    request_id="r-1",
    model_id="m1",
    endpoint="chat",
    method="POST",
    status=200,
    verdict="miss",
    stream=True,
    queue_ms=0.25,
    ttft_ms=12.5,
    total_ms=1234.5,
    prompt_tokens=31,
    completion_tokens=128,
    token_source="usage",
    backend="http://127.0.0.1:8000",
    bytes_out=4096,
)


class Sink:
    """Takes what is written, a few bytes at a time, and fails as told."""

    def __init__(self, *, step: int = 1 << 20) -> None:
        self.data = b""
        self.failures: list[OSError | None] = []
        self._step = step

    def __call__(self, fd: int, data: memoryview) -> int:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        self.data += bytes(data[: self._step])
        return min(len(data), self._step)


def logged(write: Callable[[Log], None], fmt: str = "json", level: str = "info") -> bytes:
    """All that a log writes while `write` uses it."""
    sink = Sink()
    log = Log(-1, fmt, level, clock=lambda: NOW, write=sink)
    write(log)
    assert log.close()
    assert log.dropped == 0
    return sink.data


def line(write: Callable[[Log], None], fmt: str = "json") -> bytes:
    data = logged(write, fmt)
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")
    return data[:-1]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass  # the test closed it


# -- what a line says -------------------------------------------------------------------------------


def test_a_request_is_one_json_object_with_what_is_known_of_it() -> None:
    assert msgspec.json.decode(line(lambda log: log.request(RECORD))) == {
        "ts": "2025-11-24T02:14:33.123Z",
        "level": "info",
        "msg": "request",
        "request_id": "r-1",
        "model_id": "m1",
        "endpoint": "chat",
        "method": "POST",
        "status": 200,
        "verdict": "miss",
        "stream": True,
        "queue_ms": 0.25,
        "ttft_ms": 12.5,
        "total_ms": 1234.5,
        "prompt_tokens": 31,
        "completion_tokens": 128,
        "token_source": "usage",
        "backend": "http://127.0.0.1:8000",
        "bytes_out": 4096,
    }


def test_what_is_not_known_of_a_request_is_left_out() -> None:
    record = RequestRecord(
        request_id="r",
        endpoint="chat",
        method="POST",
        status=404,
        verdict="bypass",
        stream=False,
        queue_ms=0.0,
        total_ms=1.0,
    )
    fields = msgspec.json.decode(line(lambda log: log.request(record)))
    assert not {"model_id", "ttft_ms", "prompt_tokens", "error", "client_left", "prompt"} & set(fields)


def test_an_event_is_one_json_object() -> None:
    told = line(lambda log: log.event("warning", "engine down", backend="b", up=False, detail=None, why=""))
    assert msgspec.json.decode(told) == {
        "ts": "2025-11-24T02:14:33.123Z",
        "level": "warning",
        "msg": "engine down",
        "backend": "b",
        "up": False,
    }
    assert msgspec.json.decode(line(lambda log: log.event("info", "started")))["msg"] == "started"


@given(st.floats(0, 4e9))
def test_the_time_is_utc_to_the_millisecond(now: float) -> None:
    sink = Sink()
    log = Log(-1, clock=lambda: now, write=sink)
    log.event("info", "x")
    log.close()
    stamp = msgspec.json.decode(sink.data)["ts"]
    assert len(stamp) == len("2025-11-24T02:14:33.123Z")
    told = datetime.fromisoformat(stamp) - datetime.fromisoformat("1970-01-01T00:00:00Z")
    assert timedelta(0) <= timedelta(seconds=now) - told <= timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("status", "error", "level"),
    [
        (200, None, "info"),
        (404, "not_found", "info"),
        (499, "client_stalled", "info"),
        (503, "queue_full", "warning"),
        (200, "upstream_truncated", "warning"),
    ],
)
def test_a_request_is_a_warning_where_we_or_an_engine_failed(status: int, error: str | None, level: str) -> None:
    record = msgspec.structs.replace(RECORD, status=status, error=error)
    assert msgspec.json.decode(line(lambda log: log.request(record)))["level"] == level


@pytest.mark.parametrize("level", LEVELS)
def test_lines_under_the_level_are_not_written(level: str) -> None:
    def write(log: Log) -> None:
        for each in LEVELS:
            log.event(each, "x")
        log.request(RECORD)

    told = [msgspec.json.decode(text) for text in logged(write, level=level).splitlines()]
    assert [fields["level"] for fields in told if fields["msg"] == "x"] == list(LEVELS[LEVELS.index(level) :])
    assert any(fields["msg"] == "request" for fields in told) is (level in ("debug", "info"))


def test_a_prompt_is_written_only_where_there_is_one_and_a_long_one_is_cut() -> None:
    assert b"prompt" not in line(lambda log: log.request(msgspec.structs.replace(RECORD, prompt_tokens=None)))
    record = msgspec.structs.replace(RECORD, prompt="é" * (MAX_PROMPT + 1))
    assert msgspec.json.decode(line(lambda log: log.request(record)))["prompt"] == "é" * MAX_PROMPT + "…"


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_a_password_in_a_url_is_masked(fmt: str) -> None:
    told = line(lambda log: log.event("info", "redis", url="redis://user:hunter2@host:6379/0"), fmt)
    assert b"hunter2" not in told
    assert b"redis://***@host:6379/0" in told


def test_text_is_in_columns_for_people() -> None:
    assert line(lambda log: log.request(RECORD), "text").decode() == (
        "02:14:33.123Z info    200 miss     chat        stream model=m1 queue=0.2ms ttft=12.5ms total=1.23s "
        "tokens=31+128 bytes=4096 backend=http://127.0.0.1:8000 id=r-1"
    )
    told = line(lambda log: log.event("error", "engine down", detail="no route to host", code=7), "text").decode()
    assert told == '02:14:33.123Z error   engine down detail="no route to host" code=7'


def test_text_has_colour_on_a_terminal_only() -> None:
    terminal, end = os.openpty()
    log = Log(end, "text")
    log.event("error", "x")
    assert log.close()
    assert b"\x1b[31m" in os.read(terminal, 4096)
    os.close(end)
    os.close(terminal)
    assert b"\x1b" not in line(lambda log: log.event("error", "x"), "text")


# -- no value can forge a line ----------------------------------------------------------------------

SLY = st.one_of(
    st.text(),
    st.text(st.characters(categories=["Cc", "Cf", "Zl", "Zp", "Cs"])),
    st.sampled_from(
        ['\n{"level":"error"}\n', '"} {', "\r\n", "\x1b[2J", "\x9b2J", "\u2028x", "\u202e", "a=b c=d"]
    ),
)
VALUES = st.one_of(
    SLY,
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(),
    st.binary(max_size=9),
    st.lists(SLY, max_size=3),
    st.dictionaries(SLY, SLY, max_size=2),
    st.builds(object),
)


@given(SLY, st.dictionaries(st.text("abcdef", min_size=1), VALUES, max_size=4))
def test_an_event_is_one_line_of_json_whatever_it_holds(msg: str, fields: dict[str, Any]) -> None:
    text = line(lambda log: log.event("info", msg, **fields)).decode()
    assert len(text.splitlines()) == 1  # splits at far more than \n
    assert not re.search("[\x00-\x1f\x80-\x9f\u202a-\u202e\u2066-\u2069]", text)
    told = msgspec.json.decode(text)
    assert list(told)[:3] == ["ts", "level", "msg"]
    assert set(told) - {"ts", "level", "msg"} == {k for k, v in fields.items() if v is not None and v != ""}
    if msg.isascii():
        assert told["msg"] == msg


@given(SLY, SLY, SLY)
def test_a_request_is_one_line_of_json_whatever_the_client_sent(model: str, request_id: str, prompt: str) -> None:
    record = msgspec.structs.replace(RECORD, model_id=model, request_id=request_id, prompt=prompt)
    text = line(lambda log: log.request(record)).decode()
    assert len(text.splitlines()) == 1
    assert not re.search("[\x00-\x1f\x80-\x9f\u202a-\u202e\u2066-\u2069]", text)
    told = msgspec.json.decode(text)
    assert (told["level"], told["msg"], told["status"]) == ("info", "request", 200)
    if not re.search("[\ud800-\udfff]", model):
        assert told["model_id"] == model


@given(SLY, SLY, VALUES)
def test_text_is_one_printable_line_whatever_it_holds(msg: str, model: str, value: Any) -> None:
    def write(log: Log) -> None:
        log.event("info", msg, value=value)
        log.request(msgspec.structs.replace(RECORD, model_id=model, prompt=model))

    lines = logged(write, "text").decode().splitlines()
    assert len(lines) == 2
    assert all(text.isprintable() for text in lines)
    assert re.fullmatch(
        r'02:14:33.123Z info    200 miss     chat        stream model=(\S+|".*") queue=.*', lines[1]
    )


# -- writing ----------------------------------------------------------------------------------------


def test_lines_are_written_in_the_order_in_which_they_came() -> None:
    count = 3 * BATCH + 1

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
    assert log.close()


def test_a_pipe_that_takes_a_few_bytes_at_a_time_gets_all_of_them() -> None:
    sink = Sink(step=7)
    log = Log(-1, write=sink)
    log.request(RECORD)
    log.event("info", "x")
    assert log.close()
    assert [msgspec.json.decode(text)["msg"] for text in sink.data.splitlines()] == ["request", "x"]


def test_a_stalled_reader_holds_nobody_up_and_is_told_later_what_it_missed(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log = Log(writer, max_pending=10_000)
    put = 0
    while log.dropped < 100:  # a pipe holds 64 KiB, the log 10 kB more: then lines go, and this still returns
        log.event("info", "x", i=put)
        put += 1
    dropped = log.dropped
    data = b""
    while b"log lines dropped" not in data or not data.endswith(b"\n"):
        data += os.read(reader, 65536)
    log.event("info", "after")
    assert log.close()
    data += os.read(reader, 65536)
    told = [msgspec.json.decode(text) for text in data.splitlines()]
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
    while not log.close(timeout=0.01):  # the reader wakes up: the writer's thread ends
        os.read(reader, 65536)


def test_a_line_after_the_end_is_dropped() -> None:
    log = Log(-1, write=Sink())
    assert log.close()
    log.event("info", "x")
    assert log.dropped == 1
    assert log.close()


def test_a_reader_that_is_gone_does_not_stop_the_process(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    log = Log(writer)
    log.event("info", "x")
    assert log.close()
    assert log.dropped == 1


def test_after_a_failed_write_the_next_line_begins_anew_and_says_what_was_lost() -> None:
    sink = Sink(step=10)
    sink.failures = [None, OSError(errno.ENOSPC, "disk full")]
    log = Log(-1, write=sink, clock=lambda: NOW)
    log.event("info", "lost")
    while not log.dropped:
        pass
    log.event("info", "kept")
    assert log.close()
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
    assert log.close()
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

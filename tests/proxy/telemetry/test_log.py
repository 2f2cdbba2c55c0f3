"""Lines of the log: what they say, that no value can forge one, and that a stalled reader holds nobody up."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry.log import LEVELS, MAX_PROMPT, Log, RequestRecord

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
    client_left=False,
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
    assert log.close(30)
    assert log.dropped == 0
    return sink.data


def line(write: Callable[[Log], None], fmt: str = "json") -> bytes:
    data = logged(write, fmt)
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")
    return data[:-1]


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
        "client_left": False,
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
        bytes_out=120,
        client_left=False,
    )
    fields = msgspec.json.decode(line(lambda log: log.request(record)))
    assert not {"model_id", "ttft_ms", "prompt_tokens", "error", "prompt"} & set(fields)


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
    log.close(30)
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
    assert log.close(30)
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

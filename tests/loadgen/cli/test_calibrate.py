"""Climbing to the highest honest rate, on machines made of a number; and what is kept of it."""

from __future__ import annotations

import argparse
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadgen.cli import calibrate
from loadgen.cli.calibrate import StageErrors, Step, climb
from loadgen.drive import calibration
from loadgen.drive.calibration import Calibration, beyond_calibration
from loadgen.drive.capture.clock import Clock
from loadgen.drive.capture.exchange import Exchange
from loadgen.record import Event, Kind, Record


async def climbed(
    honest_up_to: float, start: float = 10, limit: float = 10_000
) -> tuple[float | None, bool, list[float]]:
    tried: list[float] = []

    async def measure(rate: float) -> Step:
        tried.append(rate)
        wrong = [] if rate <= honest_up_to else ["too fast"]
        return Step(requested=rate, requests_per_s=rate, events_per_s=0, cpu=0, ttft_ms={}, itl_ms={}, wrong=wrong)

    best, bounded = await climb(measure, start, limit, lambda step: None)
    return (best.requested if best else None), bounded, tried


async def test_the_highest_honest_rate_is_found_within_a_fifth() -> None:
    best, bounded, tried = await climbed(137)
    assert best is not None
    assert bounded
    assert 137 / 1.2 < best <= 137
    assert tried[:5] == [10, 20, 40, 80, 160]


async def test_a_machine_faster_than_what_may_be_tried_is_not_said_to_be_bounded() -> None:
    assert await climbed(1e9, limit=100) == (80, False, [10, 20, 40, 80])


async def test_a_machine_too_slow_for_the_lowest_rate_has_no_honest_rate() -> None:
    assert await climbed(1) == (None, True, [10])


def test_an_events_error_is_against_the_time_that_the_server_wrote_into_it() -> None:
    clock = Clock(lambda: 0, lambda: 0)
    exchange = Exchange(Record(index=0, id="", prompt="", due_ns=0))
    exchange.parts = [b'{"sent_ns":1000}', b'{"sent_ns":5000}']
    record = Record(index=0, id="", prompt="", due_ns=0)
    record.events = [
        Event(1100, 1100, 0, Kind.CONTENT),
        Event(5030, 5030, 0, Kind.CONTENT),
        Event(9, 9, 9, Kind.DONE),
    ]
    seen = StageErrors()
    seen.inspect(exchange, record, clock)
    assert (seen.ttft_ns, seen.itl_ns) == ([100], [70])


KNOWN: dict[str, Any] = {
    "date": "d",
    "machine": {},
    "floor_ms": {},
    "requests_per_s": 100.0,
    "events_per_s": 1000.0,
}


def test_what_was_found_is_kept_and_another_version_is_not_misread(tmp_path: Path) -> None:
    file = tmp_path / "a" / "c.json"
    assert calibration.load_calibration(file) is None
    calibration.save_calibration(Calibration(**KNOWN), file)
    assert calibration.load_calibration(file) == Calibration(**KNOWN)
    calibration.save_calibration(Calibration(version=99, **KNOWN), file)
    assert calibration.load_calibration(file) is None
    file.write_text("{")
    assert calibration.load_calibration(file) is None


def test_the_file_is_in_the_users_cache() -> None:
    assert calibration.path({"XDG_CACHE_HOME": "/c"}) == Path("/c") / calibration.FILE


def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that the system does not know, as in a container, without HOME."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_a_user_without_a_home_has_no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was looked for at the end of each run, which was lost."""
    homeless(monkeypatch)
    assert calibration.load_calibration() is None


@pytest.mark.parametrize(("cache", "said"), [(None, "home directory"), ("/dev/null/x", "Not a directory")])
def test_a_calibration_that_cannot_be_saved_is_printed_nevertheless(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: str | None, said: str
) -> None:
    floor = dict.fromkeys(("ttft_p50", "ttft_p99", "itl_p50", "itl_p99"), 0.1)

    async def measured(args: argparse.Namespace) -> Calibration:
        return Calibration(**KNOWN | {"floor_ms": floor})

    homeless(monkeypatch)
    if cache is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setattr(calibrate, "_calibrate", measured)
    assert calibrate.main(argparse.Namespace(no_save=False), []) == 1
    output, error = capsys.readouterr()
    assert "accurate up to: 100 requests/s" in output
    assert "could not save it: " in error
    assert said in error


@pytest.mark.parametrize(
    ("rate", "workers", "warns"), [(99, 1, False), (101, 1, True), (101, 2, False), (201, 2, True)]
)
def test_a_run_beyond_it_is_warned(rate: float, workers: int, warns: bool) -> None:
    records = [
        Record(index=i, id="", prompt="", due_ns=0, sent_ns=round(i / rate * 1e9 * 1000 / 999))
        for i in range(1000)
    ]
    assert bool(beyond_calibration(Calibration(**KNOWN), records, workers=workers)) is warns


def test_ctrl_c_ends_it_and_its_server_without_a_traceback() -> None:
    """The terminal sends the signal to every process of its group, long before the first stage is over."""
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", "calibrate", "--no-save", "--seconds", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert b"error floor" in process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate()
    assert (process.returncode, b"Traceback" in said) == (130, False), said

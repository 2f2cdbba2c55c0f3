"""`python -m ops.bench.micro.instructions`: what is read of callgrind's and strace's reports, and its refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ops.bench.micro.instructions import calls_in, cases, total
from tests.kit.patience import run_process

ROOT = Path(__file__).parents[4]

SUMMARY = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 61.02    0.020312          33       600           write
 38.98    0.012975          21       599         2 read
  0.00    0.000000           0         1           getpid
------ ----------- ----------- --------- --------- ----------------
100.00    0.033287          27      1200         2 total
"""


def test_the_calls_of_strace_are_read_with_errors_and_without() -> None:
    assert calls_in(SUMMARY) == {"write": 600, "read": 599, "getpid": 1}
    assert calls_in("") == {}


@pytest.mark.parametrize("name", [b"summary", b"totals"])
def test_the_last_total_of_callgrind_counts(name: bytes) -> None:
    assert total(b"events: Ir\nfn=(1) f\n1 20\n\n" + name + b": 41\n" + name + b": 42\n") == 42


def test_a_stream_is_counted_by_its_events_and_a_body_once() -> None:
    json, token = cases(0.1)["json"], cases(0.1)["token"]
    assert (json.units, token.units) == (json.number, token.number * (64 + 3))


@pytest.mark.parametrize("flag", [["--subjects", "gateway,nginx"], ["--cases", "json,xml"]])
def test_an_unknown_name_is_refused_before_anything_starts(flag: list[str]) -> None:
    argv = [sys.executable, "-m", "ops.bench.micro.instructions", *flag]
    done = run_process(argv, cwd=ROOT, capture_output=True, text=True, seconds=50)
    assert done.returncode == 2
    assert f"unknown: {flag[1].split(',')[1]}; choose from" in done.stderr

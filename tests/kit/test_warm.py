"""A warm start is, to whoever starts it, the program's own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.kit.patience import run_process
from tests.kit.warm import warm


def cold(program: str, *words: str) -> list[str]:
    return [sys.executable, "-m", program, *words]


def outcome(command: Sequence[str], **options: Any) -> tuple[int, str, str]:
    done = run_process(command, seconds=60, capture_output=True, text=True, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("variables", [{}, {"PYTHONSAFEPATH": "1"}], ids=["warm", "of the interpreter's start"])
def test_it_has_the_folder_and_the_environment_that_it_is_given(tmp_path: Path, variables: dict[str, str]) -> None:
    options: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, "HOME": str(tmp_path), **variables}}
    said = outcome(warm("site"), **options)
    assert (f"'{tmp_path}'," in said[1]) != bool(variables)
    assert f"USER_BASE: '{tmp_path}" in said[1]
    assert said == outcome(cold("site"), **options)


def test_it_reads_its_input_and_ends_with_the_programs_exit_code() -> None:
    assert outcome(warm("json.tool", "--compact"), input='{"a": [1, 2]}') == (0, '{"a":[1,2]}\n', "")
    wrong = outcome(warm("json.tool"), input="nonsense")
    assert wrong == outcome(cold("json.tool"), input="nonsense")
    assert wrong[0] == 1


def test_what_is_not_installed_for_it_is_not_found() -> None:
    code, _, said = outcome(warm("timeit", without=("getopt",)))
    assert code != 0
    assert "getopt" in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -15), (signal.SIGINT, 0), (signal.SIGKILL, -9)])
def test_a_signal_reaches_it_and_its_end_closes_its_descriptors(number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        warm("code", "-q"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"import time; print('begun', flush=True); time.sleep(1000)\n")
        process.stdin.flush()
        assert process.stdout.readline().endswith(b"begun\n")
        process.send_signal(number)
        process.communicate()  # the fork has the other ends
        assert process.returncode == code  # a console ends well when its input does

"""What conftest promises, seen from outside: pytest run as a process on a file made to break it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.conftest import LONG, LONGEST
from tests.kit.patience import run_process

ROOT = Path(__file__).parents[2]

CASES = """
import asyncio
import os
import sys
import pytest

kept = []

async def test_leaks_a_task():
    kept.append(asyncio.create_task(asyncio.Event().wait()))

async def test_leaves_nothing(engine):
    assert engine.url

@pytest.mark.vllm
async def test_needs_vllm():
    pass

@pytest.mark.e2e
def test_starts_a_process():
    assert not sys.dont_write_bytecode
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ
"""


def run_pytest(folder: Path, *options: str) -> list[str]:
    """The outcomes, one line per test and phase that pytest reports with `-rA`."""
    case = folder / "test_case.py"
    case.write_text(CASES)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c"]
    command += [str(ROOT / "setup.cfg"), "--rootdir", str(ROOT), "-q", "-rA", "--tb=no", *options, str(case)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = run_process(command, cwd=ROOT, env=environment, capture_output=True, text=True, seconds=50)
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    outcomes = [line.split(" ")[:2] for line in lines if line.startswith(("PASSED", "FAILED", "ERROR"))]
    return sorted(f"{outcome} {name.rpartition('::')[2]}" for outcome, name in outcomes)


def test_a_leaked_task_is_an_error_and_vllm_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    assert run_pytest(tmp_path) == [
        "ERROR test_leaks_a_task",
        "PASSED test_leaks_a_task",
        "PASSED test_leaves_nothing",
        "PASSED test_starts_a_process",
    ]


def test_vllm_runs_when_asked_for_by_name(tmp_path: Path) -> None:
    assert run_pytest(tmp_path, "-m", "vllm") == ["PASSED test_needs_vllm"]


def test_the_files_that_come_first_are_there() -> None:
    assert [name for name in LONG + LONGEST if not (ROOT / name).exists()] == []

"""`python -m ops.bench` as a process: briefly, with a subject of one's own, and with one that does not start."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from ops.bench.table import Result, render
from tests.kit.patience import run_process

ROOT = Path(__file__).parents[3]
MINE = f"mine={sys.executable} -m ops.bench.peers.naive_proxy --port {{port}} --engine {{engine}}"


@pytest.mark.timeout(120)
def test_the_figures_are_kept_and_the_table_is_theirs(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    flags = ["--subjects", "direct,mine", "--command", MINE, "--workloads", "ttft", "--rounds", "1"]
    argv = [sys.executable, "-m", "ops.bench", *flags, "--scale", "0.05", "--out", str(out)]
    done = run_process(argv, cwd=ROOT, capture_output=True, text=True, seconds=100)
    assert done.returncode == 0, done.stderr[-2000:]
    result = msgspec.json.decode(out.read_bytes(), type=Result)
    assert done.stdout.strip() == render(result).strip()
    assert [(part.subject, part.done > 0, part.wrong) for part in result.parts] == [
        ("direct", True, []),
        ("mine", True, []),
    ]
    assert "| compared with direct | mine |" in done.stdout


def test_a_subject_that_does_not_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    command = f"mine={sys.executable} -c 'raise SystemExit(\"my last words\")' {{port}}"
    argv = [sys.executable, "-m", "ops.bench", "--subjects", "mine", "--command", command, "--rounds", "1"]
    done = run_process(argv, cwd=ROOT, capture_output=True, text=True, seconds=50)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("is not ready; its output ends with: my last words")
    assert "- FAILED round 1, mine: " in done.stdout

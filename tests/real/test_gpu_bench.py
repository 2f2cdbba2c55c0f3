"""`python -m ops.bench.gpu` in small: a real vLLM loads the model made locally, and counts what sharing saves."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.kit.patience import run_process
from tests.real.conftest import ONE_PROCESS, PROGRAM

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    run_process([sys.executable, PROGRAM, "install"], check=True, capture_output=True, seconds=600)
    python = run_process(
        [sys.executable, PROGRAM, "path"], check=True, capture_output=True, text=True, seconds=60
    ).stdout.strip()
    flags = ["--small", "--vllm", python, "--streams", "2", "--duplicates", "0.5", "--rounds", "1"]
    flags += ["--seconds", "10", "--requests", "8", "--budget", "3000", "--out", str(tmp_path)]
    done = run_process(
        [sys.executable, "-m", "ops.bench.gpu", *flags], cwd=ROOT, capture_output=True, text=True, seconds=580,
        env=ONE_PROCESS | os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dropped"] == []
    rows = {(row["kind"], row["subject"]): row for row in report["rows"]}
    assert {name for kind, name in rows if kind == "streams"} >= {"direct", "gateway"}
    for row in rows.values():
        assert row["error"] is None
        assert row["completed"] > 0
        assert row["work"]["generated"] > 0
    assert any(row["engine_us"] for row in rows.values())
    direct, shared = rows["duplicates", "direct"], rows["duplicates", "gateway"]
    assert (direct["work"]["requests"], direct["work"]["generated"], direct["delivered"]) == (8, 64, 64)
    assert (shared["work"]["requests"], shared["work"]["generated"], shared["delivered"]) == (4, 32, 64)
    assert direct["work"]["prompt"] > 8 * 8

"""`python -m ops.bench.gpu` as a process: against a fake engine, a vLLM that does not start, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ops.bench.account import alive, tree
from tests.kit.patience import run_process
from tests.ops.bench.gpu.test_parts import stub

ROOT = Path(__file__).parents[4]
# 5 s: more than a process may stand still on a busy machine, so that each row completes a request.
SMALL = ("--streams", "2", "--duplicates", "0.5", "--rounds", "1", "--seconds", "5", "--requests", "8",
         "--budget", "3000")  # fmt: skip


def command(out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "ops.bench.gpu", "--out", str(out), *flags]


def without_peers(home: Path) -> dict[str, str]:
    """An environment in which no vllm-router is installed."""
    return os.environ | {"HOME": str(home)}


@pytest.mark.timeout(180)
def test_a_dry_run_measures_every_way_and_what_sharing_saves(tmp_path: Path) -> None:
    flags = ("--toy", "--engine-flags=--prefill 0.01 --step 0.002", *SMALL)
    done = run_process(
        command(tmp_path / "out", *flags), cwd=ROOT, capture_output=True, text=True, seconds=150,
        env=without_peers(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(row["kind"], row["subject"], row["error"]) for row in report["rows"]] == [
        ("streams", "direct", None),
        ("streams", "gateway", None),
        ("duplicates", "direct", None),
        ("duplicates", "gateway", None),
    ]
    direct, shared = report["rows"][2:]
    assert (direct["work"]["requests"], direct["work"]["generated"]) == (8.0, 64.0)
    assert shared["work"]["requests"] < 8
    assert shared["delivered"] == 64
    assert report["missing"] == ["vllm-router: not present (--router PATH, python -m ops.bench.peers install)"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| 2 | gateway | " in text
    assert done.stdout.strip() in text


def test_a_vllm_that_ends_at_its_start_is_shown_with_its_last_lines(tmp_path: Path) -> None:
    vllm = stub(tmp_path / "venv", otherwise="echo first; echo OutOfMemoryError: of memory.; exit 1")
    done = run_process(
        command(tmp_path / "out", "--vllm", str(vllm), "--shape", "tiny"),
        cwd=ROOT, capture_output=True, text=True, seconds=50,
    )  # fmt: skip
    assert done.returncode == 1
    assert "vLLM ended at its start: the GPU has too little free memory" in done.stderr
    assert "first\nOutOfMemoryError" in done.stderr
    assert "**ended early**: vLLM ended at its start" in (tmp_path / "out" / "report.md").read_text()


def test_a_taken_port_is_named_before_anything_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        flags = ("--toy", "--port", str(taken.getsockname()[1]))
        done = run_process(command(tmp_path / "out", *flags), cwd=ROOT, capture_output=True, text=True, seconds=50)
    assert done.returncode == 1
    assert "is not free (Address already in use)" in done.stderr


@pytest.mark.timeout(120)
def test_ctrl_c_ends_the_children_and_leaves_a_report(tmp_path: Path) -> None:
    argv = command(tmp_path / "out", "--toy", "--budget", "600", "--seconds", "60")
    child = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert child.stderr is not None
        for line in child.stderr:
            if "vLLM is ready" in line:
                break
        started = tree(child.pid)
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGINT)
        child.stderr.read()
        assert child.wait() == 130
    finally:
        child.kill()
        child.wait()
        if child.stderr is not None:
            child.stderr.close()
    assert len(started) >= 2
    assert [pid for pid in started if alive(pid)] == []
    assert "**ended early**: interrupted" in (tmp_path / "out" / "report.md").read_text()

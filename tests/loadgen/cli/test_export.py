"""CSV: one row for each run, one for each request, of ours and of other tools."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from loadgen.cli.main import main
from loadgen.store import read_run, write_run
from tests.loadgen.kit.sampling import Load
from tests.loadgen.report.test_foreign import AIPERF, SUMMARY, VLLM, run_folder


def rows(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, str]]:
    assert main(["export", *map(str, words)]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_a_row_is_a_run_with_its_figures_and_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = run_folder(tmp_path / "a", Load(requests=60, fault=0.0))
    b = run_folder(tmp_path / "b", Load(requests=30, seed=1))
    run = read_run(a)
    run.config["metadata"] = {"tp": "2"}
    write_run(a, run)
    first, second, theirs, summary = rows(capsys, a, b, VLLM, SUMMARY)
    assert (first["run"], first["tp"], first["completed"], first["measured_by"]) == (str(a), "2", "60", "loadgen")
    assert float(first["p99_ttft_ms"]) > float(first["median_ttft_ms"]) > 0
    assert (second["tp"], second["num_prompts"]) == ("", "30")
    assert (theirs["measured_by"], theirs["completed"]) == ("vllm bench serve", "24")
    assert float(summary["p99_ttft_ms"]) > 0


def test_a_row_is_a_request_with_its_times_from_the_runs_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = run_folder(tmp_path / "a", Load(requests=40, fault=0.3))
    requests = rows(capsys, a, AIPERF, "--requests")
    ours = [row for row in requests if row["run"] == str(a)]
    theirs = [row for row in requests if row["run"] != str(a)]
    assert (len(ours), len(theirs)) == (40, 24)
    failed = [row for row in ours if row["failure"]]
    assert failed
    assert all(row["ttft_ms"] == "" for row in failed)
    done = next(row for row in ours if not row["failure"])
    assert float(done["due_s"]) <= float(done["sent_s"]) < float(done["end_s"])
    assert float(theirs[0]["due_s"]) == 0.0
    assert float(theirs[0]["mean_itl_ms"]) <= float(theirs[0]["max_itl_ms"])


def test_a_text_that_a_spreadsheet_would_run_is_quoted(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", Load(requests=20))
    run = read_run(a)
    run.label, run.model = "=cmd()", "@x,y\n"
    write_run(a, run)
    out = tmp_path / "runs.csv"
    assert main(["export", str(a), "--out", str(out)]) == 0
    (row,) = csv.DictReader(io.StringIO(out.read_text()))
    assert (row["label"], row["model"]) == ("'=cmd()", "'@x,y\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: No such file"),
        ([str(SUMMARY), "--requests"], "has no single requests"),
        ([str(VLLM), "--out", "/nowhere/x.csv"], "/nowhere/x.csv: No such file"),
    ],
)
def test_what_cannot_be_exported_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *words]) == 2
    out: Any = capsys.readouterr()
    assert (out.out, said in out.err) == ("", True)

"""Two runs: a real change is named with its size, no change is not, and what cannot be compared is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from loadgen.analysis.summary import in_order, measure_records, summarise_measured
from loadgen.cli.compare import main_compare
from loadgen.cli.report import main_report
from loadgen.record import Record, Run
from loadgen.report import plots as drawing
from loadgen.report.compare import Comparison, compare_runs
from loadgen.store import append, write_run
from tests.loadgen.kit.sampling import Engine, Load, records, run_of

SLOWER = Engine(prefill_ms=50)
Write = Callable[..., Path]


def compared(
    a: Iterable[Record], b: Iterable[Record], run_a: Run | None = None, run_b: Run | None = None
) -> Comparison:
    run_a, run_b = run_a or run_of(), run_b or run_of()
    one, two = measure_records(a), measure_records(b)
    sides = (run_a, summarise_measured(run_a, one)), (run_b, summarise_measured(run_b, two))
    return compare_runs(*sides, requests=(in_order(one), in_order(two)))


def words(found: Comparison, name: str) -> str:
    return next(line.words for line in found.lines if line.name == name)


def test_a_change_is_named_with_its_size_and_interval() -> None:
    found = compared(records(Load(requests=300)), records(Load(requests=300, seed=1), SLOWER))
    line = next(line for line in found.lines if line.metric == "p50_ttft_ms")
    assert line.shift is not None
    assert line.shift.side == "higher"
    assert 10 < line.shift.interval.low < 15 < line.shift.interval.high < 20
    assert " ms higher (95 %: " in line.words
    assert "not enough samples (A has" in words(found, "p99.9 TTFT")
    assert next(effect for effect in found.effects if effect.name == "ttft").delta > 0.33


def test_where_nothing_changed_no_difference_is_seen() -> None:
    found = compared(records(Load(requests=300)), records(Load(requests=300, seed=1)))
    assert words(found, "p50 TTFT").startswith("p50 TTFT no significant difference (95 %: −")
    assert found.warnings == []


def test_a_run_against_itself_has_no_shift() -> None:
    found = compared(records(Load(requests=100)), records(Load(requests=100)))
    assert {line.shift.value for line in found.lines if line.shift} == {0}
    assert {effect.delta for effect in found.effects} == {0}
    assert found.config == {}


def test_runs_that_are_not_alike_are_warned_of() -> None:
    a, b = run_of(seed=1), run_of(seed=2, invalid=["the loop lagged"])
    b.model, b.interrupted, b.machine = "other", True, {**b.machine, "cpu": "another"}
    b.sent_stats = {**b.sent_stats, "distinct_prompts": 5}
    b.config = {**b.config, "temperature": 0.7, "label": "b", "unique_salt": "fresh"}
    found = compared(records(Load(requests=30)), records(Load(requests=30, shared=True)), a, b)
    told = "\n".join(found.warnings)
    settings = ("seed", "model", "machine cpu", "distinct_prompts", "temperature")
    for what in ("B is INVALID: the loop lagged", "interrupted", *settings, "only one run had shared responses"):
        assert what in told
    assert "label" not in told
    assert "salt" not in told
    assert found.config["label"] == ("not set", "b")


# The commands


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, load: Load, engine: Engine | None = None, run: Run | None = None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        with (folder / "events.jsonl").open("wb") as file:
            for record in records(load, engine):
                append(file, record)
        write_run(folder, run or run_of(name))
        return folder

    return write


def test_reports_are_made_again_from_the_raw_events(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "plots_available", lambda: False)
    folder = write("old", Load(requests=60))
    assert main_report([str(folder), "--goodput", "ttft:50"]) == 0
    assert str(folder / "report.html") in capsys.readouterr().out
    result = json.loads((folder / "result.json").read_text())
    assert result["completed"] > 50
    assert result["loadgen"]["summary"]["whole"]["goodput"]["slos"] == {"ttft": 50}
    assert main_report([str(folder), "--definitions", "vllm", "--out", str(folder / "vllm")]) == 0
    assert json.loads((folder / "vllm/result.json").read_text())["mean_ttft_ms"] < result["mean_ttft_ms"]


@pytest.mark.parametrize(
    "config",
    [
        {"limit": 7},
        {"goodput": 5},
        {"goodput": [5]},
        {"goodput": {"ttft": "x"}},
        {"goodput": {"ttft": None}},
    ],
)
def test_a_configuration_that_is_none_is_said_with_exit_code_2(
    config: dict[str, Any], write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of()
    run.config.update(config)
    folder = str(write("a", Load(requests=10), run=run))
    assert main_report([folder]) == 2
    assert main_compare([folder, folder]) == 2
    assert all(line.startswith("loadgen: ") for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize("broken", ["missing", "events", "line", "goodput"])
def test_a_folder_that_cannot_be_used_is_said_with_exit_code_2(
    broken: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write("a", Load(requests=10))
    words = [str(folder)]
    if broken == "missing":
        words = [str(folder / "nowhere")]
    elif broken == "events":
        (folder / "events.jsonl").unlink()
    elif broken == "line":
        with (folder / "events.jsonl").open("ab") as file:
            file.write(b'{"index": \n')
    else:
        words += ["--goodput", "ttft=5"]
    assert main_report(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("loadgen: ")
    assert "Traceback" not in said
    if broken == "line":
        assert "line 19" in said


def test_a_gate_fails_passes_and_refuses(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(write("a", Load(requests=300))), str(write("b", Load(requests=300, seed=1), SLOWER))
    assert main_compare([a, b]) == 0
    assert main_compare([a, b, "--fail-if", "p50_ttft_ms>+10%", "--certain"]) == 1
    assert "**FAILED** `p50_ttft_ms>+10%`" in capsys.readouterr().out
    assert main_compare([a, b, "--fail-if", "p50_ttft_ms>+90%", "--fail-if", "error_rate>0.5"]) == 0
    assert main_compare([a, b, "--fail-if", "p99.9_ttft_ms>+90%"]) == 0
    assert "(too few samples for an interval)" in capsys.readouterr().out
    assert main_compare([a, b, "--fail-if", "p99.9_ttft_ms>+1%"]) == 1
    assert main_compare([a, b, "--fail-if", "goodput_attainment<+0"]) == 1
    assert "cannot be judged" in capsys.readouterr().out
    assert main_compare([a, b, "--fail-if", "p50_tfft_ms>+90%"]) == 2
    assert "unknown metric 'p50_tfft_ms'" in capsys.readouterr().err


def test_a_rules_latency_is_without_shared_answers(write: Write) -> None:
    """Else a gateway that answers more from its cache would hide an engine that became slower."""
    a = str(write("a", Load(requests=300)))
    b = str(write("b", Load(requests=600, seed=1, shared=True), SLOWER))
    assert main_compare([a, b, "--fail-if", "p50_ttft_ms>+10%", "--certain"]) == 1


def test_a_comparison_is_there_as_json(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    a = str(write("a", Load(requests=60)))
    assert main_compare([a, a, "--format", "json", "--fail-if", "mean_ttft_ms>+1%"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["findings"][0]["failed"] is False
    assert {"a", "b", "warnings", "lines", "effects", "config"} <= set(found)

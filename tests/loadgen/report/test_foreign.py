"""Results of other tools: real files of each, trimmed to some requests; their figures under our names; broken ones
refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loadgen.cli.compare import letter_of, main_compare
from loadgen.errors import StoreError
from loadgen.report.runs.foreign import read_foreign
from loadgen.store import append, write_run
from tests.loadgen.kit.sampling import Engine, Load, records, run_of

FILES = Path(__file__).parent / "foreign"
VLLM, SUMMARY, GUIDELLM, AIPERF = (
    FILES / name for name in ("vllm_detailed.json", "vllm_summary.json", "guidellm.json", "aiperf")
)


def run_folder(folder: Path, load: Load, engine: Engine | None = None) -> Path:
    folder.mkdir()
    with (folder / "events.jsonl").open("wb") as file:
        for record in records(load, engine):
            append(file, record)
    write_run(folder, run_of(folder.name))
    return folder


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_vllms_lists_become_requests_in_milliseconds() -> None:
    document = json.loads(VLLM.read_text())
    foreign = read_foreign(VLLM)
    assert (foreign.tool, foreign.run.model, foreign.run.endpoint) == (
        "vllm bench serve",
        "m1",
        "/v1/chat/completions",
    )
    assert len(foreign.requests) == len(document["ttfts"]) == 24
    first = foreign.requests[0]
    assert first.ttft is not None
    assert first.itl is not None
    assert first.tpot is not None
    assert first.e2e is not None
    assert first.ttft.value == pytest.approx(document["ttfts"][0] * 1000)
    assert list(first.itl.values) == pytest.approx([gap * 1000 for gap in document["itls"][0]])
    assert first.tpot.value == pytest.approx((first.e2e - first.ttft.value) / 31)
    assert foreign.run.duration_ns == pytest.approx(document["duration"] * 1e9)


def test_vllms_failed_request_has_no_latency(tmp_path: Path) -> None:
    document = json.loads(VLLM.read_text())
    document["errors"][0], document["ttfts"][0] = "Bad Gateway", 0.0
    path = tmp_path / "v.json"
    path.write_text(json.dumps(document))
    first = read_foreign(path).requests[0]
    assert (first.failure, first.detail, first.ttft, first.e2e) == ("status", "Bad Gateway", None, None)


def test_vllms_summary_has_figures_and_no_requests() -> None:
    foreign = read_foreign(SUMMARY)
    assert foreign.requests == []
    assert foreign.values["p99_ttft_ms"] == json.loads(SUMMARY.read_text())["p99_ttft_ms"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_only_python_writes_is_absent(number: str, tmp_path: Path) -> None:
    """Python's json writes NaN for the mean of nothing; an editor puts a byte order mark before it."""
    path = tmp_path / "v.json"
    text = json.dumps({**json.loads(SUMMARY.read_text()), "mean_ttft_ms": float(number)})
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    values = read_foreign(path).values
    assert "mean_ttft_ms" not in values
    assert values["p99_ttft_ms"] == json.loads(SUMMARY.read_text())["p99_ttft_ms"]


def test_the_last_line_of_an_appended_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    document = json.loads(SUMMARY.read_text())
    path.write_text(json.dumps({**document, "completed": 1}) + "\n" + json.dumps({**document, "completed": 2}))
    assert read_foreign(path).values["completed"] == 2


def test_guidellms_mean_gap_is_vllms_tpot() -> None:
    (one,) = json.loads(GUIDELLM.read_text())["benchmarks"]
    foreign = read_foreign(GUIDELLM)
    assert (foreign.tool, foreign.run.model, len(foreign.requests)) == ("GuideLLM", "m1", 24)
    ttfts = [request.ttft.value for request in foreign.requests if request.ttft]
    assert mean(ttfts) == pytest.approx(one["metrics"]["time_to_first_token_ms"]["successful"]["mean"])
    latencies = [request.e2e / 1000 for request in foreign.requests if request.e2e]
    assert mean(latencies) == pytest.approx(one["metrics"]["request_latency"]["successful"]["mean"])
    assert all(request.itl is None for request in foreign.requests)
    tpot = foreign.requests[0].tpot
    assert tpot is not None
    assert tpot.value == one["requests"]["successful"][0]["inter_token_latency_ms"]


@pytest.mark.parametrize("name", ["", "profile_export.jsonl", "profile_export_aiperf.json"])
def test_aiperfs_folder_or_either_file_is_its_result(name: str) -> None:
    summary = json.loads((AIPERF / "profile_export_aiperf.json").read_text())
    foreign = read_foreign(AIPERF / name)
    assert (foreign.tool, foreign.run.model, len(foreign.requests)) == ("AIPerf", "m1", 24)
    for metric, read in (("time_to_first_token", "ttft"), ("inter_token_latency", "tpot")):
        values = [getattr(request, read).value for request in foreign.requests]
        assert mean(values) == pytest.approx(summary[metric]["avg"])
    gaps = [gap for request in foreign.requests if request.itl for gap in request.itl.values]
    assert mean(gaps) == pytest.approx(summary["inter_chunk_latency"]["avg"])
    assert foreign.values["mean_ttft_ms"] == summary["time_to_first_token"]["avg"]
    assert foreign.values["p99_e2el_ms"] == summary["request_latency"]["p99"]


def test_aiperf_without_its_records_has_figures(tmp_path: Path) -> None:
    shutil.copy(AIPERF / "profile_export_aiperf.json", tmp_path)
    foreign = read_foreign(tmp_path)
    assert foreign.requests == []
    assert foreign.values["request_throughput"] > 0


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda document: document.pop(name)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (VLLM, without("itls"), "KeyError: 'itls'"),
        (VLLM, lambda document: document["itls"].pop(), "IndexError"),
        (VLLM, lambda document: document.update(ttfts=["x"]), "not as this tool writes it"),
        (VLLM, lambda document: document.update(duration=None), "not as this tool writes it"),
        (VLLM, without("request_throughput"), "no known result; give a run's folder"),
        (GUIDELLM, lambda document: document.update(benchmarks=document["benchmarks"] * 2), "has 2 benchmarks"),
        (GUIDELLM, lambda document: document["benchmarks"][0].pop("requests"), "KeyError"),
        (GUIDELLM, lambda document: document.update(benchmarks=7), "not as this tool writes it"),
    ],
)
def test_a_file_that_lacks_something_is_refused_by_name(
    file: Path, change: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path
) -> None:
    document = json.loads(file.read_text())
    change(document)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=said):
        read_foreign(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b"{", b"[" * 100_000, b'{"a": 1}'])
def test_bytes_that_are_no_result_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"is not a JSON object|no known result"):
        read_foreign(path)


def test_a_line_of_aiperfs_that_is_broken_is_refused(tmp_path: Path) -> None:
    shutil.copytree(AIPERF, tmp_path / "a")
    with (tmp_path / "a" / "profile_export.jsonl").open("a") as file:
        file.write('{"metadata": {}}\n')
    with pytest.raises(StoreError, match="not as this tool writes it"):
        read_foreign(tmp_path / "a")


# The command


def test_runs_of_three_tools_and_ours_stand_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = run_folder(tmp_path / "ours", Load(requests=100))
    assert main_compare([str(ours), *map(str, (VLLM, GUIDELLM, AIPERF, SUMMARY))]) == 0
    said = capsys.readouterr().out
    assert "| ms, or per second" in said
    row = next(line for line in said.splitlines() if line.startswith("| p50 TTFT  "))
    assert row.count("|") == 7
    assert row.count(" to ") == 3  # three have requests, so an interval
    assert "was measured by GuideLLM: its figures have that tool's definitions and clock" in said


def test_each_further_run_is_judged_by_the_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = run_folder(tmp_path / "a", Load(requests=300))
    b = run_folder(tmp_path / "b", Load(requests=300, seed=1))
    c = run_folder(tmp_path / "c", Load(requests=300, seed=2), Engine(prefill_ms=60))
    rule = ("--fail-if", "p50_ttft_ms>+25%")
    assert main_compare([str(a), str(b), *rule]) == 0
    capsys.readouterr()
    assert main_compare([str(a), str(b), str(c), *rule]) == 1
    said = capsys.readouterr().out
    assert "passed B p50" in said
    assert "FAILED C p50" in said
    assert main_compare([str(a), str(b), str(c), *rule, "--format", "json"]) == 1
    documents = json.loads(capsys.readouterr().out)
    assert [document["findings"][0]["failed"] for document in documents] == [False, True]


def test_a_comparison_is_a_page_too_and_escapes_what_it_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = run_folder(tmp_path / "a<b>", Load(requests=60))
    assert main_compare([str(a), str(VLLM), "--format", "html"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("<!doctype html>")
    assert "a&lt;b&gt;" in page
    assert "<b>" not in page
    assert "<th>ms, or per second</th>" in page


def test_a_summary_can_be_judged_without_an_interval(capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(SUMMARY), str(AIPERF / "profile_export_aiperf.json"), "--fail-if", "mean_ttft_ms>+10%"]
    assert main_compare(words) == 1
    said = capsys.readouterr().out
    assert "**FAILED** `mean_ttft_ms>+10%`" in said
    assert "its figures have no intervals" in said


def test_a_file_in_a_runs_folder_stands_for_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = run_folder(tmp_path / "a", Load(requests=60))
    (a / "result.json").write_text("{}")
    assert main_compare([str(a / "result.json"), str(a)]) == 0
    assert main_compare([str(a), str(tmp_path / "gone")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_runs_have_letters_as_far_as_there_are_any() -> None:
    assert [letter_of(number) for number in (1, 25, 26, 100)] == ["B", "Z", "R26", "R100"]

"""The four tools side by side: each one's figures are found in its own file under its own names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ops.bench.generators.beside import FIGURES, Column, side_by_side, values_of
from ops.bench.generators.tools import aiperf_result

FOREIGN = Path(__file__).parents[3] / "loadgen/report/foreign"


@pytest.mark.parametrize(
    ("tool", "file", "at_least"),
    [
        ("vllm", "vllm_summary.json", 9),
        ("guidellm", "guidellm.json", 8),
        ("aiperf", "aiperf/profile_export_aiperf.json", 14),
    ],
)
def test_a_tools_names_are_those_of_its_file(tool: str, file: str, at_least: int) -> None:
    document = json.loads((FOREIGN / file).read_bytes())
    values = values_of(tool, document["benchmarks"][0] if tool == "guidellm" else document)
    by_name = {figure.words: value for figure, value in zip(FIGURES, values, strict=True)}
    assert sum(value is not None for value in values) >= at_least, by_name
    ttft = by_name["TTFT p50, ms"]
    assert ttft is not None
    assert 1 < ttft < 1000
    if tool == "guidellm":  # its request latency is in seconds
        assert (by_name["E2E mean, ms"] or 0) > ttft


def test_aiperfs_warm_up_and_failures_are_left_out() -> None:
    metrics = {"time_to_first_token": {"value": 12.5, "unit": "ms"}}
    said = aiperf_result(
        [
            {"metadata": {"benchmark_phase": "warmup", "x_request_id": "w"}, "metrics": metrics},
            {"metadata": {"benchmark_phase": "profiling", "x_request_id": "a"}, "metrics": metrics},
            {
                "metadata": {"benchmark_phase": "profiling", "x_request_id": "b"},
                "metrics": {},
                "error": {"code": 500},
            },
        ]
    )
    assert [(one.key, one.ttft_ns) for one in said.reported] == [("a", 12_500_000)]
    assert said.failed == 1


def test_a_tool_that_failed_has_no_figures_and_a_line() -> None:
    columns = [
        Column(tool="ours", values=[1.0] * len(FIGURES), true_ttft_ms=(1.0, 2.0, 3.0)),
        Column(tool="aiperf", values=[None] * len(FIGURES), wrong="aiperf: not finished after 240 s"),
    ]
    text = side_by_side(columns, ["a", "b"], "here")
    assert "| completed | 1 | – |" in text
    assert "| true TTFT p99, ms | 3.00 | – |" in text
    assert text.endswith("- FAILED: aiperf: not finished after 240 s")

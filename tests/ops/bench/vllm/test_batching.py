"""The page of the batching benchmark, and the sample page, which is generated from its figures."""

from __future__ import annotations

import json
from pathlib import Path

from ops.bench.vllm.tables import batching_page, batching_picture, batching_table, spread
from tests.kit.missing import module

SAMPLE = Path(__file__).parents[4] / "out" / "sample" / "batching"


def test_the_sample_page_is_the_one_that_its_figures_make() -> None:
    found = [json.loads(path.read_text()) for path in sorted(SAMPLE.glob("*.json"))]
    assert {part["part"] for part in found} == {"calls", "completions", "embeddings", "twins"}
    assert (SAMPLE / "batching.md").read_text() == batching_page(found)


def test_a_row_is_the_median_of_its_rounds_with_the_least_and_the_most() -> None:
    figures = {"p50_ms": 1.0, "p99_ms": 2.0, "cpu_ms": 3.0, "api_cpu_ms": 4.0}
    rows = [{"k": 8, "how": "on", "per_second": rate, **figures} for rate in (30.0, 10.0, 20.0)]
    part = {"part": "embeddings", "machine": "m", "rounds": 3, "note": "", "rows": rows}
    assert batching_table(part)[-2] == (
        "| 8 | on | 20.0 (10.0 to 30.0) | 1.0 (1.0 to 1.0) | 2.0 (2.0 to 2.0) | 3.00 (3.00 to 3.00) "
        "| 4.00 (4.00 to 4.00) |"
    )


def test_the_picture_has_both_parts_or_is_none() -> None:
    module("matplotlib", "plots")
    found = [json.loads(path.read_text()) for path in sorted(SAMPLE.glob("*.json"))]
    drawn = batching_picture(found)
    assert drawn is not None
    for word in ("Twins", "Embeddings", "merged", "separate", "direct", "16", "32"):
        assert word in drawn.decode()
    assert batching_picture([part for part in found if part["part"] != "twins"]) is None


def test_one_round_has_no_spread() -> None:
    assert spread([1.25], 1) == "1.2"

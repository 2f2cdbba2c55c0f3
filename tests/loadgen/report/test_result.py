"""result.json: vLLM's names, as a tool made for `vllm bench serve` reads them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from loadgen.analysis.summary import in_order, measure_records, summarise_measured
from loadgen.record import Run
from loadgen.report.result import result_json
from tests.loadgen.kit.sampling import Load, records, run_of

FLAT = [
    *("date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate"),
    *("burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens"),
    *("total_output_tokens", "request_throughput", "request_goodput", "output_throughput"),
    *("total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests"),
]
STATS = [
    f"{what}_{name}_ms"
    for name in ("ttft", "tpot", "itl", "e2el")
    for what in ("mean", "median", "std", "p50", "p90", "p95", "p99", "p99.9")
]
DETAILS = ["input_lens", "output_lens", "ttfts", "itls", "start_times", "errors", "latencies", "queue_times"]


def result_of(run: Run, *, detailed: bool = False, fault: float = 0.05) -> dict[str, Any]:
    seen = measure_records(records(Load(requests=120, fault=fault)))
    requests = in_order(seen)
    found = result_json(run, summarise_measured(run, seen, {"ttft": 100.0}), None, requests if detailed else ())
    decoded: dict[str, Any] = json.loads(msgspec.json.encode(found))
    return decoded


def test_the_names_are_vllms_and_ours_are_under_one_key() -> None:
    assert set(result_of(run_of())) == {*FLAT, *STATS, "loadgen"}


def test_details_are_as_long_as_the_run_and_in_seconds() -> None:
    found = result_of(run_of(), detailed=True)
    assert set(found) == {*FLAT, *STATS, *DETAILS, "loadgen"}
    assert {len(found[name]) for name in DETAILS} == {120}
    done = [place for place, error in enumerate(found["errors"]) if not error]
    assert len(done) == found["completed"]
    mean = sum(found["ttfts"][place] for place in done) / len(done) * 1000
    assert mean == pytest.approx(found["mean_ttft_ms"])
    failed = next(place for place, error in enumerate(found["errors"]) if error)
    assert (found["ttfts"][failed], found["itls"][failed], found["output_lens"][failed]) == (None, [], 0)


def test_a_percentile_is_never_null_and_says_where_the_sample_is_too_small_for_an_interval() -> None:
    found = result_of(run_of())
    assert found["p50_ttft_ms"] == found["median_ttft_ms"] > 0
    assert [name for name in STATS if found[name] is None] == []
    assert found["p50_ttft_ms"] < found["p99_ttft_ms"] <= found["p99.9_ttft_ms"]
    intervals = {q["p"]: q["interval"] for q in found["loadgen"]["summary"]["whole"]["stats"]["ttft"]["quantiles"]}
    assert intervals[50] is not None
    assert intervals[99] is intervals[99.9] is None


@pytest.mark.parametrize("rate", [None, "inf", float("inf")])
def test_no_rate_is_vllms_word_inf(rate: Any) -> None:
    run = run_of()
    run.config["request_rate"] = rate
    assert result_of(run)["request_rate"] == "inf"


def test_queue_times_are_there_where_vllm_has_them() -> None:
    run = run_of()
    assert "p99_client_queue_time_ms" not in result_of(run)
    run.config["max_concurrency"] = 4
    found = result_of(run)
    assert found["mean_client_queue_time_ms"] > 0
    assert found["mean_e2el_including_client_queue_ms"] > found["mean_e2el_ms"]


def test_ours_says_what_was_run_and_whether_it_counts() -> None:
    found = result_of(run_of(invalid=["the loop lagged"]))["loadgen"]
    assert found["valid"] is False
    assert found["run"]["lag"]["clock"] == "kernel"
    assert found["summary"]["whole"]["stats"]["ttft"]["n"] > 0

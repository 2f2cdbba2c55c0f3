"""result.json: vLLM's names, as a tool made for `vllm bench serve` reads them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from loadgen.analysis.summary import in_order, measure_records, summarise, summarise_measured
from loadgen.record import Run
from loadgen.report.result import result_json
from tests.loadgen.kit.sampling import Load, records, run_of

FLAT = [
    *("date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate"),
    *("burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens"),
    *("total_output_tokens", "request_throughput", "request_goodput", "output_throughput"),
    *("total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests", "rtfx"),
]
STATS = [
    f"{what}_{name}_ms"
    for name in ("ttft", "tpot", "itl", "e2el")
    for what in ("mean", "median", "std", "p50", "p90", "p95", "p99", "p99.9")
]
DETAILS = [
    *("input_lens", "output_lens", "ttfts", "itls", "start_times", "errors", "latencies", "queue_times"),
    "generated_texts",
]


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


def test_the_engines_own_times_are_there_in_seconds_where_it_reported_them() -> None:
    reported = [*records(Load(requests=3, fault=0.0, warmups=0))]
    reported[1].engine_queue_ms, reported[1].engine_prefill_ms = 250.0, 30.0
    run, seen = run_of(), measure_records(reported)
    result = result_json(run, summarise_measured(run, seen), None, in_order(seen))
    assert result["server_queue_times"] == [None, 0.25, None]
    assert result["server_ttfts"] == [None, 0.03, None]


def test_a_percentile_is_never_null_and_says_where_the_sample_is_too_small_for_an_interval() -> None:
    found = result_of(run_of())
    assert found["p50_ttft_ms"] == found["median_ttft_ms"] > 0
    assert [name for name in STATS if found[name] is None] == []
    assert found["p50_ttft_ms"] < found["p99_ttft_ms"] <= found["p99.9_ttft_ms"]
    intervals = {q["p"]: q["interval"] for q in found["loadgen"]["summary"]["whole"]["stats"]["ttft"]["quantiles"]}
    assert intervals[50] is not None
    assert intervals[99] is intervals[99.9] is None


def test_percentiles_of_the_requests_are_numpys_and_there_for_every_sample() -> None:
    run = run_of()
    run.config["metric_percentiles"] = [25.0, 99.5]
    measured = measure_records(records(Load(requests=5, fault=0.0, warmups=0)))
    result = result_json(run, summarise_measured(run, measured), requests=in_order(measured))
    values = sorted(request.ttft.value for request in in_order(measured) if request.ttft)
    assert result["p25_ttft_ms"] == pytest.approx(values[1])
    assert result["p99.5_ttft_ms"] == pytest.approx(values[3] + 0.98 * (values[4] - values[3]))
    assert result["median_e2el_ms"] == result["p50_e2el_ms"]
    assert None not in (result["p99.9_itl_ms"], result["p99_tpot_ms"])


def test_metadata_is_at_the_top_level_where_vllm_has_it() -> None:
    run = run_of()
    run.config["metadata"] = {"tp": "2", "label": "theirs", "completed": "no", "loadgen": "no"}
    result = result_of(run)
    assert (result["tp"], result["label"], result["completed"]) == ("2", "theirs", result["completed"])
    assert isinstance(result["completed"], int)
    assert isinstance(result["loadgen"], dict)


def test_embeddings_have_vllms_names_of_a_pooling_run() -> None:
    run = run_of()
    run.endpoint = "/v1/embeddings"
    result = result_of(run)
    assert result["total_input_sequences"] == result["completed"]
    assert result["input_sequence_throughput"] == result["request_throughput"]
    assert "rtfx" not in result


@pytest.mark.parametrize("rate", [None, "inf", float("inf")])
def test_no_rate_is_vllms_word_inf(rate: Any) -> None:
    run = run_of()
    run.config["request_rate"] = rate
    assert result_of(run)["request_rate"] == "inf"


@pytest.mark.parametrize(
    ("stages", "config", "rate"),
    [
        (["rate=40"], 1.0, 40.0),
        (["rate=10", "rate=20"], 1.0, None),
        (["62 req/s", "80 req/s"], 1.0, None),
        (["1 user", "4 users"], "inf", "inf"),
    ],
)
def test_stages_have_no_rate_that_none_of_them_was_run_at(
    stages: list[str], config: float | str, rate: float | str | None
) -> None:
    """A sweep of 40 req/s said 1.0, where `sweep` would have begun."""
    run = run_of()
    run.config["request_rate"] = config
    seen = [record for stage in stages for record in records(Load(requests=20, stage=stage, warmups=0))]
    assert result_json(run, summarise(run, seen))["request_rate"] == rate


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

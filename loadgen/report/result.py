"""`result.json`: vLLM's flat names for what vLLM has, everything else under the one key `loadgen`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import inf
from typing import Any, Final

import msgspec

from loadgen.analysis import (
    PER_REQUEST,
    POOLED,
    SECOND,
    Measured,
    Stat,
    Summary,
    by_rate,
    interpolated,
    pooled,
    sample_of,
)
from loadgen.record import Run

SCHEMA: Final = 1
"""Schema of the part under `loadgen`."""

PERCENTILES: Final = (50.0, 90.0, 95.0, 99.0, 99.9)
FLAT: Final = ("ttft", "tpot", "itl", "e2el")
QUEUED: Final = {"client_queue_time": "queue", "e2el_including_client_queue": "e2el_due"}
"""vLLM's name -> ours. vLLM writes these two only for an open loop with a cap; else no request waits."""


def result_json(
    run: Run,
    summary: Summary,
    paired: Mapping[str, Any] | None = None,
    details: Sequence[Measured] = (),
    *,
    requests: Sequence[Measured] = (),
) -> dict[str, Any]:
    """What `vllm bench serve --save-result` of vLLM 0.33 writes; with `details` also its `--save-detailed`, and
    with `requests` the percentiles of `--metric-percentiles`.

    Summaries are in milliseconds and details in seconds, as in vLLM. What no request has is null, and so is
    a detail that a failed request lacks: vLLM's 0 would look like a fast request.
    """
    result = _flat(run, summary) | _percentiles(
        requests, (*PERCENTILES, *(run.config.get("metric_percentiles") or ()))
    )
    if details:
        result |= _details(details)
    return result | {"loadgen": _ours(run, summary, paired)}


def requested_rate(run: Run, summary: Summary) -> Any:
    """The rate that was requested, "inf" for all at once and for a closed loop; None for stages of several."""
    rates = [requested for requested, _ in by_rate(summary.by_stage)]
    if rates or (summary.by_stage and run.config.get("request_rate") != "inf"):
        return rates[0] if len(rates) == 1 else None
    return _finite(run.config.get("request_rate", inf))


def _flat(run: Run, summary: Summary) -> dict[str, Any]:
    config, whole = run.config, summary.whole
    flat: dict[str, Any] = {
        "date": _vllm_date(run.date),
        "endpoint_type": config.get("backend") or _backend(run.endpoint),
        "backend": config.get("backend") or _backend(run.endpoint),
        "label": run.label or None,
        "model_id": run.model,
        "tokenizer_id": config.get("tokenizer"),
        "num_prompts": whole.requests,
    }
    metadata = config.get("metadata")
    flat |= metadata if isinstance(metadata, Mapping) else {}
    flat |= {
        "request_rate": requested_rate(run, summary),
        "burstiness": config.get("burstiness", 1.0),
        "max_concurrency": config.get("max_concurrency"),
    }
    if config.get("ramp_up_strategy"):
        flat |= {name: config.get(name) for name in ("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps")}
    flat |= {
        "duration": whole.seconds,
        "completed": whole.completed,
        "failed": whole.failed,
        "total_input_tokens": whole.input_tokens,
        "total_output_tokens": whole.output_tokens,
        "request_throughput": whole.request_throughput,
        "request_goodput": whole.goodput.per_second if whole.goodput else None,
        "output_throughput": whole.output_throughput,
        "total_token_throughput": whole.total_token_throughput,
        "max_output_tokens_per_s": whole.peak_output_throughput,
        "max_concurrent_requests": whole.peak_in_flight,
    }
    if "embed" in run.endpoint:
        flat |= {
            "total_input_sequences": whole.completed,
            "input_sequence_throughput": whole.request_throughput,
        }
    else:
        flat["rtfx"] = 0.0  # of audio, which is not measured
    for name in FLAT:
        flat |= flat_names(name, whole.stats[name])
    if config.get("max_concurrency") and _finite(config.get("request_rate", inf)) != "inf":
        for theirs, ours in QUEUED.items():
            flat |= flat_names(theirs, whole.stats[ours])
    return flat


def flat_names(name: str, stat: Stat) -> dict[str, float | None]:
    """`mean_ttft_ms`, `median_ttft_ms`, `std_ttft_ms`, `p99_ttft_ms`, `p99.9_ttft_ms`, ..."""
    median = stat.at(50)
    named = {"mean": stat.mean, "median": median.value if median else None, "std": stat.std}
    named |= {f"p{quantile.p:g}": quantile.value for quantile in stat.quantiles}
    return {f"{what}_{name}_ms": value for what, value in named.items()}


def _percentiles(requests: Sequence[Measured], points: Sequence[float]) -> dict[str, float]:
    """`median_ttft_ms`, `p25_ttft_ms` and so on, as numpy interpolates and vLLM names them, of any sample that is
    not empty."""
    completed = [request for request in requests if request.completed]
    flat: dict[str, float] = {}
    for name in FLAT:
        values = sorted(
            (pooled(completed, POOLED[name]) if name in POOLED else sample_of(completed, PER_REQUEST[name])).values
        )
        if values:
            flat[f"median_{name}_ms"] = interpolated(values, 0.5)
            flat |= {f"p{point:g}_{name}_ms": interpolated(values, point / 100) for point in points}
    return flat


def _vllm_date(date: str) -> str:
    """vLLM's `YYYYmmdd-HHMMSS`; the ISO date is under `loadgen`."""
    try:
        return datetime.fromisoformat(date).strftime("%Y%m%d-%H%M%S")
    except ValueError:
        return date


def _backend(endpoint: str) -> str:
    if "chat" in endpoint:
        return "openai-chat"
    return "openai-embeddings" if "embed" in endpoint else "openai"


def _finite(rate: Any) -> Any:
    return "inf" if rate in (None, inf, "inf") else rate


def _details(requests: Sequence[Measured]) -> dict[str, Any]:
    return _engine_times(requests) | {
        "input_lens": [request.prompt_tokens for request in requests],
        "output_lens": [request.output_tokens if request.completed else 0 for request in requests],
        "ttfts": [request.ttft.value / 1000 if request.ttft else None for request in requests],
        "itls": [
            [gap / 1000 for gap in request.chunk_gaps.values] if request.chunk_gaps else [] for request in requests
        ],
        "start_times": [request.sent_ns / SECOND if request.sent_ns is not None else None for request in requests],
        "generated_texts": [request.answer or "" for request in requests],
        "errors": [_error(request) for request in requests],
        "latencies": [request.e2e / 1000 if request.e2e is not None else None for request in requests],
        "queue_times": [request.queued / 1000 for request in requests],
    }


def _engine_times(requests: Sequence[Measured]) -> dict[str, list[float | None]]:
    """vLLM's `server_queue_times` and `server_ttfts`, in seconds; as in vLLM, absent if no engine reported any."""
    times = {
        "server_queue_times": [_seconds(request.engine_queue) for request in requests],
        "server_ttfts": [_seconds(request.engine_prefill) for request in requests],
    }
    return times if any(value is not None for values in times.values() for value in values) else {}


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _error(request: Measured) -> str:
    """The failure and its detail; empty for a success, as in vLLM."""
    return ": ".join(filter(None, (request.failure, request.detail)))


def _ours(run: Run, summary: Summary, paired: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "valid": not run.invalid,
        "run": msgspec.to_builtins(run),
        "summary": msgspec.to_builtins(summary),
        "found": run.found,
        "prefix_cached_share": summary.prefix_cached_share,
        "paired": msgspec.to_builtins(paired) if paired else None,
    }

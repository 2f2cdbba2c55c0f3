"""Results of other load generators, as requests where the file has each request and as vLLM's flat figures where
it has only summaries: `vllm bench serve` 0.33, GuideLLM 0.8, AIPerf 0.13.

A figure keeps the definition of the tool that measured it: only its name and its unit are changed.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from loadgen.analysis import SECOND, Gaps, Measured, Span
from loadgen.errors import StoreError
from loadgen.record import Run

LARGEST: Final = 2 * 2**30
CANCELLED: Final = "cancelled"
AIPERF_RECORDS: Final = "profile_export.jsonl"
AIPERF_SUMMARY: Final = "profile_export_aiperf.json"
KNOWN: Final = (
    "give a run's folder, a file of `vllm bench serve --save-result` or of `guidellm run --output kind=json`, or "
    f"AIPerf's folder with {AIPERF_SUMMARY}"
)
_AIPERF: Final = {
    "time_to_first_token": "ttft",
    "inter_token_latency": "tpot",
    "inter_chunk_latency": "itl",
    "request_latency": "e2el",
}
_AIPERF_RATES: Final = {
    "request_throughput": "request_throughput",
    "output_token_throughput": "output_throughput",
    "total_token_throughput": "total_token_throughput",
}


class Foreign(NamedTuple):
    """One result of another tool. `requests` is empty if the file has summaries only."""

    tool: str
    run: Run
    requests: list[Measured]
    values: dict[str, float]  # vLLM's flat names


def read_foreign(path: Path) -> Foreign:
    """Raises StoreError for a file that no known tool writes, or that does not hold what that tool writes."""
    try:
        if path.is_dir() or path.name == AIPERF_RECORDS:
            return _from_zero(_aiperf(path if path.is_dir() else path.parent))
        document = _last_line(path)
        if "aiperf_version" in document:
            return _from_zero(_aiperf(path.parent))
        if "benchmarks" in document and "guidellm_version" in (document.get("metadata") or {}):
            return _from_zero(_guidellm(path, document))
        if "request_throughput" in document and "date" in document:
            return _from_zero(_vllm(path, document))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise StoreError(f"{path}: not as this tool writes it ({type(error).__name__}: {error})") from None
    raise StoreError(f"{path}: no known result; {KNOWN}")


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST:
            raise StoreError(f"{path}: larger than {LARGEST:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from None


def _decoded(part: bytes) -> Any:
    """JSON, or what Python's json writes: NaN and Infinity are None. None for anything else."""
    try:
        return msgspec.json.decode(part)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            loose = json.loads(part, parse_constant=lambda name: None)
            return msgspec.json.decode(msgspec.json.encode(loose))
        except (ValueError, RecursionError):
            return None


def _last_line(path: Path) -> dict[str, Any]:
    """A file of one JSON object, or the last of the lines of `--append-result`."""
    content = _read(path).removeprefix(b"\xef\xbb\xbf").strip()
    for part in (content, content.rsplit(b"\n", 1)[-1]):
        document = _decoded(part)
        if isinstance(document, dict):
            return document
    raise StoreError(f"{path}: is not a JSON object; {KNOWN}")


def _run(tool: str, path: Path, *, date: str, model: str, endpoint: str, seconds: float) -> Run:
    return Run(
        date=date,
        label=path.stem,
        command=[],
        config={"measured_by": tool},
        targets={},
        model=model,
        endpoint=endpoint,
        duration_ns=round(seconds * SECOND),
    )


def _measured(
    index: int,
    *,
    start_s: float,
    ttft_ms: float | None,
    e2e_ms: float | None,
    tpot_ms: float | None = None,
    itl_ms: Sequence[float] | None = None,
    inputs: int | None = None,
    outputs: int | None = None,
    queued_ms: float = 0.0,
    error: str = "",
) -> Measured:
    """One request; times from any common zero."""
    sent = round(start_s * SECOND)
    measured = Measured(
        index=index,
        target="a",
        pair=None,
        stage="",
        shared=None,
        failure=None if not error else "cancelled" if error == CANCELLED else "status",
        detail=error,
        status=None,
        due_ns=sent - round(queued_ms * 1e6),
        sent_ns=sent,
        end_ns=None if e2e_ms is None else sent + round(e2e_ms * 1e6),
        queued=queued_ms,
        prompt_tokens=inputs,
        output_tokens=outputs,
    )
    if not error:
        measured.e2e = e2e_ms
        measured.ttft = _exact(ttft_ms)
        measured.tpot = _exact(tpot_ms)
        if itl_ms:
            gaps = array("d", itl_ms)
            measured.itl = measured.chunk_gaps = Gaps(gaps, gaps, gaps)
    return measured


def _from_zero(foreign: Foreign) -> Foreign:
    """Times from when the first request was due."""
    zero = min((request.due_ns for request in foreign.requests), default=0)
    for request in foreign.requests:
        request.due_ns -= zero
        request.sent_ns = None if request.sent_ns is None else request.sent_ns - zero
        request.end_ns = None if request.end_ns is None else request.end_ns - zero
    return foreign


def _exact(value: float | None) -> Span | None:
    return None if value is None else Span(float(value), float(value), float(value))


# vLLM


def _vllm(path: Path, document: Mapping[str, Any]) -> Foreign:
    backend = str(document.get("backend", ""))
    endpoint = {"openai-chat": "/v1/chat/completions"}.get(
        backend, "/v1/embeddings" if "embed" in backend else "/v1/completions"
    )
    run = _run(
        "vllm bench serve", path,
        date=str(document["date"]), model=str(document.get("model_id")), endpoint=endpoint,
        seconds=float(document["duration"]),
    )  # fmt: skip
    requests = list(_vllm_requests(document)) if "ttfts" in document else []
    return Foreign("vllm bench serve", run, requests, numbers(document))


def _vllm_requests(document: Mapping[str, Any]) -> Iterator[Measured]:
    ttfts = document["ttfts"]
    for index, ttft in enumerate(ttfts):
        itls = document["itls"][index]
        outputs = document["output_lens"][index]
        latency = document["latencies"][index] if "latencies" in document else ttft + sum(itls)
        failed = document["errors"][index]
        tpot = (latency - ttft) / (outputs - 1) * 1000 if not failed and outputs > 1 else None
        yield _measured(
            index,
            start_s=document["start_times"][index],
            ttft_ms=None if failed else ttft * 1000,
            e2e_ms=None if failed else latency * 1000,
            tpot_ms=tpot,
            itl_ms=[gap * 1000 for gap in itls],
            inputs=document["input_lens"][index],
            outputs=outputs,
            queued_ms=(document["queue_times"][index] or 0) * 1000 if "queue_times" in document else 0.0,
            error=failed,
        )


def numbers(document: Mapping[str, Any]) -> dict[str, float]:
    """The top-level numbers of a result by vLLM's names."""
    return {
        name: float(value)
        for name, value in document.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


# GuideLLM


def _guidellm(path: Path, document: Mapping[str, Any]) -> Foreign:
    """Its `inter_token_latency_ms` of a request is a mean, and so vLLM's TPOT; it keeps no gaps."""
    benchmarks = document["benchmarks"]
    if len(benchmarks) != 1:
        rates = ", ".join(str(one["config"]["strategy"].get("type_")) for one in benchmarks)
        raise StoreError(
            f"{path}: has {len(benchmarks)} benchmarks ({rates}), and one is compared; run guidellm with a single "
            "profile, or keep one of them in the file"
        )
    (one,) = benchmarks
    done, errors = one["requests"]["successful"] or [], one["requests"]["errored"] or []
    requests = [
        _measured(
            index,
            start_s=request["request_start_time"] or 0.0,
            ttft_ms=request.get("time_to_first_token_ms"),
            e2e_ms=None if request["request_latency"] is None else request["request_latency"] * 1000,
            tpot_ms=request.get("inter_token_latency_ms"),
            inputs=request.get("prompt_tokens"),
            outputs=request.get("output_tokens"),
            error="" if index < len(done) else str((request.get("info") or {}).get("error") or "errored"),
        )
        for index, request in enumerate([*done, *errors])
    ]
    backend = one["config"].get("backend") or {}
    run = _run(
        "GuideLLM", path,
        date=_date(one["start_time"]), model=str(backend.get("model")),
        endpoint=str(backend.get("request_format") or "/v1/chat/completions"), seconds=float(one["duration"]),
    )  # fmt: skip
    return Foreign("GuideLLM", run, requests, {})


def _date(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds")


# AIPerf


def _aiperf(folder: Path) -> Foreign:
    """Its `inter_token_latency` of a request is a mean, and so vLLM's TPOT; its gaps are `inter_chunk_latency`."""
    summary, records = folder / AIPERF_SUMMARY, folder / AIPERF_RECORDS
    if not summary.exists():
        raise StoreError(f"{folder}: has neither run.json nor {AIPERF_SUMMARY}; {KNOWN}")
    document = _last_line(summary)
    values = {ours: document[theirs]["avg"] for theirs, ours in _AIPERF_RATES.items() if theirs in document}
    for theirs, ours in _AIPERF.items():
        for name, value in (document.get(theirs) or {}).items():
            if flat := _flat_name(name, ours):
                values[flat] = value
    requests = list(_aiperf_requests(records)) if records.exists() and records.stat().st_size else []
    settings = document.get("input_config") or {}
    models = [item.get("name") for item in (settings.get("models") or {}).get("items") or []]
    kind = (settings.get("endpoint") or {}).get("type", "chat")
    run = _run(
        "AIPerf", folder,
        date=str(document["start_time"]), model=", ".join(map(str, models)),
        endpoint={"chat": "/v1/chat/completions", "completions": "/v1/completions"}.get(kind, str(kind)),
        seconds=float(document["benchmark_duration"]["avg"]),
    )  # fmt: skip
    return Foreign("AIPerf", run, requests, values)


def _flat_name(name: str, metric: str) -> str:
    """vLLM's name of one of AIPerf's statistics; empty for one that vLLM does not have."""
    if name == "avg":
        return f"mean_{metric}_ms"
    if name == "std":
        return f"std_{metric}_ms"
    return f"{name}_{metric}_ms" if name[:1] == "p" and name[1:].isdigit() else ""


def _aiperf_requests(path: Path) -> Iterator[Measured]:
    lines = [line for line in _read(path).split(b"\n") if line.strip()]
    for index, line in enumerate(lines):
        record = msgspec.json.decode(line)
        where, measures = record["metadata"], record["metrics"]
        if where.get("benchmark_phase") not in (None, "profiling"):
            continue  # its warm-up
        values = {name: measure["value"] for name, measure in measures.items()}
        error = record.get("error")
        text = str(error.get("message") or error) if isinstance(error, dict) else str(error or "")
        yield _measured(
            index,
            start_s=where["request_start_ns"] / SECOND,
            ttft_ms=values.get("time_to_first_token"),
            e2e_ms=values.get("request_latency"),
            tpot_ms=values.get("inter_token_latency"),
            itl_ms=values.get("inter_chunk_latency"),
            inputs=values.get("usage_prompt_tokens", values.get("input_sequence_length")),
            outputs=values.get("usage_completion_tokens", values.get("output_sequence_length")),
            error=text or (CANCELLED if where.get("was_cancelled") else ""),
        )

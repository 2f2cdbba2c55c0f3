"""What an engine reports of its load, read from vLLM's /metrics, and how much that weighs. Bytes in, numbers
out."""

from __future__ import annotations

import math
import re
from typing import Final, NamedTuple

FULL: Final = 0.8  # of the KV cache: above it vLLM soon preempts requests and recomputes them
PRESSURE: Final = 8.0  # requests that a full KV cache counts as

_STARTED: Final = re.compile(rb"^process_start_time_seconds[ \t]+(\S+)", re.MULTILINE)
_LINE: Final = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|(?:gpu|kv)_cache_usage_perc)(?:\{[^\n]*\})?[ \t]+(\S+)",
    re.MULTILINE,
)


class LoadReport(NamedTuple):
    """An engine's report: running and waiting requests, and the used share of its KV cache, 0 to 1."""

    running: float
    waiting: float
    kv_cache: float
    started: float | None = None  # Unix time at which its process started


def parse(page: bytes) -> LoadReport | None:
    """Read a page in Prometheus' text format. Requests are summed over the engine cores and models on it; of
    the KV caches the fullest counts. None where the page has no count of requests: it is not vLLM's."""
    sums = {b"num_requests_running": 0.0, b"num_requests_waiting": 0.0}
    kv_cache = 0.0
    seen = False
    for name, text in _LINE.findall(page):
        try:
            value = float(text)
        except ValueError:
            continue
        if not math.isfinite(value) or value < 0:
            continue
        if name in sums:
            sums[name] += value
            seen = True
        else:
            kv_cache = max(kv_cache, min(1.0, value))
    if not seen:
        return None
    return LoadReport(sums[b"num_requests_running"], sums[b"num_requests_waiting"], kv_cache, _started(page))


def _started(page: bytes) -> float | None:
    """None where the page does not say, as with several API server processes."""
    found = _STARTED.search(page)
    try:
        started = float(found[1]) if found is not None else math.nan
    except ValueError:
        return None
    return started if math.isfinite(started) else None


def weigh(report: LoadReport, ours: int, weight: float = 1.0) -> float:
    """The load of an engine beyond `ours`, the requests in flight from here: other clients' requests, all waiting
    ones once more, and the pressure on its KV cache. In requests, times `weight`."""
    others = max(0.0, report.running + report.waiting - ours)
    pressure = PRESSURE * max(0.0, report.kv_cache - FULL) / (1.0 - FULL)
    return weight * (others + report.waiting + pressure)

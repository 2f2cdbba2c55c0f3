"""Owns what an engine reports of its load: the few lines of vLLM's /metrics that matter, and what they weigh.
Must not know engines, requests, or how a page is asked for: bytes in, numbers out.
Called by load_watch."""

from __future__ import annotations

import math
import re
from typing import Final, NamedTuple

FULL: Final = 0.8  # of the KV cache: above it vLLM soon preempts, and computes again what it had
PRESSURE: Final = 8.0  # requests that a KV cache with nothing free counts for

_STARTED: Final = re.compile(rb"^process_start_time_seconds[ \t]+(\S+)", re.MULTILINE)
_LINE: Final = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|(?:gpu|kv)_cache_usage_perc)(?:\{[^\n]*\})?[ \t]+(\S+)",
    re.MULTILINE,
)


class LoadReport(NamedTuple):
    """What an engine says of itself: requests, and the used share of its KV cache, 0 to 1."""

    running: float
    waiting: float
    kv_cache: float
    started: float | None = None  # when its process began, in seconds since the epoch


def parse(page: bytes) -> LoadReport | None:
    """A page of Prometheus' text format. Requests are summed over its engines and models, of the caches the
    fullest counts. None where it says nothing of requests: it is no vLLM's."""
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
    """None where it does not say, as with several API servers, whose processes are many."""
    found = _STARTED.search(page)
    try:
        started = float(found[1]) if found is not None else math.nan
    except ValueError:
        return None
    return started if math.isfinite(started) else None


def weigh(report: LoadReport, ours: int, weight: float = 1.0) -> float:
    """The load that a report adds to `ours`, the requests that we have there: what others have there, once more
    all that waits, and the pressure on its KV cache. In requests, times `weight`."""
    others = max(0.0, report.running + report.waiting - ours)
    pressure = PRESSURE * max(0.0, report.kv_cache - FULL) / (1.0 - FULL)
    return weight * (others + report.waiting + pressure)

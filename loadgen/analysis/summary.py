"""A run as data: counts, rates and statistics, for the whole and for its parts. `summarise` is the entry
point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from loadgen.analysis.definitions import Definitions, Gaps, Measured, Span, measure
from loadgen.analysis.goodput import Goodput, Slos, goodput
from loadgen.analysis.knee import Limit
from loadgen.analysis.loads import Loads, loads_of
from loadgen.analysis.stats import PERCENTILES, Sample, Stat, describe
from loadgen.analysis.timeline import SECOND, kept_up, peak_in_flight, peak_tokens_per_second, window
from loadgen.record import Record, Run

LINGER_MS: Final = 50.0
Value = Span | float | None
ItlBy = Literal["tokens", "chunks", "mixed", "none"]

PER_REQUEST: Final[Mapping[str, Callable[[Measured], Value]]] = {
    "ttft": lambda request: request.ttft,
    "ttft_due": lambda request: request.ttft_due,
    "ttft_role": lambda request: request.ttft_role,
    "tpot": lambda request: request.tpot,
    "e2el": lambda request: request.e2e,
    "e2el_due": lambda request: request.e2e_due,
    "queue": lambda request: request.queued if request.sent_ns is not None else None,
    "tokens_per_second": lambda request: request.tokens_per_second,
    "input_tokens": lambda request: request.prompt_tokens,
    "output_tokens": lambda request: request.output_tokens,
}
POOLED: Final[Mapping[str, Callable[[Measured], Gaps | None]]] = {
    "itl": lambda request: request.itl,
    "chunk_gap": lambda request: request.chunk_gaps,
}


class Group(msgspec.Struct, kw_only=True):
    """One set of requests. Statistics are of completed ones, in milliseconds, except those of tokens."""

    requests: int  # all but warm-up
    completed: int
    failed: int  # failed at the server or shed by the generator; cancelled ones are not included
    cancelled: int
    left: int = 0  # their clients cancelled them on purpose (--cancel)
    errors: dict[str, int]  # by kind, those still open at the end too
    error_rate: float  # of completed and failed
    seconds: float
    input_tokens: int
    output_tokens: int
    generated_tokens: int  # of these, those that an engine generated for the request: not cached, not attached
    empty: int = 0  # completed streams without a token; they are in no latency
    without_usage: int  # completed requests whose tokens are unknown, so in no count
    cached_tokens: int | None  # prompt tokens from the engine's prefix cache; None: it does not report them
    request_throughput: float
    output_throughput: float
    total_token_throughput: float
    peak_output_throughput: float
    peak_in_flight: int
    kept_up: float  # the completed share of the requests, times `completion_ratio`; below 1: the queue grew
    itl_by: ItlBy
    lingering: int = 0  # completed streams whose response went on for more than LINGER_MS after their last event
    miscounted: int = 0  # completed requests whose chunks have counts of tokens that do not grow with them
    censored: float  # share of generated events whose time is an interval
    stats: dict[str, Stat]
    goodput: Goodput | None = None


class Summary(msgspec.Struct, kw_only=True):
    definitions: Definitions
    warmups: int
    whole: Group
    by_target: dict[str, Group] = {}  # `ab`; latencies without shared responses
    by_stage: dict[str, Group] = {}  # sweep, ramp; in the order they ran; latencies without shared responses
    by_shared: dict[str, Group] = {}  # a gateway's x-gateway-cache
    fresh: Group | None = None  # without shared responses; None if there are none
    limit: Limit | None = None  # as the sweep itself found it
    loads: Loads = Loads()
    focus: str = ""  # the stage whose latencies a report shows, where the run names one

    @property
    def prefix_cached_share(self) -> float | None:
        """Share of prompt tokens that came from the engine's prefix cache."""
        cached = self.whole.cached_tokens
        return cached / self.whole.input_tokens if cached is not None and self.whole.input_tokens else None


def summarise(
    run: Run, records: Iterable[Record], slos: Slos | None = None, *, definitions: Definitions = "loadgen"
) -> Summary:
    """The summary of a run's records, in any order."""
    return summarise_measured(run, measure_records(records, definitions), slos, definitions=definitions)


def measure_records(records: Iterable[Record], definitions: Definitions = "loadgen") -> list[Measured | None]:
    """Each record's measures; None for a warm-up record. Takes an iterator, so that no record has to be kept."""
    return [None if record.warmup else measure(record, definitions) for record in records]


def summarise_measured(
    run: Run,
    requests: Iterable[Measured | None],
    slos: Slos | None = None,
    *,
    definitions: Definitions = "loadgen",
) -> Summary:
    """The summary of requests that are measured already."""
    everything = list(requests)
    kept = in_order(everything)
    slos = slos or {}
    start, end = window(kept)
    seconds = (run.duration_ns or end - start) / SECOND
    targets = _split(kept, lambda request: request.target)
    stages = _split(kept, lambda request: request.stage)
    shared = _split(kept, lambda request: request.shared or "unsaid")
    fresh = [request for request in kept if request.fresh]
    reported = bool(set(shared) - {"unsaid"})

    def groups(parts: Mapping[str, Sequence[Measured]]) -> dict[str, Group]:
        return {name: _group(part, slos, seconds, run.seed) for name, part in sorted(parts.items())}

    return Summary(
        definitions=definitions,
        warmups=len(everything) - len(kept),
        whole=_group(kept, slos, seconds, run.seed),
        by_target={
            name: _group(part, slos, seconds, run.seed, fresh=True)
            for name, part in sorted(targets.items())
            if len(targets) > 1
        },
        by_stage={
            name: _group(part, slos, _length(part, name), run.seed, fresh=True)
            for name, part in stages.items()
            if name
        },
        by_shared=groups(shared) if reported else {},
        fresh=_group(fresh, slos, seconds, run.seed) if reported and len(fresh) < len(kept) else None,
        limit=msgspec.convert(run.config["limit"], Limit) if "limit" in run.config else None,
        loads=loads_of(kept, seed=run.seed),
        focus=run.focus if run.focus in stages else "",
    )


def in_order(requests: Iterable[Measured | None]) -> list[Measured]:
    """Without the warm-up, by due time and schedule index."""
    kept = [request for request in requests if request is not None]
    return sorted(kept, key=lambda request: (request.due_ns, request.index, request.target))


def _split(requests: Sequence[Measured], key: Callable[[Measured], str]) -> dict[str, list[Measured]]:
    parts: dict[str, list[Measured]] = {}
    for request in requests:
        parts.setdefault(key(request), []).append(request)
    return parts


def rate_of(stage: str) -> float | None:
    """8.0 for "rate=8"; None for a stage that is not a rate."""
    key, _, text = stage.partition("=")
    try:
        return float(text) if key == "rate" else None
    except ValueError:
        return None


def _length(requests: Sequence[Measured], stage: str) -> float:
    """Seconds of a stage. Of a rate: from the first due to the last response, but at least those in which its
    arrivals came: one answer in 170 ms is not 5.9 requests per second. Of users, who wait for responses: until the
    last request was over."""
    rate = rate_of(stage)
    start, end = window(requests, responses=rate is not None)
    return max((end - start) / SECOND, len(requests) / rate if rate else 0.0)


def _group(requests: Sequence[Measured], slos: Slos, seconds: float, seed: int, *, fresh: bool = False) -> Group:
    """`fresh`: shared responses are counted, but are in no latency."""
    done = [request for request in requests if request.completed]
    reached = [request for request in requests if request.completed or request.left]  # some latency, if not all
    left = len(reached) - len(done)
    cancelled = sum(request.cancelled for request in requests) - left
    failed = len(requests) - len(done) - cancelled - left
    inputs = sum(request.prompt_tokens or 0 for request in done)
    outputs = sum(request.output_tokens or 0 for request in done)
    cached = [request.cached_tokens for request in done if request.cached_tokens is not None]
    generated = sum(request.generated for request in done)

    def rate(count: float) -> float:
        return count / seconds if seconds > 0 else 0.0

    start, _ = window(requests)
    return Group(
        requests=len(requests),
        completed=len(done),
        failed=failed,
        cancelled=cancelled,
        left=left,
        errors=dict(
            Counter(request.failure for request in requests if request.failure and not request.left).most_common()
        ),
        error_rate=failed / (len(done) + failed) if done or failed else 0.0,
        seconds=seconds,
        input_tokens=inputs,
        output_tokens=outputs,
        generated_tokens=sum(request.output_tokens or 0 for request in done if request.fresh),
        empty=sum(request.empty for request in done),
        without_usage=sum(map(_lacks_usage, done)),
        cached_tokens=sum(cached) if cached else None,
        request_throughput=rate(len(done)),
        output_throughput=rate(outputs),
        total_token_throughput=rate(inputs + outputs),
        peak_output_throughput=peak_tokens_per_second(requests, start, seconds),
        peak_in_flight=peak_in_flight(requests),
        kept_up=kept_up(requests),
        itl_by=_itl_by(done),
        lingering=sum(request.after_last > LINGER_MS for request in done),
        miscounted=sum(request.miscounted for request in done),
        censored=sum(request.censored for request in done) / generated if generated else 0.0,
        stats=_stats([request for request in reached if request.fresh] if fresh else reached, requests, seed),
        goodput=goodput(requests, slos, seconds),
    )


def _lacks_usage(request: Measured) -> bool:
    """An embedding has no output tokens, so a count of its prompt is all of its usage."""
    return request.output_tokens is None and (request.prompt_tokens is None or request.ttft is not None)


def _itl_by(done: Iterable[Measured]) -> ItlBy:
    with_gaps = (request for request in done if request.itl is not None and request.itl.values)
    ways: set[ItlBy] = {"tokens" if request.by_tokens else "chunks" for request in with_gaps}
    return "mixed" if len(ways) > 1 else next(iter(ways), "none")


def _stats(done: Sequence[Measured], everyone: Sequence[Measured], seed: int) -> dict[str, Stat]:
    stats: dict[str, Stat] = {}
    for name, read in PER_REQUEST.items():
        # A failed request waited too, so its wait counts; its latency does not.
        stats[name] = describe(sample_of(everyone if name == "queue" else done, read), PERCENTILES, seed=seed)
    apart = any(request.by_tokens for request in done)  # else both are the same numbers
    for name, pool in POOLED.items():
        if name == "itl" or apart:
            stats[name] = describe(pooled(done, pool), PERCENTILES, seed=seed)
    if not apart:
        stats["chunk_gap"] = stats["itl"]
    return stats


def sample_of(requests: Iterable[Measured], read: Callable[[Measured], Value]) -> Sample:
    """One value per request that has the measure."""
    sample = Sample()
    for request in requests:
        value = read(request)
        if isinstance(value, Span):
            exact = value.low == value.high
            sample.add(value[:1], *(() if exact else (value[1:2], value[2:3])))
        elif value is not None:
            sample.add((value,))
    return sample


def pooled(requests: Iterable[Measured], read: Callable[[Measured], Gaps | None]) -> Sample:
    """The gaps of all requests, one cluster per request."""
    sample = Sample()
    for request in requests:
        gaps = read(request)
        if gaps is not None and gaps.values:
            exact = gaps.lows is gaps.values
            sample.add(gaps.values, *(() if exact else (gaps.lows, gaps.highs)))
    return sample

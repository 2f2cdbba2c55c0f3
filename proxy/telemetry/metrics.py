"""Owns what Prometheus is told: one typed method a fact, LLM-sized buckets, and which labels there may be.
Must not know requests, flights or sockets: it is given numbers and names.
Called by the gateway, scheduler and app, once a request or a flight, never once a token."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from aioprometheus.collectors import Registry
from aioprometheus.renderer import render

from proxy.config import RETRY_CAUSES, STALE, VERSION
from proxy.errors import Code
from proxy.telemetry.process import process_gauges
from proxy.telemetry.series import Count, Counts, Histogram, Histograms, Label, ReadCounter, ReadGauge, Sample

PREFIX: Final = "gateway_"
EMPTY: Final[Mapping[str, str]] = {}
MAX_MODELS: Final = 64  # distinct model labels; the rest are `other`: clients choose these names
ENDPOINTS: Final = (
    "chat",
    "completions",
    "embeddings",
    "passthrough",
    "models",
    "health",
    "ready",
    "metrics",
    "page",
    "state",
    "readers",
    "cache",
    "unknown",
)
VERDICTS: Final = ("hit", "miss", "attached", "merged", "bypass")
OUTCOMES: Final = ("hit", "landed", "error", "failed", "cancelled")
OPS: Final = ("hit", "miss", "error", "garbage", "bypassed", "store", "store_skipped", "other_build")
STATUSES: Final = range(100, 600)
SOURCES: Final = ("usage", "estimated", "events")
KEY_REFUSALS: Final = ("missing", "unknown", "expired", "not_operator", "ended")
LIMITS: Final = ("requests", "tokens", "streams", "global")
BAD_STATUS: Final = "bad_status"  # an engine's 5xx, which is the client's answer and no error of ours
LAG_SECONDS: Final = 1.0  # between two looks at the event loop's lag

TTFT_BUCKETS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 120.0,
)  # fmt: skip
INTER_TOKEN_BUCKETS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1,
    0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
LATENCY_BUCKETS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0,
)  # fmt: skip
QUEUE_BUCKETS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0, 120.0,
)  # fmt: skip
LAG_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
BATCH_BUCKETS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0)


class _Kind:
    """The series that requests of one endpoint, status and verdict count in."""

    __slots__ = ("count", "latency", "queue", "ttft")

    def __init__(self, count: Count, latency: Histogram, queue: Histogram, ttft: Histogram) -> None:
        self.count = count
        self.latency = latency
        self.queue = queue
        self.ttft = ttft


class Metrics:
    """All of the gateway's metrics, in a registry of their own."""

    def __init__(self, registry: Registry | None = None) -> None:
        self.registry = registry = registry if registry is not None else Registry()
        self._gauges: dict[str, ReadGauge] = {}
        self._counters: dict[str, ReadCounter] = {}
        self._models = Label("model", room=MAX_MODELS)
        endpoint = Label("endpoint", ENDPOINTS)
        verdict = Label("verdict", VERDICTS)
        self._backend = backend = Label("backend", room=256)

        def counts(name: str, doc: str, *labels: Label) -> Counts:
            return Counts(PREFIX + name, doc, labels, registry)

        def histograms(name: str, doc: str, bounds: tuple[float, ...], *labels: Label) -> Histograms:
            return Histograms(PREFIX + name, doc, labels, bounds, registry)

        self._requests = counts(
            "requests_total",
            "Requests answered; status 499: the client left.",
            endpoint,
            Label("status", map(str, STATUSES)),
            verdict,
        )
        self._tokens = counts(
            "tokens_total",
            "Tokens delivered to clients, shared answers too. source=usage: engine count; estimated: a merged "
            "request's share of it; events: gateway count.",
            Label("direction", ("in", "out")),
            self._models,
            Label("source", SOURCES),
        )
        self._generated = counts(
            "generated_tokens_total", "Tokens that engines made, each once however many read it.", self._models
        )
        self._ended = counts("flights_ended_total", "Answers that ended, however.", Label("outcome", OUTCOMES))
        self._coalesced = counts("coalesced_total", "Requests that joined a flight under way.", endpoint)
        self._cache = counts("cache_operations_total", "What became of look-ups and stores.", Label("op", OPS))
        self._breaker = counts(
            "cache_breaker_changes_total", "Redis given up and found again.", Label("to", ("open", "closed"))
        )
        code = Label("code", (*(code.code for code in Code), BAD_STATUS))
        self._upstream_errors = counts("upstream_errors_total", "Failures of engines.", backend, code)
        self._upstream = counts("upstream_requests_total", "Requests sent to engines.", backend)
        self._retries = counts(
            "retries_total", "Requests asked again, by why.", Label("cause", (*RETRY_CAUSES, STALE))
        )
        self._denied = counts("retries_denied_total", "Retries that the budget did not allow.")
        self._breakers = counts(
            "backend_breaker_changes_total", "Engines given up and found again.", backend,
            Label("to", ("open", "closed")),
        )  # fmt: skip
        self._probes = counts(
            "probes_total",
            "Probes of how an engine's streams and bodies compare, by what came of them.",
            backend,
            Label("outcome", ("known", "unknown", "again")),
        )
        self._unfolded = counts(
            "unfolded_streams_total", "Streams that did not fold for readers who had waited for that.", backend
        )
        self._refused = counts("connections_refused_total", "Client connections over the limit.")
        self._memory_refused = counts(
            "memory_refused_total", "What found no room in the memory budget.", Label("kind", room=16)
        )
        self._limited = counts("rate_limited_total", "Requests that a limit refused.", Label("limit", LIMITS))
        self._fallbacks = counts("limit_fallbacks_total", "Shared limits that this process decided alone.")
        self._content_denied = counts(
            "content_denied_total",
            "Prompts refused and answers ended by the deny list.",
            Label("where", ("prompt", "answer")),
        )
        self._reloads = counts(
            "reloads_total", "Files that were read again.", Label("file", room=16),
            Label("result", ("good", "failed")),
        )  # fmt: skip
        self._keys_refused = counts(
            "keys_refused_total", "Requests refused or ended for their API key.", Label("reason", KEY_REFUSALS)
        )
        self._latency = histograms(
            "request_duration_seconds", "From the request to its last byte.", LATENCY_BUCKETS, endpoint
        )
        self._ttft = histograms(
            "time_to_first_token_seconds", "From the request to its first token.", TTFT_BUCKETS, endpoint, verdict
        )
        self._queue = histograms(
            "queue_duration_seconds", "From the request to an engine or a hit.", QUEUE_BUCKETS, endpoint
        )
        self._inter_token = histograms(
            "inter_token_seconds", "Mean gap of a stream's tokens, one value a flight.", INTER_TOKEN_BUCKETS,
            self._models,
        )  # fmt: skip
        self._batch = histograms("lookup_batch_size", "Look-ups in one Redis round trip.", BATCH_BUCKETS)
        # What is counted for each request, found by one look-up. Bounded, as the labels are: a name that is shown
        # as `other` is never a key here.
        self._kinds: dict[tuple[str, int, str], _Kind] = {}
        self._spent: dict[tuple[str | None, str], tuple[Count, Count]] = {}
        self._made: dict[str | None, Count] = {}
        for value in OUTCOMES:  # a rate needs the zero before the first one
            self._ended.count((value,), 0)
        for value in OPS:
            self._cache.count((value,), 0)
        for value in ("open", "closed"):
            self._breaker.count((value,), 0)
        for value in (*RETRY_CAUSES, STALE):
            self._retries.count((value,), 0)
        for value in KEY_REFUSALS:
            self._keys_refused.count((value,), 0)
        self._denied.count((), 0)
        self._refused.count((), 0)
        for value in LIMITS:
            self._limited.count((value,), 0)
        self._fallbacks.count((), 0)
        what_runs = {"version": VERSION, "python": platform.python_version()}
        self.gauge("build_info", "1; the labels say what runs.", lambda: 1, what_runs)
        process_gauges(self._gauge, self._counter)

    # -- facts ------------------------------------------------------------------------------------

    def request(
        self,
        endpoint: str,
        status: int,
        verdict: str,
        model: str | None,
        queue_s: float,
        ttft_s: float | None,
        total_s: float,
        prompt_tokens: int | None,
        completion_tokens: int | None,
        token_source: str | None,
    ) -> None:
        """One request was answered. Durations in seconds."""
        kind = self._kinds.get((endpoint, status, verdict)) or self._kind(endpoint, status, verdict)
        kind.count.value += 1
        kind.latency.observe(total_s)
        if ttft_s is not None:
            kind.ttft.observe(ttft_s)
            kind.queue.observe(queue_s)
        elif queue_s > 0:
            kind.queue.observe(queue_s)
        if token_source is not None:
            spent = self._spent.get((model, token_source)) or self._tally(model, token_source, known=status < 400)
            if prompt_tokens is not None and prompt_tokens > 0:
                spent[0].value += prompt_tokens
            if completion_tokens is not None and completion_tokens > 0:
                spent[1].value += completion_tokens

    def _kind(self, endpoint: str, status: int, verdict: str) -> _Kind:
        kind = _Kind(
            self._requests.of((endpoint, str(status), verdict)),
            self._latency.of((endpoint,)),
            self._queue.of((endpoint,)),
            self._ttft.of((endpoint, verdict)),
        )
        if endpoint in ENDPOINTS and status in STATUSES and verdict in VERDICTS:
            self._kinds[endpoint, status, verdict] = kind
        return kind

    def _tally(self, model: str | None, source: str, *, known: bool) -> tuple[Count, Count]:
        """Tokens in and out."""
        label = self._model(model, known=known)
        tally = self._tokens.of(("in", label, source)), self._tokens.of(("out", label, source))
        if label == (model or "unknown") and source in SOURCES:
            self._spent[model, source] = tally
        return tally

    def flight_landed(self, outcome: str, model: str | None, inter_token_s: float | None, tokens: int = 0) -> None:
        """A flight ended: see OUTCOMES. `inter_token_s` is the mean gap between its tokens, of an engine."""
        self._ended.count((outcome,))
        if tokens > 0:
            made = self._made.get(model) or self._tally_made(model)
            made.value += tokens
        if inter_token_s is not None:
            self._inter_token.seen((self._model(model, known=True),), inter_token_s)

    def _tally_made(self, model: str | None) -> Count:
        label = self._model(model, known=True)
        made = self._generated.of((label,))
        if label == (model or "unknown"):
            self._made[model] = made
        return made

    def coalesced(self, endpoint: str) -> None:
        """A request joined a flight under way."""
        self._coalesced.count((endpoint,))

    def cache(self, op: str) -> None:
        """A look-up or a store ended: see OPS."""
        self._cache.count((op,))

    def cache_breaker(self, opened: bool) -> None:
        """Redis was given up, or found again."""
        self._breaker.count(("open" if opened else "closed",))

    def upstream_request(self, backend: str) -> None:
        """A request is sent to an engine."""
        self._upstream.count((backend,))

    def upstream_error(self, backend: str, code: str) -> None:
        """An engine failed a request: the code of the error table, or BAD_STATUS."""
        self._upstream_errors.count((backend, code))

    def retry(self, cause: str) -> None:
        """A request is asked again: see `vocabulary.RETRY_CAUSES`."""
        self._retries.count((cause,))

    def probed(self, backend: str, outcome: str) -> None:
        """A probe of how an engine's answers are made up has ended: `known`, `unknown`, or it is tried `again`."""
        self._probes.count((backend, outcome))

    def unfolded(self, backend: str) -> None:
        """A stream turned out not to fold while somebody waited for that."""
        self._unfolded.count((backend,))

    def retry_denied(self) -> None:
        """A request would have been asked again, but for the budget."""
        self._denied.count(())

    def backend_breaker(self, backend: str, opened: bool) -> None:
        """An engine was given up, or found again."""
        self._breakers.count((backend, "open" if opened else "closed"))

    def batch(self, size: int) -> None:
        """One Redis round trip looked this many keys up."""
        self._batch.seen((), size)

    def connection_refused(self) -> None:
        """A client's connection was one too many."""
        self._refused.count(())

    def memory_refused(self, kind: str) -> None:
        """The memory budget had no room: for an upload, an answer, what a client does not take."""
        self._memory_refused.count((kind,))

    def rate_limited(self, limit: str) -> None:
        """A limit refused a request: see LIMITS; `global` is of everyone together."""
        self._limited.count((limit,))

    def limit_fallback(self) -> None:
        """Redis could not tell, so this process decided a limit alone."""
        self._fallbacks.count(())

    def content_denied(self, where: str) -> None:
        """The deny list matched: a `prompt` or an `answer`."""
        self._content_denied.count((where,))

    def reloads(self, file: str, result: str, count: int = 1) -> None:
        """A file was read again: `good`, or `failed` and what was in force stays so."""
        self._reloads.count((file, result), count)

    def key_refused(self, reason: str, count: int = 1) -> None:
        """Requests were refused, or ended, for their API key: see KEY_REFUSALS."""
        self._keys_refused.count((reason,), count)

    def forget_backend(self, backend: str, gauges: Iterable[str]) -> None:
        """An engine was removed and has ended what it had: its series, and its gauges of these names, go."""
        for counts in (self._upstream_errors, self._upstream, self._breakers, self._probes, self._unfolded):
            counts.forget("backend", backend)
        for name in gauges:
            self._gauge(PREFIX + name, "").forget({"backend": backend})
        self._backend.forget(backend)

    # -- what is read at each scrape --------------------------------------------------------------

    def gauge(self, name: str, doc: str, read: Callable[[], float], labels: Mapping[str, str] = EMPTY) -> None:
        """Have a number read at each scrape. One that cannot be read is left out."""
        self._gauge(PREFIX + name, doc).read_by(read, labels)

    def counter(self, name: str, doc: str, read: Callable[[], float], labels: Mapping[str, str] = EMPTY) -> None:
        """The same, of a number that only grows. Its name ends in `_total`."""
        self._counter(PREFIX + name, doc).read_by(read, labels)

    def _gauge(self, name: str, doc: str) -> ReadGauge:
        if name not in self._gauges:
            self._gauges[name] = ReadGauge(name, doc, self.registry)
        return self._gauges[name]

    def _counter(self, name: str, doc: str) -> ReadCounter:
        if name not in self._counters:
            self._counters[name] = ReadCounter(name, doc, self.registry)
        return self._counters[name]

    def watch_loop(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        """Measure once a second how late the loop runs what is due. Returns what stops it."""
        lag = Histograms(
            PREFIX + "event_loop_lag_seconds", "How late a timer ran.", (), LAG_BUCKETS, self.registry
        )
        handle: asyncio.TimerHandle

        def tick(due: float) -> None:
            nonlocal handle
            now = loop.time()
            lag.seen((), max(0.0, now - due))
            handle = loop.call_at(now + LAG_SECONDS, tick, now + LAG_SECONDS)

        first = loop.time() + LAG_SECONDS
        handle = loop.call_at(first, tick, first)
        return lambda: handle.cancel()

    # -- the page ---------------------------------------------------------------------------------

    def samples(self, name: str) -> list[Sample]:
        """What the page has under a name, without its prefix."""
        return list(self.registry.get(PREFIX + name).get_all())

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type."""
        body, headers = render(self.registry, [part.strip() for part in accept.split(",") if part.strip()])
        return body, headers["Content-Type"]

    def _model(self, name: str | None, *, known: bool) -> str:
        """A model's label. Only one that an engine has answered for takes a place, not what clients make up."""
        return self._models.clean(name or "unknown", claim=known)

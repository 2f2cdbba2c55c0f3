"""The definitions: what TTFT, TPOT, ITL and E2E of one request are, from its events. One `Record` in, one
`Measured` out, durations in milliseconds, nothing guessed.

How other tools differ (versions of 2026; the docstrings below have the rest):
- clock: here the kernel's stamp of the bytes; in vLLM (after parsing) and AIPerf (per read) the time at which a
  coroutine ran; in GuideLLM the wall clock per line. Events that one read merged have an interval here, a gap of
  zero there; GuideLLM keeps none.
- TTFT ends at the first non-empty content, reasoning or tool call here; at the first chunk with `choices`, even
  with a bare role, in vLLM 0.32 `bench serve`; at the first content in AIPerf.
- TPOT is vLLM's. GuideLLM and AIPerf call that ITL, and GuideLLM's TPOT includes the first token.
- ITL is the gap between tokens here, between chunks in vLLM (AIPerf's ICL), a mean per request in the others.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from loadgen.record import CUT_OFF, FRESH, GENERATED, Event, Failure, Kind, Record

MS: Final = 1e6
"""Nanoseconds in a millisecond."""

SLACK: Final = 0.1
"""Share of chunks without tokens, and of tokens without a chunk, up to which continuous usage is used."""
CLOSING: Final = 8
"""Tokens that may follow the last text: the end of sequence, a tool call's closing tag."""

Definitions = Literal["loadgen", "vllm"]
VLLM: Final = GENERATED | {Kind.ROLE, Kind.FINISH}
"""What vLLM 0.32 counts as a chunk: anything with `choices`, so the bare role and the bare finish_reason too.
(An empty delta as well, which `BatchKey` does not tell from a comment: those are left out.)"""


class Span(NamedTuple):
    """A duration in milliseconds, between its bounds. Exact: all three are the same."""

    value: float
    low: float
    high: float

    def later(self, by: float) -> Span:
        return Span(self.value + by, self.low + by, self.high + by)


@dataclass(slots=True)
class Gaps:
    """Gaps in milliseconds with their bounds. Exact: the three are one array."""

    values: array[float]
    lows: array[float]
    highs: array[float]


@dataclass(slots=True)
class Measured:
    """One request's measures. Times in nanoseconds since the run's start, durations in milliseconds."""

    index: int
    target: str
    pair: int | None
    stage: str
    shared: str | None
    failure: Failure | None
    detail: str
    status: int | None
    due_ns: int
    sent_ns: int | None
    end_ns: int | None
    closed_ns: int | None = None
    began_ns: int | None = None
    queued: float = 0.0
    """Time from due to the first byte written: vLLM's `client_queue_time`."""
    sending: float = 0.0
    """From then to the last byte sent: long where the server does not read its socket."""
    ttft: Span | None = None
    """From the request's last byte sent to the first non-empty content, reasoning or tool-call delta. Not vLLM's,
    which ends at the role chunk (`ttft_role` here) and starts before the request is written. None for a body that
    is not a stream. The value is the upper bound of an interval."""
    ttft_role: Span | None = None
    """To the first event with `choices`, even a bare role: comparable with vLLM's TTFT, and lower if the
    server sends the role before it prefills."""
    tpot: Span | None = None
    """(E2E - TTFT) / (n - 1), with n the tokens of one choice by usage, as in vLLM and SGLang. None below two
    tokens (vLLM: 0, which its mean leaves out too) and without usage, since n would be a guess."""
    e2e: float | None = None
    """From the request's last byte sent to the stream's last event (`[DONE]`), or to the last byte of a body that
    is not a stream. vLLM's ends at the last chunk with `choices`, SGLang's at the last line."""
    after_last: float = 0.0
    """From the stream's last event to the response's last byte."""
    itl: Gaps | None = None
    """Gaps between generated tokens of one choice. If continuous usage reports k tokens in a chunk, its gap counts
    as k gaps of 1/k each; else, and where its counts do not grow with the chunks, these are gaps between chunks,
    and `by_tokens` is False. Tokens of the first chunk have no gap."""
    chunk_gaps: Gaps | None = None
    """Gaps between chunks with content: vLLM's ITL, AIPerf's ICL."""
    by_tokens: bool = False
    miscounted: bool = False  # every chunk has a count of tokens, and they do not grow with the chunks
    empty: bool = False
    """A complete stream without a token: it has no latency, since it would count as a fast answer."""
    arrivals: array[int] = field(default_factory=lambda: array("q"))  # of generated events, nanoseconds
    generated: int = 0
    censored: int = 0  # generated events whose time is an interval
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    conversation: str = ""
    turn: int = 0
    turns: int = 0
    model: str = ""
    chosen: str = ""  # by --cancel: "tokens" or "time"
    answer: str | None = None
    engine_queue: float | None = None
    """How long the engine says that the request waited to be scheduled (vLLM's `queue_time_ms`)."""
    engine_prefill: float | None = None
    """From then to its first token, by the engine (vLLM's `time_to_first_token_ms`)."""

    @property
    def completed(self) -> bool:
        return self.failure is None

    @property
    def cancelled(self) -> bool:
        """The run ended before it did, or its client left on purpose: neither a success nor a failure."""
        return self.failure in CUT_OFF

    @property
    def left(self) -> bool:
        """Its client left on purpose (--cancel)."""
        return self.failure == "left"

    @property
    def over_ns(self) -> int | None:
        """When it was in flight no more: its last byte, or when a response that did not end was given up."""
        return self.end_ns if self.closed_ns is None else self.closed_ns

    @property
    def fresh(self) -> bool:
        """Whether an engine generated the response for this request."""
        return self.shared in FRESH

    @property
    def ttft_due(self) -> Span | None:
        """TTFT from when the request was due, so that it includes waiting in the generator's queue."""
        return None if self.ttft is None else self.ttft.later(self.queued + self.sending)

    @property
    def e2e_due(self) -> float | None:
        """E2E from when the request was due: vLLM's `e2el_including_client_queue`."""
        return None if self.e2e is None else self.e2e + self.queued + self.sending

    @property
    def tokens_per_second(self) -> float | None:
        """One stream's rate after its first token: 1,000 / TPOT."""
        return 1000 / self.tpot.value if self.tpot is not None and self.tpot.value > 0 else None


def measure(record: Record, definitions: Definitions = "loadgen") -> Measured:
    """One request's measures. A failed request has no latency, so it never counts as a fast one."""
    measured = Measured(
        index=record.index,
        target=record.target,
        pair=record.pair,
        stage=record.stage,
        shared=record.shared,
        failure=record.failure,
        detail=record.detail,
        status=record.status,
        due_ns=record.due_ns,
        sent_ns=record.sent_ns,
        end_ns=record.end_ns,
        began_ns=record.began_ns,
        closed_ns=record.closed_ns,
        prompt_tokens=record.prompt_tokens,
        output_tokens=None if record.failure == "left" else record.completion_tokens,
        cached_tokens=record.cached_tokens,
        conversation=record.conversation,
        turn=record.turn,
        turns=record.turns,
        model=record.model,
        chosen=record.cancel,
        answer=record.answer,
        engine_queue=record.engine_queue_ms,
        engine_prefill=record.engine_prefill_ms,
    )
    if record.sent_ns is not None and record.began_ns is not None:
        measured.queued = max(0.0, (record.began_ns - record.due_ns) / MS)
        measured.sending = (record.sent_ns - record.began_ns) / MS
    counted = VLLM if definitions == "vllm" else GENERATED
    if record.failure is None and record.sent_ns is not None and record.end_ns is not None:
        _succeeded(measured, record, record.sent_ns, record.end_ns, counted)
    elif record.failure == "left" and record.cancel == "tokens" and record.sent_ns is not None:
        _reached(measured, record, record.sent_ns, counted)
    return measured


def _reached(measured: Measured, record: Record, sent: int, counted: Iterable[Kind]) -> None:
    """TTFT and gaps of a request that was left after so many tokens. One that was left after a time has none: only
    those whose first token came in that time would count, which are the fast ones."""
    events = [event for event in record.events if event.kind in counted]
    if not events:
        return
    measured.generated = len(events)
    measured.censored = sum(event.low_ns < event.at_ns for event in events)
    measured.ttft = _since(events[0], sent)
    _gaps(measured, events, len({event.choice for event in events}), sent, record.completion_tokens)


def _succeeded(measured: Measured, record: Record, sent: int, end: int, counted: Iterable[Kind]) -> None:
    events = [event for event in record.events if event.kind in counted]
    measured.arrivals = array("q", [event.at_ns for event in events])
    measured.generated = len(events)
    measured.censored = sum(event.low_ns < event.at_ns for event in events)
    if record.stream and record.events:
        last = _last(record.events).at_ns
        measured.after_last = (end - last) / MS
        end = events[-1].at_ns if events and counted is VLLM else last
    measured.empty = record.stream and not events
    if measured.empty:
        return
    measured.e2e = (end - sent) / MS
    if not record.stream or events[0].kind is Kind.WHOLE:
        return
    measured.ttft = _since(events[0], sent)
    role = next(event for event in record.events if event.kind in VLLM)
    measured.ttft_role = _since(role, sent)
    choices = len({event.choice for event in events})
    tokens = (record.completion_tokens or 0) / choices
    if tokens > 1:
        first, rest = events[0], tokens - 1
        measured.tpot = Span(
            *((end - at) / MS / rest for at in (first.at_ns, first.at_ns, max(first.low_ns, sent)))
        )
    _gaps(measured, events, choices, sent, record.completion_tokens)


def _last(events: Sequence[Event]) -> Event:
    """The one that ends the stream: `[DONE]`, or the last event of an API without it."""
    return next((event for event in reversed(events) if event.kind is Kind.DONE), events[-1])


def _since(event: Event, start: int) -> Span:
    return Span((event.at_ns - start) / MS, max(0, event.low_ns - start) / MS, (event.at_ns - start) / MS)


# Gaps


def _gaps(measured: Measured, events: Sequence[Event], choices: int, sent: int, total: int | None) -> None:
    streams = [events] if choices == 1 else _by_choice(events)
    places = _exact if not measured.censored else _spread
    parts = [_chunk_gaps(stream, places(stream), sent) for stream in streams]
    measured.chunk_gaps = _joined(parts)
    # Continuous usage counts the request's tokens, not a choice's: with several choices chunks are all there is.
    if choices == 1 and len(events) > 1:
        counts = [event.tokens for event in events if event.tokens is not None]
        if len(counts) == len(events):
            measured.by_tokens = _grow(counts, total)
            measured.miscounted = not measured.by_tokens
    measured.itl = _token_gaps(parts[0], events) if measured.by_tokens else measured.chunk_gaps


def _grow(counts: Sequence[int], total: int | None) -> bool:
    """Whether counts of tokens belong to their chunks. An engine holds text back now and then, and the last tokens
    may have none; one that repeats a count, or counts each chunk by itself, is off by far more."""
    empty, missing = counts.count(0), 0 if total is None else abs(total - sum(counts))
    return empty <= max(1, SLACK * len(counts)) and missing <= max(CLOSING, SLACK * sum(counts))


def _by_choice(events: Iterable[Event]) -> list[Sequence[Event]]:
    streams: dict[int, list[Event]] = {}
    for event in events:
        streams.setdefault(event.choice, []).append(event)
    return list(streams.values())


def _exact(events: Sequence[Event]) -> list[float]:
    return [event.at_ns for event in events]


def _spread(events: Sequence[Event]) -> list[float]:
    """When events most likely arrived. Events that the kernel merged into one read are spread before its
    stamp, evenly over their interval but at most the stream's mean gap apart: so no gap is zero, each is
    within its bounds, and the sum of all gaps is as measured."""
    last, n = events[-1].at_ns, len(events)
    usual = (last - events[0].at_ns) / (n - 1) if n > 1 else 0.0
    places: list[float] = []
    start = 0
    while start < n:
        at = events[start].at_ns
        end = start + 1
        while end < n and events[end].at_ns == at:
            end += 1
        step = (at - min(event.low_ns for event in events[start:end])) / (end - start)
        step = min(step, usual) if usual else step
        places += [max(at - step * (end - 1 - place), events[place].low_ns) for place in range(start, end)]
        start = end
    return places


def _chunk_gaps(events: Sequence[Event], places: Sequence[float], sent: int) -> Gaps:
    values = array("d", [(after - before) / MS for before, after in itertools.pairwise(places)])
    if all(event.low_ns == event.at_ns for event in events):
        return Gaps(values, values, values)
    following = list(itertools.pairwise(events))
    lows = array("d", [max(0, after.low_ns - before.at_ns) / MS for before, after in following])
    highs = array("d", [(after.at_ns - max(before.low_ns, sent)) / MS for before, after in following])
    return Gaps(values, lows, highs)


def _joined(parts: Sequence[Gaps]) -> Gaps:
    if len(parts) == 1:
        return parts[0]
    exact = all(gaps.lows is gaps.values for gaps in parts)
    values = array("d", [gap for gaps in parts for gap in gaps.values])
    if exact:
        return Gaps(values, values, values)
    lows, highs = (array("d", [gap for gaps in parts for gap in side(gaps)]) for side in _SIDES)
    return Gaps(values, lows, highs)


_SIDES: Final[tuple[Callable[[Gaps], array[float]], ...]] = (lambda gaps: gaps.lows, lambda gaps: gaps.highs)


def _token_gaps(chunks: Gaps, events: Sequence[Event]) -> Gaps:
    """Each chunk's gap divided among its tokens. A chunk without tokens (text held back) adds its gap to the
    next; the last one's is a gap by itself."""
    counts = [event.tokens or 0 for event in events[1:]]
    if all(count == 1 for count in counts):
        return chunks
    values = _divided(chunks.values, counts)
    if chunks.lows is chunks.values:
        return Gaps(values, values, values)
    return Gaps(values, _divided(chunks.lows, counts), _divided(chunks.highs, counts))


def _divided(gaps: Iterable[float], counts: Iterable[int]) -> array[float]:
    divided = array("d")
    carried, count = 0.0, 1
    for gap, count in zip(gaps, counts, strict=True):
        carried += gap
        if count:
            divided.extend([carried / count] * count)
            carried = 0.0
    if not count:
        divided.append(carried)
    return divided

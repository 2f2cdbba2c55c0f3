"""Traces of agents: calls of a model, of which some wait for others. OpenTelemetry's spans with GenAI attributes,
the traces of Weka's KV-Cache-Tester, and Mooncake's lines with sessions (AIPerf replays the latter two as well).
Prompts are composed to the recorded lengths, unless a trace has the messages."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from corpus.blocks import block_prompt
from corpus.draw import Draw
from corpus.sources import as_fields, text_of
from loadgen.errors import WorkloadError
from loadgen.record import writable
from loadgen.workload.datasets import bounded
from loadgen.workload.files import tokens
from loadgen.workload.model import FollowUp, Options, Prompt

MOST_CALLS: Final = 1_000_000
_DEPTH: Final = 20  # of subagents in subagents


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a model: it starts `gap` seconds after the last of the calls in `after` has ended."""

    after: tuple[int, ...]
    gap: float
    input: int
    output: int
    blocks: tuple[int, ...] = ()
    messages: list[dict[str, Any]] | None = None
    continues: bool = False  # the messages come after those of the call before and the model's own answer


class AgentRun(msgspec.Struct, frozen=True, kw_only=True):
    """One agent's run: its calls, each after those that it waits for."""

    name: str
    at: float | None  # seconds; None: the trace does not say when runs begin
    calls: Sequence[Call]
    block: int = 64  # tokens


class AgentTrace:
    """The runs of a file, each a conversation."""

    def __init__(self, name: str, runs: list[AgentRun], options: Options) -> None:
        if options.form != "chat":
            raise WorkloadError(
                f"{name}: agent traces are for chat, responses and messages, not {options.endpoint}"
            )
        runs = sorted(runs, key=lambda run: run.at or 0.0)[: options.num_prompts]
        self.name = f"trace:{name} ({sum(len(run.calls) for run in runs)} calls of {len(runs)} agents)"
        self.distinct: int | None = len(runs)
        self._runs = runs
        self._options = options

    def schedule(self) -> list[tuple[float, int]] | None:
        starts = [run.at for run in self._runs]
        known = [at for at in starts if at is not None]
        if len(known) < len(starts):
            return None
        return [(at - known[0], number) for number, at in enumerate(known)]

    def prompt(self, number: int) -> Prompt:
        return self._prompt(number, 0)

    def then(self, number: int) -> tuple[FollowUp, ...]:
        return tuple(
            FollowUp(
                prompt=partial(self._prompt, number, place),
                after=call.after,
                gap_s=call.gap,
                continues=call.continues,
            )
            for place, call in enumerate(self._runs[number].calls[1:], 1)
        )

    def _prompt(self, number: int, place: int) -> Prompt:
        run, seed = self._runs[number], self._options.seed
        call = run.calls[place]
        if call.messages is not None:
            fields: dict[str, Any] = {"messages": call.messages}
        elif call.blocks:
            fields = as_fields(block_prompt(seed, call.blocks, call.input, run.block), "chat")
        else:
            fields = as_fields(text_of(Draw(seed, "agent", run.name, place), call.input), "chat")
        return Prompt(f"{run.name}#{place + 1}", "chat", bounded(fields, "chat", call.output), call.input)


def documents(path: str, data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file, and where each is: one a line, or one for the whole, or a list of them."""
    try:
        whole = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        for number, line in enumerate(data.split(b"\n"), 1):
            if line.strip():
                try:
                    value = msgspec.json.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise WorkloadError(f"{path}:{number}: is not JSON: {error}") from None
                yield f"{path}:{number}", _object(value, f"{path}:{number}")
        return
    for number, value in enumerate(whole if isinstance(whole, list) else [whole], 1):
        yield f"{path}: object {number}", _object(value, f"{path}: object {number}")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WorkloadError(f"{where}: must be a JSON object")
    return value


# Weka's KV-Cache-Tester: one object for each agent, its requests in order, subagents nested


def weka(path: str, data: bytes, options: Options) -> AgentTrace:
    runs = []
    for number, (where, raw) in enumerate(documents(path, data)):
        block = raw.get("block_size", 64)
        if isinstance(block, bool) or not isinstance(block, int) or not 1 <= block <= 4096:
            raise WorkloadError(f"{where}: block_size must be 1 to 4,096 tokens; got {block!r:.40}")
        # Blocks of the same number are the same text: within the trace, unless it says that they are everywhere.
        offset = 0 if raw.get("hash_id_scope") == "global" else (number + 1) << 40
        calls: list[Call] = []
        _chain(raw.get("requests"), where, calls, (), 0.0, offset, block, _DEPTH)
        if not calls:
            raise WorkloadError(f"{where}: has no requests of type s or n")
        runs.append(AgentRun(name=str(raw.get("id", f"agent-{number + 1}")), at=None, calls=calls, block=block))
    return AgentTrace(Path(path).name, runs, options)


def _chain(
    requests: Any,
    where: str,
    calls: list[Call],
    after: tuple[int, ...],
    began: float,
    offset: int,
    block: int,
    depth: int,
) -> tuple[int, ...]:
    """Append the calls of one agent, each after the one before and the subagents in between; return the last."""
    if not isinstance(requests, list) or not depth:
        raise WorkloadError(f"{where}: requests must be a list, with subagents at most {_DEPTH} deep")
    before, pending = began, after  # when the call before started, and ended, by the trace
    joined: tuple[int, ...] = ()  # the last calls of the subagents since
    for number, raw in enumerate(requests, 1):
        here = f"{where}, request {number}"
        at = _seconds(_object(raw, here).get("t", before), "t", here)
        if raw.get("type") == "subagent":
            nested = raw.get("requests")
            first = _object(nested[0], here).get("t", at) if isinstance(nested, list) and nested else at
            # Its times count from its own start, or from that of the whole trace.
            start = 0.0 if _seconds(first, "t", here) < at else at
            joined += _chain(nested, here, calls, pending, start, offset, block, depth - 1)
            continue
        length = tokens(raw, "in", here)
        blocks = raw.get("hash_ids") or []
        if not isinstance(blocks, list) or not all(isinstance(b, int) and not isinstance(b, bool) for b in blocks):
            raise WorkloadError(f"{here}: hash_ids must be a list of whole numbers")
        think = raw.get("think_time")
        gap = max(at - before, 0.0) if think is None else _seconds(think, "think_time", here)
        parents = joined or pending
        calls.append(
            Call(
                after=parents,
                gap=gap if parents else 0.0,
                input=length,
                output=1 if raw.get("out") == 0 else tokens(raw, "out", here),
                blocks=_blocks(blocks, length, block, offset, len(calls)),
            )
        )
        if len(calls) > MOST_CALLS:
            raise WorkloadError(f"{where}: has more than {MOST_CALLS:,} calls")
        before = at + _seconds(raw.get("api_time") or 0.0, "api_time", here)
        pending, joined = (len(calls) - 1,), ()
    return joined or pending


def _blocks(blocks: list[int], length: int, block: int, offset: int, call: int) -> tuple[int, ...]:
    """The call's blocks, with further ones of its own where the trace lists whole blocks only."""
    missing = math.ceil(length / block) - len(blocks)
    own = (-(offset + (call << 20) + number) - 1 for number in range(missing)) if blocks else ()
    return (*(offset + number for number in blocks), *own)


def _seconds(value: Any, name: str, where: str) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not 0 <= value <= 1e9:
        raise WorkloadError(f"{where}: {name} must be a time in seconds, at least 0; got {value!r:.60}")
    return float(value)


# Mooncake's lines with sessions, as AIPerf replays them

MOONCAKE_BLOCK: Final = 512
"""Tokens of a block in Mooncake's traces."""


def sessions(path: str, data: bytes, options: Options) -> AgentTrace:
    """Lines with a `session_id`: each after the one before it of its session and its `delay` in ms, or the time
    between their timestamps. `messages` are sent as they are; with `message_mode` delta they continue the session,
    after the model's own answer."""
    calls: dict[str, list[Call]] = {}
    times: dict[str, list[float | None]] = {}
    for where, raw in documents(path, data):
        name = str(raw.get("session_id", where))
        before, session = times.setdefault(name, []), calls.setdefault(name, [])
        stamp = raw.get("timestamp")
        at = None if stamp is None else _seconds(stamp, "timestamp", where) / 1000
        gap = 0.0
        if session:
            known = before[-1]
            since = max(at - known, 0.0) if at is not None and known is not None else 0.0
            gap = since if raw.get("delay") is None else _seconds(raw["delay"], "delay", where) / 1000
        session.append(_session_call(raw, where, len(session), gap))
        before.append(at)
    starts = {name: at[0] for name, at in times.items()}
    timed = None not in starts.values()
    runs = [
        AgentRun(name=name, at=starts[name] if timed else None, calls=session, block=MOONCAKE_BLOCK)
        for name, session in calls.items()
    ]
    return AgentTrace(Path(path).name, runs, options)


def _session_call(raw: dict[str, Any], where: str, place: int, gap: float) -> Call:
    messages, blocks = raw.get("messages"), raw.get("hash_ids") or []
    if messages is not None:
        good = (
            isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages)
        )
        if not good:
            raise WorkloadError(f"{where}: messages must be a list of objects with a role, at least one")
    if not isinstance(blocks, list) or not all(isinstance(b, int) and not isinstance(b, bool) for b in blocks):
        raise WorkloadError(f"{where}: hash_ids must be a list of whole numbers")
    length = tokens(raw, "input_length", where) if messages is None else 1
    return Call(
        after=(place - 1,) if place else (),
        gap=gap,
        input=length,
        output=tokens(raw, "output_length", where),
        blocks=_blocks(blocks, length, MOONCAKE_BLOCK, 0, place) if messages is None else (),
        messages=messages,
        continues=bool(place) and messages is not None and raw.get("message_mode") == "delta",
    )


# OpenTelemetry: OTLP's JSON, one object or one a line, as a collector's file exporter writes it

_CALLS: Final = frozenset({"chat", "text_completion", "generate_content"})


class _Span(msgspec.Struct, frozen=True):
    trace: str
    start: float  # seconds
    end: float
    input: int
    output: int
    messages: list[dict[str, Any]] | None


def otel(path: str, data: bytes, options: Options) -> AgentTrace:
    """Each trace is a run. A call waits for those that had ended when it started, as far as no later one did."""
    spans: dict[str, list[_Span]] = {}
    for where, raw in documents(path, data):
        for span in _spans(raw, where):
            spans.setdefault(span.trace, []).append(span)
    if not spans:
        raise WorkloadError(
            f"{path}: has no spans of model calls (gen_ai.operation.name {', '.join(sorted(_CALLS))}) with "
            "gen_ai.usage.input_tokens and gen_ai.usage.output_tokens"
        )
    runs = [
        AgentRun(name=name, at=min(span.start for span in calls), calls=_graph(calls))
        for name, calls in spans.items()
    ]
    return AgentTrace(Path(path).name, runs, options)


def _graph(spans: list[_Span]) -> list[Call]:
    spans = sorted(spans, key=lambda span: (span.start, span.end))
    calls = []
    running: list[tuple[float, int]] = []  # a heap of (end, number)
    latest = -math.inf  # when the last of those that have ended had started
    candidates: list[int] = []
    for place, span in enumerate(spans):
        while running and running[0][0] <= span.start:
            _, number = heapq.heappop(running)
            latest = max(latest, spans[number].start)
            candidates.append(number)
        # A call that had ended before another of them started is waited for through that one.
        candidates = [n for n in candidates if spans[n].end > latest or spans[n].start == latest]
        base = max((spans[number].end for number in candidates), default=spans[0].start)
        calls.append(
            Call(
                after=tuple(sorted(candidates)),
                gap=span.start - base,
                input=span.input,
                output=span.output,
                messages=span.messages,
            )
        )
        heapq.heappush(running, (span.end, place))
    return calls


def _spans(raw: dict[str, Any], where: str) -> Iterator[_Span]:
    resources = raw.get("resourceSpans", raw.get("resource_spans"))
    if not isinstance(resources, list):
        raise WorkloadError(f"{where}: must be OTLP's JSON, an object with a list resourceSpans")
    for resource in resources:
        scopes = _object(resource, where).get("scopeSpans", resource.get("scope_spans", []))
        for scope in scopes if isinstance(scopes, list) else ():
            spans = _object(scope, where).get("spans", [])
            for number, span in enumerate(spans if isinstance(spans, list) else (), 1):
                here = f"{where}, span {number}"
                call = _span(_object(span, here), here)
                if call is not None:
                    yield call


def _span(span: dict[str, Any], where: str) -> _Span | None:
    """None for a span that is no call of a model, or has no lengths."""
    attributes = _attributes(span.get("attributes"))
    if attributes.get("gen_ai.operation.name", "chat") not in _CALLS:
        return None
    sent = attributes.get("gen_ai.usage.input_tokens", attributes.get("gen_ai.usage.prompt_tokens"))
    got = attributes.get("gen_ai.usage.output_tokens", attributes.get("gen_ai.usage.completion_tokens"))
    if not _whole(sent) or not _whole(got):
        return None
    start, end = (_nanoseconds(span.get(name), name, where) for name in ("startTimeUnixNano", "endTimeUnixNano"))
    if end < start:
        raise WorkloadError(f"{where}: ends before it starts")
    messages = _messages(attributes.get("gen_ai.input.messages"))
    return _Span(str(span.get("traceId", "")), start, end, max(1, int(sent)), max(1, int(got)), messages)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10_000_000


def _nanoseconds(value: Any, name: str, where: str) -> float:
    """Seconds; OTLP's JSON writes 64-bit numbers as text."""
    try:
        nanoseconds = int(value)
    except (TypeError, ValueError):
        nanoseconds = -1
    if not 0 <= nanoseconds < 2**63:
        raise WorkloadError(f"{where}: {name} must be a time in nanoseconds; got {value!r:.60}")
    return nanoseconds / 1e9


def _attributes(raw: Any) -> Mapping[str, Any]:
    attributes: dict[str, Any] = {}
    for attribute in raw if isinstance(raw, list) else ():
        value = attribute.get("value") if isinstance(attribute, dict) else None
        if isinstance(value, dict) and isinstance(attribute.get("key"), str):
            attributes[attribute["key"]] = _plain(value)
    return attributes


def _plain(value: dict[str, Any]) -> Any:
    for kind, plain in value.items():
        if kind == "intValue" and isinstance(plain, str | int):
            try:
                return int(plain)
            except ValueError:
                return plain
        return plain
    return None


def _messages(text: Any) -> list[dict[str, Any]] | None:
    """Chat messages of the attribute gen_ai.input.messages, where all that they hold is text."""
    if not isinstance(text, str):
        return None
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        return None
    messages = []
    for message in raw if isinstance(raw, list) else ():
        parts = message.get("parts") if isinstance(message, dict) else None
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(parts, list) or role not in ("system", "user", "assistant"):
            return None
        texts = [part.get("content") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
            return None
        messages.append({"role": role, "content": writable("".join(map(str, texts)))})
    return messages or None

"""Datasets with due times: workloads of `python -m corpus compose`, Mooncake's JSONL, Azure's CSV. Published
traces contain no text, so prompts are composed to their lengths and blocks."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from datetime import datetime
from glob import glob
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from corpus.bank import BYTES_PER_TOKEN
from corpus.blocks import block_prompt
from corpus.draw import Draw
from corpus.sources import as_fields, text_of
from loadgen.errors import WorkloadError
from loadgen.workload.agents import MOONCAKE_BLOCK, otel, sessions, weka
from loadgen.workload.datasets import bounded
from loadgen.workload.files import as_object, lines, path_of, read, tokens
from loadgen.workload.model import FollowUp, Options, Prompt, Source

BLOCK: Final = MOONCAKE_BLOCK

_AZURE: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_BURST: Final = ("Timestamp", "Request tokens", "Response tokens")
_OURS: Final = frozenset({"model", "stream", "stream_options"})
"""Members of a recorded body that the run's own flags set."""

_MAX_SECONDS: Final = 10 * 365 * 86400.0


class _Line(msgspec.Struct, frozen=True):
    """One request of a trace: seconds, lengths in tokens, and its blocks if the trace has them."""

    at: float
    input: int
    output: int
    blocks: tuple[int, ...] = ()
    ready: Prompt | None = None  # a composed workload has its prompts
    same: str = ""  # equal for equal requests; empty: `blocks` and lengths decide
    block: int = BLOCK  # tokens
    original: int = 0  # number of the first line with the same prompt


class Trace:
    """A trace: its lines in the order of their times."""

    def __init__(self, name: str, trace_lines: list[_Line], options: Options) -> None:
        trace_lines = trace_lines[: options.num_prompts]
        jitter = (
            options.trace_jitter if options.trace_jitter is not None else _slot([line.at for line in trace_lines])
        )
        start = trace_lines[0].at
        draw = Draw(options.seed, "jitter")
        at = [line.at - start + (draw.unit() * jitter if jitter else 0.0) for line in trace_lines]
        self.name = f"trace:{name}" + (f" (times spread within {jitter:g} s)" if jitter else "")
        self.distinct: int | None = len(trace_lines)
        self._lines = trace_lines
        self._options = options
        self._schedule = sorted((t, line.original) for t, line in zip(at, trace_lines, strict=True))

    def schedule(self) -> list[tuple[float, int]]:
        return self._schedule

    def then(self, number: int) -> tuple[FollowUp, ...]:
        return ()

    def prompt(self, number: int) -> Prompt:
        line, options = self._lines[number], self._options
        if line.ready is not None:
            return line.ready
        if line.blocks:
            text = block_prompt(options.seed, line.blocks, line.input, line.block)
        else:
            text = text_of(Draw(options.seed, "trace", number), line.input)
        fields = bounded(as_fields(text, options.form), options.form, line.output)
        return Prompt(f"trace/{number}", options.form, fields, round(len(text) / BYTES_PER_TOKEN))


def trace(options: Options) -> Source:
    """The file's first line decides its format. Raises WorkloadError with the line that is wrong."""
    path = path_of(options)
    if options.dataset_name == "recording":
        return _ordered(path, recording(options), options)
    number, first = next(lines(path))
    if (agents := _agents(path, options)) is not None:
        return agents
    if first.lstrip()[:1] != b"{":
        trace_lines = list(_burstgpt(path) if b"Request tokens" in first else _azure(path))
    elif "fields" in (raw := as_object(first, f"{path}:{number}")):
        trace_lines = list(_composed(path, options))
    elif "timestamp" in raw:
        trace_lines = list(_mooncake(path))
    else:
        raise WorkloadError(
            f"{path}:{number}: is not a known trace format: python -m corpus compose, Mooncake (timestamp, "
            f"input_length, output_length, hash_ids), Azure ({','.join(_AZURE)}), BurstGPT ({','.join(_BURST)}), "
            "OpenTelemetry (resourceSpans) or KV-Cache-Tester (requests)"
        )
    return _ordered(path, trace_lines, options)


def _ordered(path: str, trace_lines: list[_Line], options: Options) -> Trace:
    trace_lines.sort(key=lambda line: line.at)
    firsts: dict[Any, int] = {}
    for place, line in enumerate(trace_lines):
        same = line.same or (
            line.ready.id if line.ready else (line.blocks, line.input, line.output) if line.blocks else place
        )
        trace_lines[place] = msgspec.structs.replace(line, original=firsts.setdefault(same, place))
    return Trace(Path(path).name, trace_lines, options)


def _agents(path: str, options: Options) -> Source | None:
    """The trace of agents that the file is; None for any other."""
    data = read(path)
    head = data[:65_536]
    if b'"resourceSpans"' in head or b'"resource_spans"' in head:
        return otel(path, data, options)
    if b'"session_id"' in head.partition(b"\n")[0]:
        return sessions(path, data, options)
    if b'"requests"' in head and b'"block_size"' in head:
        return weka(path, data, options)
    return None


def _composed(path: str, options: Options) -> Iterator[_Line]:
    known: dict[str, Prompt] = {}
    for number, text in lines(path):
        where = f"{path}:{number}"
        raw = as_object(text, where)
        if (has := raw.get("endpoint")) != options.form:
            raise WorkloadError(f"{where}: is for the endpoint {has!r}, and this run is for {options.form!r}")
        fields, name = raw.get("fields"), raw.get("id")
        carrier = {"chat": "messages", "completions": "prompt", "embeddings": "input"}[options.form]
        if not isinstance(fields, dict) or not fields.get(carrier) or not isinstance(name, str):
            raise WorkloadError(f"{where}: must have an id and fields with {carrier}")
        prompt = known.setdefault(name, Prompt(name, options.form, fields, raw.get("input_tokens")))
        if prompt.fields != fields:
            raise WorkloadError(f"{where}: the id {name!r} is used for two different prompts")
        yield _Line(_seconds(raw.get("at", 0), "at", where), 0, 0, ready=prompt)


def _mooncake(path: str) -> Iterator[_Line]:
    for number, text in lines(path):
        where = f"{path}:{number}"
        raw = as_object(text, where)
        length = tokens(raw, "input_length", where)
        blocks = raw.get("hash_ids", [])
        if not isinstance(blocks, list) or not all(isinstance(b, int) and not isinstance(b, bool) for b in blocks):
            raise WorkloadError(f"{where}: hash_ids must be a list of whole numbers")
        if blocks and not (len(blocks) - 1) * BLOCK < length <= len(blocks) * BLOCK:
            raise WorkloadError(
                f"{where}: {len(blocks)} hash_ids of {BLOCK} tokens do not make an input_length of {length}"
            )
        at = _seconds(raw.get("timestamp"), "timestamp", where) / 1000
        yield _Line(at, length, tokens(raw, "output_length", where), tuple(blocks))


def _azure(path: str) -> Iterator[_Line]:
    try:
        rows = list(csv.reader(io.StringIO(read(path).decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as e:
        raise WorkloadError(f"{path}: is not CSV in UTF-8: {e}") from None
    if tuple(name.strip() for name in rows[0]) != _AZURE:
        raise WorkloadError(f"{path}:1: the columns must be {','.join(_AZURE)}")
    if len(rows) == 1:
        raise WorkloadError(f"{path}:2: is missing: there is no request after the header")
    for number, row in enumerate(rows[1:], 2):
        where = f"{path}:{number}"
        if not row:
            continue
        try:
            stamp, context, generated = (cell.strip() for cell in row)
            at = datetime.fromisoformat(stamp[:26]).timestamp() if stamp[-1:].isdigit() else math.nan
            lengths = {_AZURE[1]: int(context), _AZURE[2]: int(generated)}
        except ValueError as e:
            raise WorkloadError(f"{where}: must be a time and two whole numbers: {e}") from None
        yield _Line(
            _seconds(at, "TIMESTAMP", where, limit=math.inf),
            tokens(lengths, _AZURE[1], where),
            tokens(lengths, _AZURE[2], where),
        )


def recording(options: Options) -> list[_Line]:
    """A recording of the gateway (`record_file`): the requests of the run's endpoint, with their arrival times and
    duplicates. Hashed prompts are composed to the same lengths and shared blocks, whole ones sent as they were.

    A pattern such as `FILE-worker*` gives the files of all workers, which are ordered by time together."""
    pattern = path_of(options)
    paths = [pattern] if Path(pattern).exists() else sorted(glob(pattern))
    if not paths:
        raise WorkloadError(f"{pattern}: no such file")
    numbers: dict[str, int] = {}
    # A worker that served nothing has an empty file.
    filled = [path for path in paths if len(paths) == 1 or Path(path).stat().st_size]
    found = [line for path in filled for line in _recorded(path, options, numbers)]
    if not found:
        raise WorkloadError(
            f"{pattern}: has no request to {options.form}; --backend or --endpoint chooses another"
        )
    return found


def _recorded(path: str, options: Options, numbers: dict[str, int]) -> Iterator[_Line]:
    """The usable lines of one file. `numbers` are those of the blocks so far."""
    for number, text in lines(path):
        where = f"{path}:{number}"
        raw = as_object(text, where)
        name, size = raw.get("id"), raw.get("bytes")
        if not isinstance(name, str) or isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise WorkloadError(f"{where}: is no line of a recording: it must have id, bytes, at and endpoint")
        at = _seconds(raw.get("at"), "at", where, limit=math.inf)
        if raw.get("endpoint") != options.form:
            continue
        body = raw.get("body")
        if body is not None:
            if not isinstance(body, dict):
                raise WorkloadError(f"{where}: body must be an object")
            fields = {key: value for key, value in body.items() if key not in _OURS}
            yield _Line(at, 0, 0, ready=Prompt(f"recording/{name}", options.form, fields), same=name)
            continue
        blocks = raw.get("blocks", [])
        if not isinstance(blocks, list) or not all(isinstance(block, str) for block in blocks):
            raise WorkloadError(f"{where}: blocks must be a list of hashes")
        length = (
            tokens(raw, "prompt_tokens", where)
            if raw.get("prompt_tokens")
            else max(1, round(size / BYTES_PER_TOKEN))
        )
        block = max(1, math.ceil(length / len(blocks))) if blocks else BLOCK
        yield _Line(
            at,
            length,
            tokens(raw, "completion_tokens", where) if raw.get("completion_tokens") else 1,
            tuple(numbers.setdefault(each, len(numbers)) for each in blocks),
            same=name,
            block=block if len(blocks) > 1 else max(BLOCK, length),
        )


def _burstgpt(path: str) -> Iterator[_Line]:
    """BurstGPT (arXiv 2401.17644). Requests without response tokens failed when recorded, and are left out."""
    try:
        rows = list(csv.DictReader(io.StringIO(read(path).decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as e:
        raise WorkloadError(f"{path}: is not CSV in UTF-8: {e}") from None
    if not rows or any(name not in rows[0] for name in _BURST):
        raise WorkloadError(f"{path}:1: the columns must include {','.join(_BURST)}, with a request after them")
    usable = 0
    for number, row in enumerate(rows, 2):
        where = f"{path}:{number}"
        try:
            at = float(row[_BURST[0]])
            lengths = {name: int(float(row[name])) for name in _BURST[1:]}
        except (TypeError, ValueError, OverflowError) as e:
            raise WorkloadError(f"{where}: must have a time and two whole numbers: {e}") from None
        if lengths[_BURST[2]] <= 0 or lengths[_BURST[1]] <= 0:
            continue
        usable += 1
        yield _Line(
            _seconds(at, _BURST[0], where), tokens(lengths, _BURST[1], where), tokens(lengths, _BURST[2], where)
        )
    if not usable:
        raise WorkloadError(f"{path}: no request has response tokens")


def _seconds(value: Any, name: str, where: str, limit: float = _MAX_SECONDS * 1000) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not 0 <= value <= limit:
        raise WorkloadError(f"{where}: {name} must be a time, at least 0; got {value!r:.60}")
    return float(value)


def _slot(times: list[float]) -> float:
    """The grid of a clock that is coarser than its arrivals (Mooncake's conversation: 3 s); 0 for any other.

    A grid: at least 10 different times, each met by two requests or more in the mean, and all gaps multiples of
    the smallest to within 5 %.
    """
    different = sorted(set(times))
    if len(different) < 10 or len(times) < 2 * len(different):
        return 0.0
    gaps = [b - a for a, b in pairwise(different)]
    smallest = min(gaps)
    return smallest if all(abs(gap / smallest - round(gap / smallest)) < 0.05 for gap in gaps) else 0.0

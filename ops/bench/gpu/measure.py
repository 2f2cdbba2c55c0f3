"""Measures one row: the load generator against a subject, while the engine's counters and the CPU time of each
part are sampled."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from msgspec import Struct, structs

from ops.bench.account import alive, cpu_ns
from ops.bench.gpu.engine import last_lines, why
from ops.bench.gpu.plan import STREAMS, Cell
from ops.bench.vllm.real import counted, loadgen

SAMPLES: Final = 8  # a row
BUSY: Final = 0.9  # share of the streams that must be generating for a sample to count
LEAST_SECONDS: Final = 60.0  # until a row that ends by its count of requests is cut
GUARD_SECONDS: Final = 90.0  # beyond its load, after which a load generator is killed
IDLE_SECONDS: Final = 5.0  # waited before a row for requests that the one before it left behind
COUNTERS: Final = {
    "requests": "vllm:request_success_total",
    "prompt": "vllm:prompt_tokens_total",
    "cached": "vllm:prefix_cache_hits_total",
    "generated": "vllm:generation_tokens_total",
    "running": "vllm:num_requests_running",
}


class EngineEnded(Exception):
    """The engine's process ended; nothing more can be measured."""


@dataclass(frozen=True, slots=True)
class Subject:
    """An address to send requests to, and the process behind it with its log; direct has none of its own."""

    name: str
    url: str
    pid: int | None
    log: Path


class Row(Struct, kw_only=True):
    """One load against one subject. Times in ms, CPU in µs a generated token; None where it is unknown."""

    kind: str
    value: float
    round: int
    subject: str
    seconds: float = 0.0
    completed: int = 0
    failed: int = 0
    ttft_p50: float | None = None
    ttft_p99: float | None = None
    tpot_p50: float | None = None
    itl_p99: float | None = None
    tokens_per_s: float | None = None
    engine_us: float | None = None
    subject_us: float | None = None
    client_us: float | None = None
    delivered: int = 0  # tokens that clients received
    work: dict[str, float] = {}  # what the engine counted
    invalid: list[str] = []  # why the generator's own error is too large
    error: str | None = None  # why there are no figures


class Point(Struct, frozen=True):
    """A sample: seconds, tokens the engine generated, its running requests, CPU seconds of engine and subject."""

    at: float
    generated: float
    running: float
    engine: float
    subject: float


def counters(engine: str) -> dict[str, float]:
    """The counters that the engine has. Raises OSError if it does not answer."""
    with urllib.request.urlopen(f"{engine}/metrics", timeout=10) as answer:  # noqa: S310 - started here
        page = answer.read().decode()
    return {name: counted(page, series) for name, series in COUNTERS.items() if series in page}


class Sampler:
    """Samples in a thread of its own while the block runs."""

    def __init__(self, sample: Callable[[], Point], every: float) -> None:
        self._sample = sample
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.points: list[Point] = []

    def _run(self) -> None:
        while not self._over.wait(self._every):
            try:
                self.points.append(self._sample())
            except (OSError, ValueError):
                continue  # an engine too busy to answer in time: this sample is missing

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(15)


def steady(points: Sequence[Point], streams: float) -> tuple[float, float | None, float | None] | None:
    """Tokens a second and CPU µs a token of engine and subject, between the first and the last sample with nearly
    all streams generating; None with fewer than two such samples, or no token between them. CPU is None where the
    system does not count it."""
    busy = [point for point in points if point.running >= BUSY * streams]
    if len(busy) < 2 or busy[-1].generated <= busy[0].generated:
        return None
    first, last = busy[0], busy[-1]
    tokens = last.generated - first.generated
    engine, subject = last.engine - first.engine, last.subject - first.subject
    return tokens / (last.at - first.at), 1e6 * engine / tokens or None, 1e6 * subject / tokens or None


@dataclass(frozen=True, slots=True)
class Load:
    """The load of every row."""

    tokens: int  # of an answer
    seconds: float  # of a row with streams
    shared_streams: int  # concurrent requests of a row with duplicates
    requests: int  # of a row with duplicates
    sets: str  # of the corpus

    @property
    def longest(self) -> float:
        """Seconds after which a row is cut that should end by its count of requests."""
        return max(3 * self.seconds, LEAST_SECONDS)

    def arguments(self, cell: Cell, url: str) -> list[str]:
        """The load generator's command line. Prompts are unique at temperature 0: each costs the gateway a key, a
        look-up and a store, though nothing is shared."""
        streams = cell.kind == STREAMS
        at_once = int(cell.value) if streams else self.shared_streams
        return [
            "run", "--base-url", url, "--backend", "openai-chat", "--max-concurrency", str(at_once),
            "--num-prompts", "1000000" if streams else str(self.requests), "--max-tokens", str(self.tokens),
            "--ignore-eos", "--unique", "--temperature", "0", "--corpus-set", self.sets,
            "--max-seconds", f"{self.seconds if streams else self.longest:g}",
            "--num-warmups", str(min(at_once, 8)) if streams else "0", "--seed", str(cell.round),
            "--idle-timeout", "30",
            "--duplicates", "0" if streams else f"{cell.value:g}", "--label", "row",
        ]  # fmt: skip


def measure(cell: Cell, subject: Subject, engine: Subject, load: Load, folder: Path) -> Row:
    """One row. A subject that fails gives a row with its `error`.

    Raises EngineEnded if the engine's process is gone.
    """
    row = Row(kind=cell.kind, value=cell.value, round=cell.round, subject=subject.name)
    began = time.monotonic()
    try:
        row = structs.replace(row, **_figures(cell, subject, engine, load, folder))
    except (RuntimeError, OSError) as error:
        row = structs.replace(row, error=" ".join(str(error).split())[-600:])
    for one in (engine, subject):
        if one.pid is not None and not alive(one.pid):
            cause = why(one.log)
            head = f"the process of {one.name} ended{f': {cause}' if cause else ''}"
            said = f"{head}; its log ends with: {last_lines(one.log, 5)}"
            if one is engine:
                raise EngineEnded(said)
            row = structs.replace(row, error=said)
    return structs.replace(row, seconds=time.monotonic() - began)


def _figures(cell: Cell, subject: Subject, engine: Subject, load: Load, folder: Path) -> dict[str, Any]:
    _until_idle(engine.url)
    before = counters(engine.url)

    def sample() -> Point:
        values = counters(engine.url)
        engine_s, subject_s = (cpu_ns(one.pid) / 1e9 if one.pid is not None else 0.0 for one in (engine, subject))
        generated, running = values.get("generated", 0.0), values.get("running", 0.0)
        return Point(time.monotonic(), generated, running, engine_s, subject_s)

    guard = load.longest + GUARD_SECONDS
    with Sampler(sample, load.seconds / SAMPLES) as sampler:
        result = loadgen(*load.arguments(cell, subject.url), folder=folder, seconds=guard)
    after = counters(engine.url)
    found = figures(result)
    if absent := [series for name, series in COUNTERS.items() if name not in after and name != "cached"]:
        raise RuntimeError(f"the engine's /metrics has no {', '.join(absent)}")
    work = {name: after.get(name, 0.0) - before.get(name, 0.0) for name in COUNTERS if name != "running"}
    found["work"] = work
    pace = steady(sampler.points, cell.value) if cell.kind == STREAMS else None
    if pace is not None:
        found["tokens_per_s"], found["engine_us"], found["subject_us"] = pace
        found["client_us"] = 1e6 * result["loadgen"]["run"]["lag"]["cpu"] / pace[0]
    return found


def figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row that the load generator knows."""
    whole = result["loadgen"]["summary"]["whole"]
    found = {
        "completed": result["completed"],
        "failed": result["failed"],
        "delivered": result["total_output_tokens"],
        "tokens_per_s": result["output_throughput"] or None,
        "ttft_p50": result["median_ttft_ms"],
        "ttft_p99": result["p99_ttft_ms"],
        "tpot_p50": result["median_tpot_ms"],
        "itl_p99": result["p99_itl_ms"],
        "invalid": result["loadgen"]["run"]["invalid"],
    }
    if not result["completed"]:
        errors = ", ".join(f"{count} × {name}" for name, count in whole["errors"].items()) or "none was sent"
        found["error"] = f"no request was completed: {errors}"
    return found


def _until_idle(engine: str) -> None:
    """Wait until the engine runs nothing, at most IDLE_SECONDS."""
    until = time.monotonic() + IDLE_SECONDS
    while counters(engine).get("running") and time.monotonic() < until:
        time.sleep(0.1)

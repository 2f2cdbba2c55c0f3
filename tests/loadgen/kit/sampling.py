"""Made-up runs for the tests of statistics and reports: a seeded queueing model of an engine, with the failures of
real runs. By hand it makes a run whose report can be looked at."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from loadgen.record import Event, Failure, Kind, Lag, Record, Run

MS = 1_000_000
SECOND = 1_000_000_000
FAULTS: tuple[tuple[Failure, int | None, str], ...] = (
    ("status", 503, "the queue is full"),
    ("timeout", None, "no byte in 30 s"),
    ("truncated", 200, "the stream ended without [DONE]"),
    ("error_frame", 200, '{"error": {"message": "out of memory"}}'),
)


@dataclass(frozen=True)
class Engine:
    """Serves `slots` requests at once. Its decode step slows with what runs; prefill goes by the prompt."""

    slots: int = 16
    prefill_ms: float = 35.0
    step_ms: float = 9.0
    step_per_running_ms: float = 0.6
    overhead_ms: float = 0.0  # a gateway in front


@dataclass(frozen=True)
class Load:
    rate: float = 8.0
    requests: int = 400
    seed: int = 0
    tokens: int = 60
    warmups: int = 8
    fault: float = 0.01
    merged: float = 0.02  # share of events that came in one read with their successor
    continuous: bool = True  # usage in every chunk
    shared: bool = False  # a gateway answers, some from its cache
    stage: str = ""
    target: Literal["a", "b"] = "a"
    paired: bool = False
    start_s: float = 0.0


def records(load: Load | None = None, engine: Engine | None = None) -> Iterator[Record]:
    """Poisson arrivals into a first-come, first-served queue."""
    load, engine = load or Load(), engine or Engine()
    source = random.Random(f"{load.seed}{load.stage}{load.paired}")
    free = [0.0] * engine.slots  # when each place is free again, milliseconds
    now = load.start_s * 1000
    for index in range(-load.warmups, load.requests):
        now += source.expovariate(load.rate) * 1000
        sent = now + source.expovariate(20) + 0.02
        begin = max(sent + 0.3, heapq.heappop(free))
        running = sum(at > begin for at in free) + 1
        verdict = _verdict(source) if load.shared else None
        output = max(1, round(source.lognormvariate(0, 0.5) * load.tokens))
        if verdict in ("hit", "attached"):
            times = [begin + 1.2 + 0.004 * place for place in range(output)]
            heapq.heappush(free, begin)
        else:
            first = begin + engine.prefill_ms * source.lognormvariate(0, 0.35) + engine.overhead_ms
            step = engine.step_ms + engine.step_per_running_ms * running
            times = [first]
            for _ in range(output - 1):
                stall = 180 if source.random() < 0.0008 else 0
                times.append(times[-1] + step * source.lognormvariate(0, 0.12) + stall)
            heapq.heappush(free, times[-1])
        record = Record(
            index=max(index, 0) if index >= 0 else load.requests + index + load.warmups,
            id=f"lg-{load.seed}-{index}",
            prompt=f"p{index % 97}",
            target=load.target,
            pair=index if load.paired and index >= 0 else None,
            stage=load.stage,
            warmup=index < 0,
            due_ns=round(now * MS),
            sent_ns=round(sent * MS),
            write_ns=round(sent * MS) - 20_000,
            status=200,
            shared=verdict,
            prompt_tokens=80 + index % 400,
            cached_tokens=64 if index % 3 == 0 else 0,
        )
        if index >= 0 and source.random() < load.fault:
            yield _failed(record, source, times)
        else:
            yield _answered(record, times, load, source)


def _verdict(source: random.Random) -> str:
    return source.choices(["miss", "hit", "attached", "bypass"], [60, 22, 13, 5])[0]


def _answered(record: Record, times: list[float], load: Load, source: random.Random) -> Record:
    at = [round(time * MS) for time in times]
    before = at[0] - 400_000
    role = Event(at_ns=before, low_ns=before, user_ns=before + 30_000, kind=Kind.ROLE)
    events = [role]
    place = 0
    while place < len(at):
        together = 1
        while place + together < len(at) and source.random() < load.merged:
            together += 1
        stamp, previous = at[place + together - 1], events[-1].at_ns
        for turn in range(together):
            low = stamp if turn == together - 1 else previous
            tokens = 1 if load.continuous else None
            events.append(Event(stamp, low, stamp + 60_000, Kind.CONTENT, tokens))
        place += together
    end = at[-1] + 150_000
    events += [Event(end, end, end + 40_000, kind) for kind in (Kind.FINISH, Kind.USAGE, Kind.DONE)]
    record.events, record.head_ns, record.end_ns = events, before, end
    record.completion_tokens = len(at)
    return record


def _failed(record: Record, source: random.Random, times: list[float]) -> Record:
    record.failure, record.status, record.detail = source.choice(FAULTS)
    record.end_ns = (record.sent_ns or 0) + 2 * MS  # fast: it must never be counted as such
    if record.failure == "truncated":
        stamp = round(times[0] * MS)
        record.events, record.end_ns = [Event(stamp, stamp, stamp, Kind.CONTENT, 1)], stamp
    return record


def run_of(label: str = "sample", *, seed: int = 0, invalid: list[str] | None = None) -> Run:
    return Run(
        date="2026-11-24T12:00:00+00:00",
        label=label,
        command=["python", "-m", "loadgen", "run", "--base-url", "http://127.0.0.1:8000", "--request-rate", "8"],
        config={"backend": "openai-chat", "request_rate": 8.0, "burstiness": 1.0, "max_concurrency": None},
        targets={"a": "http://127.0.0.1:8000"},
        model="smollm2",
        endpoint="/v1/chat/completions",
        machine={"cpu": "a processor", "cores": 2, "kernel": "6.18", "python": "3.11.7"},
        seed=seed,
        start_unix_ns=1_795_521_600 * SECOND,
        lag=Lag(
            clock="kernel",
            send_clock="kernel",
            loop_ms={"p50": 0.06, "p99": 0.9, "max": 4.1},
            read_ms={"p50": 0.05, "p99": 0.4, "max": 3.0},
            late_ms={"p50": 0.07, "p99": 0.26, "max": 0.6},
            censored=0.02,
            censored_width_ms={"p50": 18.0, "p99": 30.0, "max": 41.0},
            cpu=0.21,
            clock_drift_ms=0.002,
            floor_ms={"ttft_p99": 0.11, "itl_p99": 0.12},
        ),
        invalid=invalid or [],
        sent_stats={"distinct_prompts": 97, "duplicate_share": 0.757, "prefix_share": 0.1},
    )


def sweep_records(rates: tuple[float, ...] = (2, 4, 8, 12, 16, 20), requests: int = 150) -> Iterator[Record]:
    start = 0.0
    for rate in rates:
        load = Load(rate=rate, requests=requests, stage=f"rate={rate:g}", warmups=0, start_s=start)
        last = 0
        for record in records(load):
            last = max(last, record.end_ns or 0)
            yield record
        start = last / SECOND + 1


def ab_records(requests: int = 400, overhead_ms: float = 1.4) -> list[Record]:
    """The same requests at both; what differs is the overhead and a little noise of its own."""
    a = list(records(Load(requests=requests, paired=True, warmups=0, rate=6, fault=0.005)))
    noise = random.Random(7)
    b = list(records(Load(requests=requests, paired=True, warmups=0, rate=6, fault=0.005, target="b")))
    for record in b:
        late = round((overhead_ms + noise.gauss(0, 0.3)) * MS)
        record.end_ns = (record.end_ns or 0) + late
        for event in record.events:
            event.at_ns += late
            event.low_ns += late
    return [record for both in zip(a, b, strict=True) for record in both]

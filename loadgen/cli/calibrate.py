"""`python -m loadgen calibrate`: this program against a server that writes into each event when it sent it."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from loadgen.cli import finish
from loadgen.cli.flags import common as flags
from loadgen.cli.flags import values
from loadgen.cli.preflight import connection_limit
from loadgen.drive import (
    Calibration,
    Clock,
    Exchange,
    RequestBuilder,
    Session,
    judge_self_error,
    lag_of,
    new_loop,
    open_loop_times,
    percentiles_ms,
    save_calibration,
    schedule_requests,
)
from loadgen.errors import UsageError
from loadgen.record import GENERATED, Record
from loadgen.spec import Body, Http, Limits, Pace
from loadgen.workload import Prompt

_SENT: Final = re.compile(rb'"sent_ns":(\d+)')
REFINE: Final = 2  # bisections after the first rate that was too high


class StageErrors(msgspec.Struct):
    """The absolute errors of one stage, in nanoseconds."""

    ttft_ns: list[int] = []
    itl_ns: list[int] = []
    records: list[Record] = []

    def inspect(self, exchange: Exchange, record: Record, clock: Clock) -> None:
        """Compare each event's time with the time that the server wrote into it."""
        self.records.append(record)
        sent = [clock.since_start(int(text)) for text in _SENT.findall(exchange.body)]
        at = [event.at_ns for event in record.events if event.kind in GENERATED]
        if not at or len(at) != len(sent):
            return
        errors = [a - s for a, s in zip(at, sent, strict=True)]
        self.ttft_ns.append(abs(errors[0]))
        self.itl_ns += [abs(b - a) for a, b in itertools.pairwise(errors)]


class Step(msgspec.Struct, kw_only=True):
    """One stage's result: the load it drove, and why its figures are not accurate (empty: they are)."""

    requested: float
    requests_per_s: float
    events_per_s: float
    cpu: float
    ttft_ms: dict[str, float]
    itl_ms: dict[str, float]
    wrong: list[str]

    def __str__(self) -> str:
        def pair(spread: dict[str, float]) -> str:
            return f"{spread['p50']:.3f}/{spread['p99']:.3f} ms" if spread else "–"

        return (
            f"{self.requests_per_s:8.0f} req/s {self.events_per_s:9.0f} events/s  CPU {self.cpu:4.0%}  "
            f"error p50/p99: TTFT {pair(self.ttft_ms)}, ITL {pair(self.itl_ms)}  "
            f"{'; '.join(self.wrong) or 'accurate'}"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds",
        type=values.number(0.1, 60),
        default=2.0,
        metavar="S",
        help="duration of each stage (default %(default)g)",
    )
    parser.add_argument(
        "--start-requests", type=values.whole(1), default=100, metavar="R", help="lowest rate tried (default 100)"
    )
    parser.add_argument(
        "--start-streams", type=values.whole(1), default=8, metavar="N", help="fewest streams tried (default 8)"
    )
    parser.add_argument(
        "--max-rate", type=values.number(1), default=100_000.0, metavar="R", help="highest rate tried"
    )
    parser.add_argument("--no-save", action="store_true", help="print the result without saving it")
    flags.refuse_workers(parser, "calibrate measures what one worker can drive")


def main(args: argparse.Namespace, argv: list[str]) -> int:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        result = runner.run(_calibrate(args))
    print(
        f"\nerror floor: TTFT p50 {result.floor_ms['ttft_p50']:.3f} p99 {result.floor_ms['ttft_p99']:.3f} ms, "
        f"ITL p50 {result.floor_ms['itl_p50']:.3f} p99 {result.floor_ms['itl_p99']:.3f} ms\n"
        f"accurate up to: {result.requests_per_s:.0f} requests/s, {result.events_per_s:.0f} events/s per worker"
    )
    if not result.requests_per_s or not result.events_per_s:
        print("0: even the lowest rate was not accurate; is the machine busy with something else?")
    if args.no_save:
        return 0
    try:
        print(f"saved to {save_calibration(result)}")
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        print(f"could not save it: {reason}; set XDG_CACHE_HOME to a folder that can be written", file=sys.stderr)
        return 1
    return 0


@asynccontextmanager
async def server() -> AsyncIterator[str]:
    """The URL of the server of known schedule, in its own process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadgen.cli.calibration_server"),
        stdin=PIPE,
        stdout=PIPE,
        start_new_session=True,  # the terminal's Ctrl-C is for this process, which ends the server
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _calibrate(args: argparse.Namespace) -> Calibration:
    seconds: float = args.seconds
    async with server() as url:
        print("error floor: 4 streams of 50 events, 20 ms apart", flush=True)
        floor = await stage(url, streams=4, seconds=seconds, itl_ms=20.0)
        print(f"  {floor}")
        if not floor.ttft_ms or not floor.itl_ms:
            raise UsageError(f"could not measure the server of known schedule: {'; '.join(floor.wrong)}")
        print("requests: at a constant rate, one event each")
        best_r, bounded_r = await climb(
            lambda rate: stage(url, rate=rate, seconds=seconds), args.start_requests, args.max_rate, _show
        )
        print("events: streams of 100 events a second each")
        best_e, bounded_e = await climb(
            lambda streams: stage(url, streams=round(streams), seconds=seconds, itl_ms=10.0),
            args.start_streams,
            args.max_rate / 100,
            _show,
        )
    return Calibration(
        date=finish.now().isoformat(timespec="seconds"),
        machine=finish.machine(),
        floor_ms={
            f"{name}_{p}": spread_.get(p, 0.0)
            for name, spread_ in (("ttft", floor.ttft_ms), ("itl", floor.itl_ms))
            for p in ("p50", "p99")
        },
        requests_per_s=best_r.requests_per_s if best_r else 0.0,
        events_per_s=best_e.events_per_s if best_e else 0.0,
        requests_bounded=bounded_r,
        events_bounded=bounded_e,
    )


def _show(step: Step) -> None:
    print(f"  {step}", flush=True)


async def climb(
    measure: Callable[[float], Awaitable[Step]], start: float, limit: float, show: Callable[[Step], None]
) -> tuple[Step | None, bool]:
    """The highest accurate step, by doubling and then bisecting; and whether an inaccurate one was found."""
    best: Step | None = None
    low, rate = 0.0, float(start)
    while rate <= limit:
        step = await measure(rate)
        show(step)
        if step.wrong:
            break
        best, low, rate = step, rate, rate * 2
    else:
        return best, False
    high = rate
    for _ in range(REFINE if low else 0):
        middle = (low * high) ** 0.5
        step = await measure(middle)
        show(step)
        if step.wrong:
            high = middle
        else:
            best, low = step, middle
    return best, True


async def stage(
    url: str, *, seconds: float, rate: float | None = None, streams: int | None = None, itl_ms: float = 0.0
) -> Step:
    """Requests at a constant rate with one event each, or `streams` at once with an event every `itl_ms`."""
    extra: dict[str, Any] = {"ttft_ms": itl_ms, "itl_ms": itl_ms}
    tokens = 1 if rate else max(round(min(seconds, 1.0) * 1e3 / itl_ms), 2)
    body = Body(model="known", max_tokens=tokens, extra=extra)
    prompt = Prompt("known", "chat", {"messages": []})
    count = round(rate * seconds) if rate else (streams or 1) * max(round(seconds), 1)
    times = None if rate is None else open_loop_times(rate, float("inf"))
    pace = Pace(max_concurrency=streams, open_loop=rate is not None)
    measured = StageErrors()
    builder = RequestBuilder({"a": url}, "chat", body, run="cal")
    async with Session(
        Http(), builder, max_in_flight=connection_limit(streams), inspect=measured.inspect
    ) as session:
        warm = Pace(max_concurrency=streams or 8)
        await session.phase(schedule_requests([prompt] * (streams or 8), None), warm, _discard, warmup=True)
        measured.records.clear()
        measured.ttft_ns.clear()
        measured.itl_ns.clear()
        outcome = await session.phase(schedule_requests([prompt] * count, times), pace, _discard)
    lag = lag_of(measured.records, [outcome.worker_error])
    limits = Limits()
    faults, _ = judge_self_error(
        lag, measured.records, limits, outcome.worker_error.step_ns, open_loop=rate is not None
    )
    wrong = [fault.text for fault in faults]
    ttft, itl = percentiles_ms(measured.ttft_ns), percentiles_ms(measured.itl_ns)
    wrong += _errors(ttft, itl, limits)
    failed = sum(record.failure is not None for record in measured.records)
    if failed:
        wrong.append(f"{failed} requests failed")
    span = outcome.end_ns / 1e9
    requests_per_s = len(measured.records) / span
    if rate is not None and requests_per_s < 0.95 * rate * seconds / (seconds + 0.05):
        wrong.append(f"{rate:.0f} req/s were requested")
    return Step(
        requested=rate or float(streams or 0),
        requests_per_s=requests_per_s,
        events_per_s=sum(e.kind in GENERATED for r in measured.records for e in r.events) / span,
        cpu=lag.cpu,
        ttft_ms=ttft,
        itl_ms=itl,
        wrong=wrong,
    )


def _errors(ttft: dict[str, float], itl: dict[str, float], limits: Limits) -> Sequence[str]:
    errors = []
    for name, values_ in (("TTFT", ttft), ("ITL", itl)):
        if values_ and values_["p99"] > limits.error_ms:
            errors.append(f"{name} off by {values_['p99']:.2f} ms (p99)")
    return errors


def _discard(record: Record) -> None:
    """`inspect` has seen the record."""

"""Streams without a stall: 64 tokens, one every 20 ms, every byte checked. The shape is that of the Busbar team's
public benchmark of AI gateways (onthebench.ai, July 2026): all frames, and no gap over twice the pace."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Sequence
from typing import Final

import msgspec

from ops.bench.account import cpu_ns, stolen_s, waited_ns
from ops.bench.client import MAX_KEPT, Load, Tally
from ops.bench.stage import DIRECT, Cpus, Stage
from ops.bench.table import Part
from ops.bench.wire import Spec
from ops.bench.workloads import unique

COUNTS: Final = (1, 8, 32, 128, 512, 1024)
TOKENS: Final = 64
PACE_MS: Final = 20.0
STALL_MS: Final = 2 * PACE_MS
WAITED: Final = 0.05
"""Share of the time without its CPU from which on a stall is not blamed on the subject: others use that CPU."""
BEAT: Final = 0.005  # seconds between two looks at the client's own lateness


class Row(msgspec.Struct, kw_only=True):
    """One number of streams through one subject in one round."""

    subject: str
    streams: int
    round: int
    answers: int  # complete, byte for byte
    broken: int  # answers that were not
    frames: int
    stalls: int  # gaps over twice the pace
    ttft_ms: tuple[float, float, float]  # p50, p99, most
    gap_ms: tuple[float, float, float]
    cpu_us: float  # of the subject, a frame
    busy: float  # CPUs that the subject used
    waited: float  # share of the time in which it could run and had no CPU
    client_busy: float
    client_late_ms: float  # the most that the client's event loop was late
    engine_late_ms: float  # the most that the engine sent a token late
    words: list[str] = []  # of the first broken answers

    @property
    def whole(self) -> bool:
        return not self.broken and not self.stalls and self.answers > 0


async def beat(late: list[float]) -> None:
    """Append by how many seconds this event loop was late, every BEAT."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + BEAT
        await asyncio.sleep(BEAT)
        late.append(loop.time() - due)


def engine_late_ms(port: int) -> float:
    """The most that the engine sent an event late since the last look."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/bench/counts", timeout=10) as answer:
        return float(json.load(answer)["late_us"]) / 1000


async def measure(name: str, streams: int, round_: int, seconds: float, staged: Stage, on: Cpus) -> Row:
    """One wave of answers that is not counted, then streams for `seconds` and until their answers end."""
    load = Load(staged.port, staged.headers, staged.check)
    spec = Spec(0, TOKENS, round(PACE_MS * 1000), shared=name != "gateway-private")
    ramp = PACE_MS / 1000  # otherwise all tokens of all streams would be due in the same instant
    await load.closed(streams, unique(spec), 0.1, ramp=ramp)
    await asyncio.to_thread(engine_late_ms, staged.engine_port)
    late: list[float] = []
    pid = staged.subject.pid if staged.subject is not None else None

    def used() -> tuple[float, float]:
        """CPU seconds of the subject, and seconds in which it had none though it could run."""
        if pid is None:
            return 0.0, 0.0
        return cpu_ns(pid) / 1e9, waited_ns(pid) / 1e9 + stolen_s(on.subject)

    beating = asyncio.create_task(beat(late))
    before, own = used(), time.process_time()
    tally = await load.closed(streams, unique(spec), seconds, ramp=ramp)
    after, own = used(), time.process_time() - own
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)
    return row_of(
        name, streams, round_, tally, cpu_s=after[0] - before[0], waited_s=after[1] - before[1], client_s=own,
        client_late=max(late, default=0.0),
        engine_late=await asyncio.to_thread(engine_late_ms, staged.engine_port),
    )  # fmt: skip


def row_of(
    name: str, streams: int, round_: int, tally: Tally, *, cpu_s: float, waited_s: float, client_s: float,
    client_late: float, engine_late: float,
) -> Row:  # fmt: skip
    """The row of a tally. All times in seconds, but `engine_late` in ms."""
    gaps = [1000 * gap for gap in tally.gaps]
    seconds = max(1e-9, tally.seconds)
    return Row(
        subject=name, streams=streams, round=round_, answers=tally.done, broken=len(tally.wrong),
        frames=tally.events, stalls=sum(gap > STALL_MS for gap in gaps),
        ttft_ms=Part.spread([1000 * ttft for ttft in tally.ttft]), gap_ms=Part.spread(gaps),
        cpu_us=1e6 * cpu_s / max(1, tally.events), busy=cpu_s / seconds, waited=waited_s / seconds,
        client_busy=client_s / seconds, client_late_ms=1000 * client_late, engine_late_ms=engine_late,
        words=tally.wrong[:3] + (["not all gaps were kept"] if len(gaps) >= MAX_KEPT else []),
    )  # fmt: skip


def limit(row: Row, direct: Row | None) -> str:
    """Empty for a whole row, else what stalled it: `the machine` where direct was not whole, client or engine were
    late, or the subject was kept from its CPU; else `the subject`."""
    if row.whole:
        return ""
    if row.subject == DIRECT or (direct is not None and not direct.whole):
        return "the machine"
    if max(row.client_late_ms, row.engine_late_ms) > PACE_MS or row.waited > WAITED:
        return "the machine"
    return "the subject"


def carried(rows: Sequence[Row], name: str) -> tuple[int, str]:
    """The largest number of streams up to which every round was whole, and what the limit was beyond it: `the
    subject` if it was in a round, else `the machine`; `not measured` where the subject failed; empty if all were
    whole."""
    most = 0
    for streams in sorted({row.streams for row in rows}):
        at = [row for row in rows if row.streams == streams]
        direct = {row.round: row for row in at if row.subject == DIRECT}
        mine = [row for row in at if row.subject == name]
        if not mine:
            return most, "not measured"
        limits = {limit(row, direct.get(row.round)) for row in mine} - {""}
        if limits:
            return most, "the subject" if "the subject" in limits else "the machine"
        most = streams
    return most, ""

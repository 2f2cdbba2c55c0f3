"""Answers a second out of Redis: a stream of 128 tokens, and one JSON body."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from ops.bench.account import cpu_ns
from ops.bench.client import Load
from ops.bench.stage import Stage
from ops.bench.wire import Spec
from ops.bench.workloads import repeated

KINDS: Final = {
    "stream": Spec(0, 128, 0, shared=True),
    "body": Spec(0, 1, 0, stream=False, shared=True),
}
CONNECTIONS: Final = 32
PROMPTS: Final = 32
FULL: Final = 0.9  # of a CPU: from here on that part is the limit


class Hits(msgspec.Struct, kw_only=True):
    """One kind in one round."""

    kind: str
    round: int
    per_s: float
    cpu_us: float  # of the gateway, an answer
    busy: float  # CPUs that the gateway used
    client_busy: float
    hit_share: float
    wrong: int


async def measure(kind: str, round_: int, seconds: float, staged: Stage) -> Hits:
    """A closed loop over prompts that are stored."""
    load = Load(staged.port, staged.headers, staged.check)
    pid = staged.subject.pid if staged.subject is not None else None
    prompts = repeated(KINDS[kind], PROMPTS)
    await load.closed(CONNECTIONS, prompts, min(1.0, seconds / 2))
    before, own = cpu_ns(pid) if pid else 0, time.process_time()
    tally = await load.closed(CONNECTIONS, prompts, seconds)
    after, own = cpu_ns(pid) if pid else 0, time.process_time() - own
    return Hits(
        kind=kind, round=round_, per_s=tally.done / tally.seconds,
        cpu_us=(after - before) / 1000 / max(1, tally.done),
        busy=(after - before) / 1e9 / tally.seconds, client_busy=own / tally.seconds,
        hit_share=tally.verdicts.get("hit", 0) / max(1, tally.done), wrong=len(tally.wrong),
    )  # fmt: skip


def limit(hits: Hits) -> str:
    """Which part had no CPU time left."""
    if hits.busy >= FULL:
        return "the gateway"
    return "the client" if hits.client_busy >= FULL else "the machine"

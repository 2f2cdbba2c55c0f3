"""Memory of each open stream and of each queued request, from the growth of the resident memory."""

from __future__ import annotations

import asyncio
import itertools
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import msgspec

from ops.bench.account import rss_mb
from ops.bench.client import Load
from ops.bench.stage import Stage
from ops.bench.vllm.real import counted
from ops.bench.wire import Spec
from ops.bench.workloads import unique

STREAM: Final = "stream"
QUEUED: Final = "queued"
QUEUE: Final = ("--max-inflight", "1")
"""Flags of the gateway with which all requests but one are queued."""
SLOW: Final = Spec(0, 64, 1_000_000, shared=True)  # a token a second: open for as long as the measurement takes
PATIENCE: Final = 60.0


class Memory(msgspec.Struct, kw_only=True):
    """One subject in one round."""

    subject: str
    what: str  # STREAM or QUEUED
    round: int
    count: int
    before_mb: float
    after_mb: float
    each_kb: float


async def _until(fact: Callable[[], bool], words: str) -> None:
    """Raises RuntimeError if it has not become true within PATIENCE."""
    until = time.monotonic() + PATIENCE
    while not await asyncio.to_thread(fact):
        if time.monotonic() > until:
            raise RuntimeError(f"not within {PATIENCE:g} s: {words}")
        await asyncio.sleep(0.1)


def queued(port: int) -> int:
    """Requests that the gateway has queued."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return int(counted(answer.read().decode(), "gateway_queue_waiting"))


async def measure(name: str, what: str, round_: int, count: int, staged: Stage) -> Memory:
    """Open `count` streams, or queue as many requests behind one stream; then the growth, divided by them.

    Raises RuntimeError if they are not all open or queued within PATIENCE.
    """
    assert staged.subject is not None
    load = Load(staged.port, staged.headers, staged.check)
    await load.closed(8, unique(replace(SLOW, itl_us=0)), 0.5)  # first uses: modules, buffers, connections
    shared = name != "gateway-private"
    specs = unique(replace(SLOW, shared=shared))
    before = rss_mb(staged.subject.pid)
    clients = []
    for spec in itertools.islice(specs, count + (what == QUEUED)):
        client = await load.open()
        client.send(spec, lambda _: None)
        clients.append(client)
    first = load.tally.ttft
    if what == STREAM:
        await _until(lambda: len(first) >= count, f"a first token of all {count} streams")
    else:
        await _until(lambda: queued(staged.port) >= count, f"{count} requests in the queue")
    after = rss_mb(staged.subject.pid)
    wrong = load.tally.wrong
    for client in clients:
        client.close()
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {count} were refused: {wrong[0]}")
    return Memory(
        subject=name, what=what, round=round_, count=count, before_mb=before, after_mb=after,
        each_kb=1000 * (after - before) / count,
    )  # fmt: skip

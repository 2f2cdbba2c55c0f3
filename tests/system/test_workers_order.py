"""Whose turn it is holds over workers, as real processes: a caller that reaches two of them has one share."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from tests.kit.client import Connection
from tests.kit.engine import Engine, Turn
from tests.kit.patience import patience
from tests.kit.running import until
from tests.system.test_workers import PATIENCE, Gateway, workers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
LIMIT = 4


def worker_of(connection: Connection, gateway: Gateway) -> int | None:
    """The place of the worker that accepted it; None: not yet."""
    ours = connection.writer.get_extra_info("sockname")[1]
    theirs = connection.writer.get_extra_info("peername")[1]
    ends = f":{theirs:04X}", f":{ours:04X}"
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = [row[9] for row in rows if row[1].endswith(ends[0]) and row[2].endswith(ends[1])]
    for place, pid in gateway.workers.items():
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if os.readlink(fd) in {f"socket:[{inode}]" for inode in inodes}:
                    return place
    return None


class Clients:
    """Connections to a gateway's workers, and requests on them."""

    def __init__(self, gateway: Gateway, stack: AsyncExitStack) -> None:
        self.gateway, self.stack = gateway, stack
        self.spare: dict[int, list[Connection]] = {0: [], 1: []}
        self.answers: list[asyncio.Task[object]] = []

    async def ask(self, place: int, caller: str, count: int) -> None:
        """So many requests of a caller to the worker at a place."""
        for n in range(count):
            while not self.spare[place]:
                connection = await Connection.open(self.gateway.url)
                self.stack.push_async_callback(connection.close)
                await until(lambda connection=connection: worker_of(connection, self.gateway) is not None)  # type: ignore[misc]
                at = worker_of(connection, self.gateway)
                assert at is not None
                self.spare[at].append(connection)
            connection = self.spare[place].pop()
            message = {"role": "user", "content": f"{caller} {n} at {place}"}
            body = json.dumps({"model": "m1", "messages": [message], "max_tokens": 100}).encode()
            await connection.request("POST", "/v1/chat/completions", body, [("x-forwarded-for", caller)])
            self.answers.append(asyncio.create_task(connection.read_head()))


async def test_a_light_caller_s_wait_is_bounded_by_its_turn_whichever_worker_it_reaches(tmp_path: Path) -> None:
    order: list[str] = []
    released = asyncio.Semaphore(0)

    async def one_by_one(turn: Turn) -> None:
        order.append(str(turn.json()["messages"][0]["content"]).split()[0])
        await released.acquire()
        await turn.answer("hello")

    heavy, light = "192.0.2.1", "192.0.2.2"
    # Connections wait for their first request here, on a busy machine for minutes.
    waits = ("--head-timeout", "600")
    flags = ("--max-inflight", str(LIMIT), "--trusted-proxies", "127.0.0.1", "--share", "off", *waits)
    async with (
        Engine(one_by_one) as engine,
        workers(2, tmp_path / "log", "--backend", engine.url, *flags) as gateway,
        AsyncExitStack() as stack,
        patience(PATIENCE),
    ):
        clients = Clients(gateway, stack)
        await clients.ask(0, heavy, 24)
        await clients.ask(1, heavy, 24)
        await clients.ask(1, light, 8)
        while await gateway.counter("queue_waiting") < 56 - LIMIT:  # noqa: ASYNC110 - a gauge sets no event
            await asyncio.sleep(0)
        while order.count(light) < 8:  # until then requests wait at both workers, and no place stays idle
            begun = len(order)
            released.release()
            await until(lambda begun=begun: len(order) > begun)  # type: ignore[misc]
            await gateway.counter("queue_waiting")  # asked of both workers: what was told before has arrived
        for _ in range(56):
            released.release()
        await asyncio.gather(*clients.answers)
    last = max(at for at, caller in enumerate(order) if caller == light)
    # Alone at the head of one queue it would end after 16: its 8 and as many of the other. The other began with
    # all places; places move when a request ends, and what is served elsewhere is told within 0.25 s.
    assert last < LIMIT + 16 + 8, order

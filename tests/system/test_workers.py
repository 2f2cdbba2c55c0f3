"""Several workers behind one address, as real processes: they count as one, share one limit, replace each other
without a lost request, and end together."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from proxy.config import Settings
from tests.kit.client import get
from tests.kit.engine import Engine, Turn
from tests.kit.patience import patience
from tests.kit.running import PATIENT, lines, pause, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
PATIENCE = 90.0
CHAT = {"model": "m1", "messages": [{"role": "user", "content": "hi"}]}


class Gateway:
    """A supervised gateway, its log and its processes."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process, self.log = process, log
        self.url = ""

    def events(self, msg: str) -> list[dict[str, object]]:
        return [line for line in lines(self.log) if line["msg"] == msg]

    @property
    def workers(self) -> dict[int, int]:
        """The latest process of each place."""
        return {int(str(line["worker"])): int(str(line["pid"])) for line in self.events("worker started")}

    async def until(self, msg: str, count: int) -> None:
        async with patience(PATIENCE):
            await until(lambda: len(self.events(msg)) >= count)

    async def ended(self) -> int:
        async with patience(PATIENCE):
            return await self.process.wait()

    async def counter(self, name: str) -> float:
        page = (await get(self.url, "/metrics")).body.decode()
        lines = (line for line in page.splitlines() if line.startswith(f"gateway_{name}"))
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    async def counts(self, name: str, count: float) -> None:
        """Waits until a counter has reached this, and no more. A worker that is slow is told of by its last
        figures."""
        async with patience(PATIENCE):
            while (counted := await self.counter(name)) < count:
                await pause()
        assert counted == count

    async def all_live(self) -> bool:
        """Whether all workers serve, each of which has its part of the queue, and share generations."""
        whole = await self.counter("queue_limit") == Settings().queue_limit
        return whole and await self.counter("fleet_live") == 1


@asynccontextmanager
async def workers(count: int, log: Path, *flags: str) -> AsyncIterator[Gateway]:
    with log.open("w") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "proxy", "--workers", str(count), "--port", "0", "--redis", "off", "--probe", "off", *flags),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=asyncio.subprocess.PIPE,
            env=PATIENT | os.environ,
        )
    running = Gateway(process, log)
    try:
        assert process.stderr is not None
        async with patience(PATIENCE):
            line = (await process.stderr.readline()).decode()
        found = re.fullmatch(r"gateway at (http://\S+)\n", line)
        assert found, line
        running.url = found[1]
        await running.until("engine up", count)
        yield running
    finally:
        if process.returncode is None:
            process.terminate()
            with suppress(TimeoutError):
                async with patience(PATIENCE):
                    await process.wait()
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def post(session: aiohttp.ClientSession, url: str, **fields: object) -> int:
    async with session.post(f"{url}/v1/chat/completions", json=CHAT | fields) as answer:
        await answer.read()
        return answer.status


async def test_they_count_as_one_and_no_death_takes_a_count_back(tmp_path: Path) -> None:
    async def at_once(turn: Turn) -> None:
        await turn.answer("hello")

    async with Engine(at_once) as engine, workers(3, tmp_path / "log", "--backend", engine.url) as gateway:
        assert len(gateway.workers) == 3
        for number in range(12):  # a connection each: the kernel spreads them over the workers
            async with aiohttp.ClientSession() as session:
                assert await post(session, gateway.url, user=f"u{number}") == 200
        await gateway.counts('requests_total{endpoint="chat"', 12)
        assert await gateway.counter("start_time_seconds") > 1e9
        state = (await get(gateway.url, "/-/state")).json()
        assert (state["total"]["answered"], state["queue_limit"]) == (12, 1024)
        assert [engine["max_inflight"] for engine in state["backends"]] == [256]
        await gateway.until("request", 13)  # a worker that is killed loses lines that it has not written yet
        for place in (0, 1, 2):
            os.kill(gateway.workers[place], signal.SIGKILL)
            await gateway.until("worker ended", place + 1)
        await gateway.until("engine up", 6)
        await gateway.counts('requests_total{endpoint="chat"', 12)
        assert [line["status"] for line in gateway.events("worker ended")] == [-9] * 3
        async with aiohttp.ClientSession() as session:
            assert await post(session, gateway.url) == 200
        await gateway.counts('requests_total{endpoint="chat"', 13)
        gateway.process.send_signal(signal.SIGTERM)
        assert await gateway.ended() == 0
    assert Counter(line["msg"] for line in lines(tmp_path / "log"))["request"] == 13 + 1, "the chats and the state"


async def test_an_engine_never_has_more_than_its_limit_and_no_request_waits_in_vain(tmp_path: Path) -> None:
    under_way = most = 0

    async def slow(turn: Turn) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            for _ in range(200):  # long enough that others come meanwhile
                await asyncio.sleep(0)
            await turn.answer("hello")
        finally:
            under_way -= 1

    flags = ("--max-inflight", "4")
    async with Engine(slow) as engine, workers(3, tmp_path / "log", "--backend", engine.url, *flags) as gateway:
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            requests = (post(session, gateway.url, user=f"u{number}") for number in range(60))
            assert Counter(await asyncio.gather(*requests)) == {200: 60}
        assert most <= 4
        page = (await get(gateway.url, "/metrics")).body.decode()
        assert re.search(r"^gateway_backend_max_inflight\{.*\} 4(?:\.0)?$", page, re.M)


async def test_workers_are_replaced_under_load_without_a_lost_request(tmp_path: Path) -> None:
    async def at_once(turn: Turn) -> None:
        await turn.answer("hello")

    async with Engine(at_once) as engine, workers(2, tmp_path / "log", "--backend", engine.url) as gateway:
        before = gateway.workers
        statuses: Counter[object] = Counter()
        going = True

        async def client(keeps: bool) -> None:
            connector = aiohttp.TCPConnector(limit=1, force_close=not keeps)
            async with aiohttp.ClientSession(connector=connector) as session:
                while going:
                    try:
                        statuses[await post(session, gateway.url, user=os.urandom(4).hex())] += 1
                    except aiohttp.ClientError as e:
                        statuses[type(e).__name__] += 1

        clients = [asyncio.create_task(client(keeps)) for keeps in (True, True, False)]
        gateway.process.send_signal(signal.SIGUSR2)
        await gateway.until("worker replaced", 2)
        await gateway.until("drained", 2)
        going = False
        await asyncio.gather(*clients)
        after = gateway.workers
        assert statuses.keys() == {200}
        assert not set(before.values()) & set(after.values())
        # Counts of workers that have left are kept.
        await gateway.counts('requests_total{endpoint="chat"', statuses[200])
        gateway.process.send_signal(signal.SIGTERM)
        assert await gateway.ended() == 0


async def test_without_their_supervisor_the_workers_end(tmp_path: Path) -> None:
    async def at_once(turn: Turn) -> None:
        await turn.answer("hello")

    async with Engine(at_once) as engine, workers(2, tmp_path / "log", "--backend", engine.url) as gateway:
        pids = list(gateway.workers.values())
        gateway.process.kill()
        await gateway.ended()
        async with patience(PATIENCE):
            await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


async def test_a_wrong_setting_is_said_once_and_nothing_runs(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "proxy", "--workers", "2", "--port", "0", "--redis", "off", "--backend", "http://127.0.0.1:9"),
        *("--tls-cert", str(tmp_path / "none.pem")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with patience(PATIENCE):
        _, error = await process.communicate()
    assert process.returncode == 2
    assert error.decode().count("proxy:") == 1

"""What several workers of one gateway do, with real processes: `python -m ops.drill.workers [PART...]`. The parts
are spread, replace, limits, killed, frozen and memory; all take a few minutes."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import aiohttp

from ops.drill.engine import Engine, Mood, engine
from ops.drill.process import Process, started
from ops.drill.stage import local_redis

LISTENS: Final = re.compile(r"gateway at http://(\S+)")
READY_SECONDS: Final = 60.0
BURST: Final = 200  # requests that the limits' parts allow
REPLACEMENTS: Final = 20
CLIENTS: Final = 8
SPREADS: Final = (4, 8, 16, 64, 256)  # connections
TRIALS: Final = 10
MORE_BYTES: Final = 4 << 20  # that a worker may ask for until it is out of memory
HUNGRY: Final = 200_000  # bytes of a prompt, twice


class Workers:
    """A gateway with workers, and what its log says of them."""

    def __init__(self, process: Process, log: Path) -> None:
        self.process, self.log = process, log

    @property
    def url(self) -> str:
        return f"http://{self.process.address}/v1/chat/completions"

    def events(self, msg: str) -> list[dict[str, object]]:
        lines = self.log.read_text().rpartition("\n")[0].splitlines()  # its writer may be within the last one
        return [line for line in map(json.loads, lines) if line["msg"] == msg]

    @property
    def pids(self) -> list[int]:
        """Of the latest process of each place."""
        return list(
            {str(line["worker"]): int(str(line["pid"])) for line in self.events("worker started")}.values()
        )

    async def until(self, msg: str, count: int) -> None:
        async with asyncio.timeout(READY_SECONDS):
            while len(self.events(msg)) < count:  # noqa: ASYNC110 - a fact of other processes
                await asyncio.sleep(0.05)


@asynccontextmanager
async def gateway(on: Engine, folder: Path, count: int, *flags: str) -> AsyncIterator[Workers]:
    """A gateway with so many workers, once all of them serve."""
    log = folder / f"log-{time.monotonic_ns()}"
    words = [sys.executable, "-m", "proxy", "--port", "0", "--probe", "off", "--backend", on.url]
    with log.open("w") as out:
        workers = ("--workers", str(count))
        async with started([*words, *workers, *flags], LISTENS, READY_SECONDS, stdout=out.fileno()) as process:
            running = Workers(process, log)
            await running.until("engine up", count)
            yield running


async def ask(session: aiohttp.ClientSession, url: str, said: Counter[str], size: int = 8) -> None:
    """One request that shares nothing; its status or the client's error is counted."""
    message = {"role": "user", "content": os.urandom(size).hex()}
    body = {"model": "m1", "stream": True, "messages": [message]}
    try:
        async with session.post(url, json=body) as response:
            await response.read()
            said[str(response.status)] += 1
    except (aiohttp.ClientError, TimeoutError) as e:
        said[type(e).__name__] += 1


@asynccontextmanager
async def load(url: str, said: Counter[str], count: int = CLIENTS, size: int = 8) -> AsyncIterator[None]:
    """Clients in a closed loop: half keep their connections, half make one for each request. `size`: bytes of each
    prompt, twice."""
    going = True

    async def client(keeps: bool) -> None:
        connector = aiohttp.TCPConnector(limit=1, force_close=not keeps)
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            while going:
                await ask(session, url, said, size)

    clients = [asyncio.create_task(client(bool(n % 2))) for n in range(count)]
    try:
        yield
    finally:
        going = False
        await asyncio.gather(*clients)


def connections(pids: list[int], port: int) -> list[int]:
    """Connections to a port by process."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {f"socket:[{row[9]}]" for row in rows if row[3] == "01" and row[1].endswith(f":{port:04X}")}
    counts = []
    for pid in pids:
        held = 0
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                held += os.readlink(fd) in ours
        counts.append(held)
    return counts


async def spread(on: Engine, folder: Path) -> None:
    """How the kernel spreads connections over four workers."""
    async with gateway(on, folder, 4, "--redis", "off") as workers:
        host, _, port = workers.process.address.rpartition(":")
        for count in SPREADS:
            most, idle = [], []
            for _ in range(TRIALS):
                socks = [socket.create_connection((host, int(port))) for _ in range(count)]
                async with asyncio.timeout(READY_SECONDS):
                    while sum(counts := connections(workers.pids, int(port))) < count:  # noqa: ASYNC110 - as above
                        await asyncio.sleep(0.01)
                most.append(max(counts) / (count / 4))
                idle.append(counts.count(0))
                for sock in socks:
                    sock.close()
                async with asyncio.timeout(READY_SECONDS):
                    while sum(connections(workers.pids, int(port))):  # noqa: ASYNC110 - as above
                        await asyncio.sleep(0.01)
            print(
                f"spread: {count} connections over 4 workers, {TRIALS} trials: the busiest has "
                f"{statistics.mean(most):.2f} times its part on average, {max(most):.2f} at most; "
                f"{statistics.mean(idle):.1f} workers have none"
            )


async def replace(on: Engine, folder: Path) -> None:
    """Replacements under load."""
    said: Counter[str] = Counter()
    async with gateway(on, folder, 2, "--redis", "off") as workers, load(workers.url, said):
        for n in range(1, REPLACEMENTS + 1):
            workers.process.send(signal.SIGUSR2)
            await workers.until("worker replaced", 2 * n)
            await workers.until("drained", 2 * n)
    print(f"replace: {REPLACEMENTS} times all of 2 workers under load, answers: {dict(said)}")


async def limits(on: Engine, folder: Path) -> None:
    """How many requests pass a limit of BURST."""
    rate = ("--rate-limit-rps", "0.0001", "--rate-limit-burst", str(BURST))

    async def passed(what: str, urls: list[str]) -> None:
        said: Counter[str] = Counter()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=32, force_close=True)) as session:
            await asyncio.gather(*(ask(session, urls[n % len(urls)], said) for n in range(6 * BURST)))
        print(f"limits: {what}: {said['200']} of {BURST} allowed requests, answers: {dict(said)}")

    async with local_redis(folder) as redis:
        shared = ("--redis", redis.url)
        async with gateway(on, folder, 4, *shared, *rate) as workers:
            await passed("4 workers, with Redis", [workers.url])
        async with gateway(on, folder, 4, "--redis", "off", *rate) as workers:
            await passed("4 workers, without Redis", [workers.url])
        for what in ("shared", "frozen"):
            flags = (*shared, *rate, "--redis-namespace", what)
            async with gateway(on, folder, 1, *flags) as one, gateway(on, folder, 1, *flags) as other:
                if what == "frozen":
                    redis.freeze()
                try:
                    await passed(f"2 gateways, Redis {what}", [one.url, other.url])
                finally:
                    redis.thaw()


async def killed(on: Engine, folder: Path) -> None:
    """A worker killed under load, as the out-of-memory killer does."""
    await _struck(on, folder, "killed", lambda pid: os.kill(pid, signal.SIGKILL), "worker ended")


async def frozen(on: Engine, folder: Path) -> None:
    """A worker stopped under load: it is killed after its silence."""
    await _struck(on, folder, "frozen", lambda pid: os.kill(pid, signal.SIGSTOP), "worker silent")


async def memory(on: Engine, folder: Path) -> None:
    """A worker that gets no more memory, by a cgroup: the kernel kills it."""
    group = Path(f"/sys/fs/cgroup/memory/gateway-drill-{os.getpid()}")  # cgroup v1
    most = group / "memory.limit_in_bytes"
    if not group.parent.is_dir():
        group = Path(f"/sys/fs/cgroup/gateway-drill-{os.getpid()}")
        most = group / "memory.max"
    try:
        group.mkdir()
    except OSError as e:
        print(f"memory: left out, no group may be made here ({e})")
        return
    try:
        try:
            # What it has is not counted, what it asks for from now on is.
            most.write_text(str(MORE_BYTES))
        except OSError as e:
            print(f"memory: left out, no memory controller may be written here ({e})")
            return
        strike = (group / "cgroup.procs").write_text
        await _struck(on, folder, "out of memory", lambda pid: strike(str(pid)), "worker ended", HUNGRY)
        counts = "memory.oom_control" if (group / "memory.oom_control").exists() else "memory.events"
        (kills,) = re.findall(r"^oom_kill (\d+)$", (group / counts).read_text(), re.M)
        print(f"memory: the kernel killed {kills} process for want of memory")
    finally:
        group.rmdir()


async def _struck(
    on: Engine, folder: Path, what: str, strike: Callable[[int], object], event: str, size: int = 8
) -> None:
    """`strike` is called with the process of one worker; `size`: bytes of each prompt, twice."""
    said: Counter[str] = Counter()
    async with gateway(on, folder, 4, "--redis", "off") as workers:
        on.mood = Mood(ttft=0.2)  # so that requests are in flight at each worker
        async with load(workers.url, said, 4 * CLIENTS, size):
            while sum(said.values()) < 8 * CLIENTS:  # noqa: ASYNC110 - a count of other tasks
                await asyncio.sleep(0.05)
            began = time.monotonic()
            strike(workers.pids[0])
            await workers.until(event, 1)
            noticed = time.monotonic() - began
            await workers.until("engine up", 5)
            again = time.monotonic() - began
        on.mood = Mood()
        after: Counter[str] = Counter()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=32, force_close=True)) as session:
            await asyncio.gather(*(ask(session, workers.url, after) for _ in range(200)))
    print(
        f"{what}: one of 4 workers under load, noticed after {noticed:.1f} s, four serve again after {again:.1f}"
        f" s; answers meanwhile: {dict(said)}, then: {dict(after)}"
    )


PARTS: Final[dict[str, Callable[[Engine, Path], Awaitable[None]]]] = {
    "spread": spread,
    "replace": replace,
    "limits": limits,
    "killed": killed,
    "frozen": frozen,
    "memory": memory,
}


async def measure(names: list[str]) -> None:
    """Run these parts, one after the other."""
    with tempfile.TemporaryDirectory(prefix="workers-") as folder:
        async with engine() as on:
            for name in names:
                await PARTS[name](on, Path(folder))
                print(f"{name}: load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.drill.workers", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; default: all")
    names = parser.parse_args().parts or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    asyncio.run(measure(names))


if __name__ == "__main__":
    main()

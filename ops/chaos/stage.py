"""The processes of a scenario (engines, Redis, gateway) and the record of what was done to each, and when. Every
process ends with the block, and with this program however it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ops.bench.subjects import free_port
from ops.chaos.engine import CONTROL
from ops.drill.process import Process, started
from proxy.embedded.redis import server_binary

LISTENS: Final = re.compile(r"gateway at http://(\S+)")
READY_SECONDS: Final = 20.0  # until a process listens, on a busy machine
REMOVED: Final = "removed"
"""The fault of an engine that is missing in the settings for a while: its current requests go on."""
CHECK_SECONDS: Final = 0.02  # seconds between two checks


def tied(*words: str) -> list[str]:
    """The command wrapped so that its process ends with this one, killed or not."""
    return [sys.executable, "-m", "proxy.embedded.launch", str(os.getpid()), *words]


@dataclass(slots=True)
class Fault:
    """A fault with its target and times (time.monotonic())."""

    target: str  # "engine 0", "redis", "gateway"
    kind: str
    start: float
    end: float | None = None  # None: not over yet

    def overlaps(self, start: float, end: float) -> bool:
        return self.start <= end and (self.end is None or self.end >= start)


class Child:
    """A process that can be killed and started again; `listens` says whether it serves."""

    def __init__(self, name: str, words: Sequence[str]) -> None:
        self.name = name
        self._words = words
        self._child: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        nowhere = asyncio.subprocess.DEVNULL
        self._child = await asyncio.create_subprocess_exec(
            *tied(*self._words), stdin=nowhere, stdout=nowhere, stderr=nowhere
        )
        async with asyncio.timeout(READY_SECONDS):
            while not await self.listens():  # noqa: ASYNC110 - a fact of another process
                await asyncio.sleep(CHECK_SECONDS)

    async def listens(self) -> bool:
        raise NotImplementedError

    def send(self, number: signal.Signals) -> None:
        if self._child is not None and self._child.returncode is None:
            self._child.send_signal(number)

    async def kill(self) -> None:
        if self._child is not None:
            self.send(signal.SIGKILL)
            await self._child.wait()


class EngineChild(Child):
    def __init__(self, number: int, port: int, log: Path, *flags: str) -> None:
        words = ["-m", "ops.chaos.engine", "--port", str(port), "--number", str(number), "--log", str(log), *flags]
        super().__init__(f"engine {number}", [sys.executable, *words])
        self.port = port

    async def listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def order(self, **order: object) -> bool:
        """Order a behaviour from now on. False if the engine does not listen."""
        body = json.dumps(order).encode()
        head = f"POST {CONTROL} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        writer = None
        try:
            async with asyncio.timeout(1.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(head.encode() + body)
                return bool(await reader.readline())
        except OSError:
            return False
        finally:
            if writer is not None:
                writer.transport.abort()


class RedisChild(Child):
    def __init__(self, folder: Path) -> None:
        self.path = folder / "redis"
        words = ["--port", "0", "--unixsocket", str(self.path), "--save", "", "--appendonly", "no"]
        super().__init__("redis", [str(server_binary()), *words, "--dir", str(folder)])

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    async def listens(self) -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(str(self.path))
        except OSError:
            return False
        writer.close()
        return True


class Stage:
    """The running processes, and the faults so far."""

    def __init__(self, engines: list[EngineChild], redis: RedisChild, gateway: Process, settings: Path) -> None:
        self.engines = engines
        self.redis = redis
        self.gateway = gateway
        self.settings = settings  # the gateway's settings file, which lists the engines
        self.faults: list[Fault] = []
        self.host, _, port = gateway.address.partition(":")
        self.port = int(port)

    @property
    def pid(self) -> int:
        return self.gateway.child.pid

    @property
    def alive(self) -> bool:
        return self.gateway.child.returncode is None

    def begun(self, target: str, kind: str) -> Fault:
        fault = Fault(target, kind, time.monotonic())
        self.faults.append(fault)
        return fault

    def disturbed(self) -> set[str]:
        """The targets of current faults."""
        return {fault.target for fault in self.faults if fault.end is None}

    async def restart(self, child: Child, kind: str, seconds: float) -> None:
        """Kill the process, and start it again after `seconds`."""
        fault = self.begun(child.name, kind)
        await child.kill()
        await asyncio.sleep(seconds)
        await child.start()
        fault.end = time.monotonic()

    async def pause(self, who: Child | Process, name: str, seconds: float) -> None:
        """SIGSTOP for `seconds`: nothing is closed and nothing answered."""
        fault = self.begun(name, "stopped")
        who.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            who.send(signal.SIGCONT)
            fault.end = time.monotonic()

    async def end_engine(self, engine: EngineChild, seconds: float) -> None:
        """Close the engine's listener and let its connections hang; kill and start it after `seconds`."""
        fault = self.begun(engine.name, "ended")
        await engine.order(end=True)
        await asyncio.sleep(seconds)
        await engine.kill()
        await engine.start()
        fault.end = time.monotonic()

    def settle(self, text: str) -> None:
        """Replace the settings file atomically, and send SIGHUP to the gateway."""
        fresh = self.settings.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.settings)
        self.gateway.send(signal.SIGHUP)

    async def get(self, path: str, seconds: float = 5.0) -> bytes:
        """The body of a GET from the gateway, on a new connection. Raises OSError if there is none in time."""
        writer = None
        try:
            async with asyncio.timeout(seconds):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                writer.write(
                    f"GET {path} HTTP/1.1\r\nhost: {self.gateway.address}\r\nconnection: close\r\n\r\n".encode()
                )
                answer = await reader.read()
        finally:
            if writer is not None:
                writer.transport.abort()
        return answer.partition(b"\r\n\r\n")[2]


@asynccontextmanager
async def stage(
    folder: Path, engines: int, flags: Sequence[str], log: Path, *, engine_flags: Sequence[str] = ()
) -> AsyncIterator[Stage]:
    """Start all processes. `folder` is empty and has a short path; `log` gets the gateway's stdout."""
    async with AsyncExitStack() as stack:
        redis = RedisChild(folder)
        stack.push_async_callback(redis.kill)
        await redis.start()
        children = [
            EngineChild(number, free_port(), folder / "generations", *engine_flags) for number in range(engines)
        ]
        for child in children:
            stack.push_async_callback(child.kill)
            await child.start()
        out = stack.enter_context(log.open("ab"))
        settings = folder / "gateway.toml"
        settings.write_text(named(children))
        named_by = ("--config", str(settings), "--redis", redis.url)
        words = tied(sys.executable, "-m", "proxy", "--port", "0", *named_by, *flags)
        gateway = await stack.enter_async_context(started(words, LISTENS, READY_SECONDS, stdout=out.fileno()))
        yield Stage(children, redis, gateway, settings)


def named(engines: Sequence[EngineChild]) -> str:
    """A settings file with these engines."""
    return f"backends = {json.dumps([f'http://127.0.0.1:{engine.port}' for engine in engines])}\n"


def generations(folder: Path) -> list[tuple[float, int, int, str]]:
    """The engines' logs of generations: time, engine, tag of the prompt, lie."""
    found = []
    with suppress(FileNotFoundError):
        whole = (folder / "generations").read_text().rpartition("\n")[0]  # an engine may be within the last line
        for line in whole.splitlines():
            at, number, tag, lie = line.split(" ", 3)
            found.append((float(at), int(number), int(tag, 16), lie))
    return found


async def known(option: str) -> bool:
    """Whether this gateway has the setting."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "--help"),
        stdout=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
    )
    said, _ = await child.communicate()
    return option.encode() in said

"""Two engines and the gateway as processes, under load: one is killed, stopped, slow, and comes back."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.kit.client import IncompleteBody, NoAnswer, get, streaming
from tests.kit.ports import free_port
from tests.kit.running import pause
from tests.system.test_process import Gateway, proxy

CHAT = "/v1/chat/completions"
READERS = 8
DONE = b"data: [DONE]\n\n"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]


class Process:
    """A fake engine as a process of its own, started again on the same port."""

    def __init__(self) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"  # nobody else gets it before it is started again
        self.process: asyncio.subprocess.Process

    async def start(self, *, ttft: float = 20.0, itl: float = 10.0) -> None:
        """Paces in milliseconds."""
        flags = ("--port", self.url.rpartition(":")[2], "--ttft-ms", f"{ttft}", "--itl-ms", f"{itl}")
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.kit.engine", *flags, "--tokens", "12", stdout=asyncio.subprocess.PIPE
        )
        assert self.process.stdout is not None
        said = (await self.process.stdout.readline()).decode()
        found = re.search(r"http://[\d.:]+", said)
        assert found is not None, said
        self.url = found[0]

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        await self.process.communicate()

    async def generations(self) -> int:
        return int((await get(self.url, "/count")).json()["generations"])


class Load:
    """Readers that ask, one stream after the other, and what became of each."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.outcomes: list[str] = []
        self._numbers = count()
        self._changed = asyncio.Event()
        self._stopping = False

    async def reader(self) -> None:
        while not self._stopping:
            self.outcomes.append(await self._one())
            self._changed.set()

    async def _one(self) -> str:
        prompt = [{"role": "user", "content": f"number {next(self._numbers)}"}]
        ask = {"model": "m1", "messages": prompt, "stream": True, "temperature": 1}
        try:
            async with streaming(self.url, CHAT, ask) as client:
                head = await client.read_head()
                answer = await client.read()
        except (NoAnswer, IncompleteBody) as e:
            return f"cut: {e!r}"
        if head.status != 200:
            return f"refused: {head.status} {answer.body[:200]!r}"
        last = answer.events()[-1]
        if last == DONE:
            return "whole"
        return "error" if b'"error"' in last and DONE not in answer.body else f"dishonest: {last!r}"

    async def more(self, outcomes: int) -> Counter[str]:
        """The next so many outcomes, counted."""
        start = len(self.outcomes)
        while len(self.outcomes) < start + outcomes:
            self._changed.clear()
            await self._changed.wait()
        return Counter(self.outcomes[start:])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(READERS):
                tasks.create_task(self.reader())
            try:
                yield self
            finally:
                self._stopping = True


async def number(gateway: Gateway, name: str, engine: Process) -> float:
    page = (await get(gateway.url, "/metrics")).body.decode()
    found = re.search(rf'^gateway_{name}{{backend="{re.escape(engine.url)}"}} (\S+)$', page, re.MULTILINE)
    return float(found[1]) if found else -1.0


async def until(gateway: Gateway, name: str, engine: Process, fact: Callable[[float], bool]) -> None:
    while not fact(await number(gateway, name, engine)):
        await pause()


async def serving(gateway: Gateway, engine: Process) -> None:
    """It is up, its breaker is closed, and it has answered something since."""
    await until(gateway, "backend_up", engine, lambda up: up == 1)
    await until(gateway, "backend_breaker", engine, lambda state: state == 0)
    before = await engine.generations()
    while await engine.generations() <= before:
        await pause()


def honest(outcomes: Counter[str]) -> None:
    """No request failed that had not begun; those that had ended in an error frame. At most all of one turn."""
    assert set(outcomes) <= {"whole", "error"}, outcomes
    assert outcomes["error"] <= READERS


async def test_an_engine_that_is_killed_or_stopped_fails_no_request_that_had_not_begun(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two = Process(), Process()
    await asyncio.gather(one.start(), two.start())
    told = []
    flags = (
        *("--backend", one.url, "--backend", two.url, "--redis", "off", "--refresh-seconds", "0.5"),
        *("--first-token-timeout", "5", "--token-timeout", "5"),  # on a busy machine the other one may pause
        *("--retry-on", "connect,reset,truncated,502,503,504,first-token"),
    )
    try:
        async with proxy(*flags) as gateway, Load(gateway.url).running() as load:
            honest(await load.more(READERS))
            await until(gateway, "backend_inflight", one, lambda inflight: inflight >= 2)

            one.process.kill()
            outcomes = await load.more(5 * READERS)
            honest(outcomes)
            await one.kill()
            await one.start()
            back = time.monotonic()
            await serving(gateway, one)
            told.append(f"killed: {dict(outcomes)}, serves {time.monotonic() - back:.2f} s after it is back")

            await until(gateway, "backend_inflight", one, lambda inflight: inflight >= 2)
            start = len(load.outcomes)
            one.process.send_signal(signal.SIGSTOP)
            await load.more(7 * READERS)
            await until(gateway, "backend_inflight", one, lambda inflight: inflight == 0)  # what it had timed out
            outcomes = Counter(load.outcomes[start:])
            honest(outcomes)
            one.process.send_signal(signal.SIGCONT)
            back = time.monotonic()
            await serving(gateway, one)
            told.append(f"stopped: {dict(outcomes)}, serves {time.monotonic() - back:.2f} s after it goes on")
    finally:
        await asyncio.gather(one.kill(), two.kill())
    with capsys.disabled():
        print("", *told, sep="\n")
    requests: list[dict[str, Any]] = [line for line in gateway.logged if line.get("endpoint") == "chat"]
    failed = [line for line in requests if "error" in line]
    assert len(requests) == len(load.outcomes)
    assert len(failed) == load.outcomes.count("error")
    assert {line["error"] for line in failed} <= {"upstream_truncated", "upstream_token_timeout"}
    assert any(line.get("attempts", 1) > 1 for line in requests)


async def test_an_engine_that_is_slow_gets_little_and_fails_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    slow, fast = Process(), Process()
    await asyncio.gather(slow.start(ttft=400.0, itl=20.0), fast.start())
    try:
        async with (
            proxy("--backend", slow.url, "--backend", fast.url, "--redis", "off") as gateway,
            Load(gateway.url).running() as load,
        ):
            outcomes = await load.more(8 * READERS)
            there, elsewhere = await slow.generations(), await fast.generations()
            while elsewhere <= 2 * there:  # on a busy machine they differ by less at first
                outcomes += await load.more(READERS)
                there, elsewhere = await slow.generations(), await fast.generations()
            assert set(outcomes) == {"whole"}
    finally:
        await asyncio.gather(slow.kill(), fast.kill())
    with capsys.disabled():
        print(f"\nslow: {there} there and {elsewhere} at the other")


async def test_the_settings_file_names_other_engines_while_it_runs(tmp_path: Path) -> None:
    one, two = Process(), Process()
    await asyncio.gather(one.start(), two.start())
    file = tmp_path / "gateway.toml"

    def write(text: str) -> None:
        new = tmp_path / "new.toml"
        new.write_text(text)
        new.replace(file)

    write(f'backends = ["{one.url}"]\n')
    try:
        async with proxy("--config", str(file), "--redis", "off") as gateway:
            assert await number(gateway, "backend_up", two) == -1.0
            write("backends = [")
            write(f'backends = ["{one.url}", "{two.url}"]\nqueue_limit = 9\n')
            await until(gateway, "backend_up", two, lambda up: up == 1)
            write("not = toml = at all\n")
            gateway.process.send_signal(signal.SIGHUP)
            write(f'backends = ["{two.url}"]\n')
            gateway.process.send_signal(signal.SIGHUP)
            await until(gateway, "backend_up", one, lambda up: up == -1.0)
    finally:
        await asyncio.gather(one.kill(), two.kill())
    told = [line for line in gateway.logged if line["msg"] in ("engines changed", "settings need a restart")]
    assert [line.get("added", line.get("removed", line.get("detail"))) for line in told] == [
        "queue_limit",
        two.url,
        one.url,
    ]


async def test_a_broken_settings_file_is_told_and_the_engines_stay(tmp_path: Path) -> None:
    one = Process()
    await one.start()
    file = tmp_path / "gateway.toml"
    file.write_text(f'backends = ["{one.url}"]\n')
    try:
        async with proxy("--config", str(file), "--redis", "off") as gateway:
            assert gateway.process.stdout is not None
            file.write_text("backends = [\n")
            gateway.process.send_signal(signal.SIGHUP)
            line = b""
            while b"settings refused" not in line:
                line = await gateway.process.stdout.readline()
            assert b"not a TOML file" in line
            assert (await get(gateway.url, "/ready")).status == 200
            assert await number(gateway, "backend_up", one) == 1.0
    finally:
        await one.kill()

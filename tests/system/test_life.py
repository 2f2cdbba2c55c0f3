"""The life of the process: SIGTERM under 200 streams, a second signal, SIGHUP, nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit.client import Connection, get, post_json, streaming
from tests.kit.engine import Engine, Turn
from tests.kit.running import HELLO_STREAM, PATIENT, lines, until
from tests.proxy.access.test_policy import bearer, entry

CHAT = "/v1/chat/completions"
DRAIN = 15.0  # seconds, in which the short streams end on a busy machine too

pytestmark = pytest.mark.e2e


class Process:
    """A running `python -m proxy` whose log goes to a file: no pipe of ours holds it up."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self._log = log

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def lines(self) -> list[dict[str, Any]]:
        return lines(self._log)

    async def logged(self, msg: str) -> None:
        await until(lambda: f'"msg":"{msg}"'.encode() in self._log.read_bytes())

    async def ended(self) -> str:
        """Its exit, which must be 0, and what it said on stderr."""
        _, err = await self.process.communicate()
        assert self.process.returncode == 0, err.decode()
        assert b"Traceback" not in err, err.decode()
        return err.decode()


@asynccontextmanager
async def started(log: Path, *flags: str, **env: str) -> AsyncIterator[Process]:
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "proxy", "--port", "0", *flags),
            stdout=out,
            stderr=asyncio.subprocess.PIPE,
            env={**PATIENT, **os.environ, **env},
        )
    assert process.stderr is not None
    try:
        found, said = None, ""
        while found is None:
            line = (await process.stderr.readline()).decode()
            said += line
            assert line, f"it ended: {said}"
            found = re.match(r"gateway at (\S+)", line)
        yield Process(process, found[1], log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_sigterm_under_200_streams_cuts_none_before_its_time_and_ends_each_of_the_rest_honestly(
    tmp_path: Path,
) -> None:
    go = asyncio.Event()

    async def script(turn: Turn) -> None:
        await turn.send("a")
        if turn.json()["messages"][0]["content"].startswith("short"):
            await go.wait()
            await turn.send(" b")
            await turn.finish()
        else:
            await turn.cancelled(60)

    async with (
        Engine(script) as engine,
        started(
            tmp_path / "log", "--backend", engine.url, "--redis", "off", "--drain-timeout", f"{DRAIN:g}"
        ) as gateway,
        AsyncExitStack() as stack,
    ):
        probe = await stack.enter_async_context(await Connection.open(gateway.url))
        await probe.request("GET", "/ready")
        assert (await probe.read()).status == 200
        clients: dict[str, list[Connection]] = {"short": [], "long": []}
        for number in range(200):
            kind = "short" if number % 2 else "long"
            body = HELLO_STREAM | {"messages": [{"role": "user", "content": f"{kind} {number}"}]}
            if number % 4 > 1:
                del body["temperature"]  # half of them are shared by nobody
            clients[kind].append(await stack.enter_async_context(streaming(gateway.url, CHAT, body)))
        for client in (*clients["short"], *clients["long"]):
            while (event := await client.event()) is not None and not event.text:
                pass
        loop = asyncio.get_running_loop()
        signalled = loop.time()
        gateway.signal(signal.SIGTERM)
        await gateway.logged("stopping")
        await probe.request("GET", "/ready")
        answer = await probe.read()
        assert (answer.status, answer.json()["error"]["code"]) == (503, "shutting_down")
        go.set()

        async def rest(client: Connection) -> tuple[float, list[bytes]]:
            events = [event.raw async for event in client.events()]
            return loop.time(), events

        short = await asyncio.gather(*map(rest, clients["short"]))
        assert [events[-1] for _, events in short] == [b"data: [DONE]\n\n"] * 100
        long = await asyncio.gather(*map(rest, clients["long"]))
        for at, events in long:
            assert at - signalled >= DRAIN
            error = json.loads(events[-1].removeprefix(b"data: "))["error"]
            assert (error["code"], error["type"]) == ("shutting_down", "overloaded_error")
            assert b"data: [DONE]\n\n" not in events
        await gateway.ended()
        records = [line for line in gateway.lines() if line.get("endpoint") == "chat"]
        assert len(records) == 200
        assert sum(line.get("error") == "shutting_down" for line in records) == 100
        assert gateway.lines()[-1]["msg"] == "drained"
        assert gateway.lines()[-1]["cut"] == 100


async def test_before_the_delay_is_over_all_but_ready_is_answered_and_a_second_signal_ends_it(
    engine: Engine, tmp_path: Path
) -> None:
    flags = ("--backend", engine.url, "--redis", "off", "--drain-delay", "3000", "--drain-timeout", "3000")
    async with (
        started(tmp_path / "log", *flags) as gateway,
        streaming(gateway.url, CHAT, HELLO_STREAM) as client,
    ):
        turn = await engine.next_request()
        await turn.send("a")
        gateway.signal(signal.SIGTERM)
        await gateway.logged("stopping")
        assert (await get(gateway.url, "/ready")).status == 503
        assert (await get(gateway.url, "/health")).status == 200
        other = asyncio.ensure_future(post_json(gateway.url, "/v1/completions", {"model": "m1", "prompt": "b"}))
        await (await engine.next_request()).answer("b")
        assert (await other).status == 200
        gateway.signal(signal.SIGTERM)
        answer = await client.read()
        assert b'"code":"shutting_down"' in answer.events()[-1]
        assert b"[DONE]" not in answer.body
        await turn.cancelled()
        await gateway.ended()
        assert [line["msg"] for line in gateway.lines()[-2:]] == ["drained", "stopped at once"]


@pytest.mark.parametrize("signals", [1, 2])
async def test_no_engine_and_no_redis_outlives_it(tmp_path: Path, signals: int) -> None:
    async with started(tmp_path / "log") as gateway:
        children = _children(gateway.process.pid)
        assert len(children) == 2
        handles = [os.pidfd_open(child) for child in children]
        for _ in range(signals):
            gateway.signal(signal.SIGTERM)
        await gateway.ended()
        loop = asyncio.get_running_loop()
        for handle in handles:
            gone = loop.create_future()
            loop.add_reader(handle, gone.set_result, None)
            await gone
            loop.remove_reader(handle)
            os.close(handle)


def _children(parent: int) -> list[int]:
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(pid)
        except (OSError, ValueError):
            pass
    return found


async def test_a_hang_up_reads_the_keys_again(engine: Engine, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(entry("old", "old"))
    flags = ("--backend", engine.url, "--redis", "off", "--api-keys-file", str(keys))
    async with started(tmp_path / "log", *flags) as gateway:
        assert (await get(gateway.url, "/v1/models", bearer("old"))).status == 200
        keys.write_text(entry("new", "new"))
        gateway.signal(signal.SIGHUP)
        await gateway.logged("reloaded")
        assert (await get(gateway.url, "/v1/models", bearer("old"))).status == 401
        assert (await get(gateway.url, "/v1/models", bearer("new"))).status == 200
        gateway.signal(signal.SIGTERM)
        await gateway.ended()

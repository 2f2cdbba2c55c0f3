"""The memory budget, judged by the resident memory of a process: uploads, answers and what clients do not take."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit.client import get, post_json
from tests.kit.running import HELLO, pause, until
from tests.system.test_life import CHAT, Process, started

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

MIB = 1024 * 1024
BUDGET = 64 * MIB
SLACK = 8 * MIB
"""What the process grows by on its first requests, whatever they hold: code, pools of the allocator."""
FLAGS = ("--redis", "off", "--memory-budget", str(BUDGET), "--client-stall-timeout", "2", "--body-timeout", "2")

HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
Attack = Callable[[Process], Awaitable[None]]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _answer(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    whole = {"id": "x", "object": "chat.completion", "model": "m1", "choices": [choice], "usage": usage}
    return json.dumps(whole).encode()


_DELTA = {"index": 0, "delta": {"content": "x" * 4000}, "finish_reason": None}
_FRAME = b"data: %b\n\n" % json.dumps({"id": "x", "choices": [_DELTA]}).encode()
_LAST = b"data: %b\n\n" % json.dumps({"id": "x", "choices": [_DELTA | {"finish_reason": "stop"}]}).encode()
STREAM = _chunk(_FRAME) * 2000 + _chunk(_LAST) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
WHOLE, SMALL = _answer("y" * 8 * MIB), _answer("hi")
MODELS = b'{"object":"list","data":[{"id":"m1"}]}'
JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An engine whose answers are as large as the prompt says."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"]
            body = await reader.readexactly(sum(lengths))
            if b"/v1/chat" not in head:
                answer = JSON % len(MODELS) + MODELS
            elif b"hello" in body:
                answer = JSON % len(SMALL) + SMALL
            elif b'"stream": true' in body or b'"stream":true' in body:
                answer = EVENTS + STREAM
            else:
                answer = JSON % len(WHOLE) + WHOLE
            writer.write(answer)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        writer.close()


@asynccontextmanager
async def attacked(tmp_path: Path, *flags: str) -> AsyncIterator[Process]:
    engine = await asyncio.start_server(_serve, "127.0.0.1", 0)
    port = engine.sockets[0].getsockname()[1]
    try:
        async with started(tmp_path / "log", "--backend", f"http://127.0.0.1:{port}", *FLAGS, *flags) as process:
            yield process
    finally:
        engine.close()


def resident(process: Process) -> int:
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


async def _unread(process: Process, request: dict[str, Any]) -> socket.socket:
    """A client that asks and never reads."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    host, _, port = process.url.removeprefix("http://").rpartition(":")
    await loop.sock_connect(sock, (host, int(port)))
    body = json.dumps({"model": "m1"} | request).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    await loop.sock_sendall(sock, head.encode() + body)
    return sock


def _non_readers(count: int = 40, **fields: Any) -> Attack:
    async def attack(process: Process) -> None:
        socks = []
        for number in range(count):
            text = "the same" if "temperature" in fields and not fields.get("stream") else f"number {number}"
            socks.append(await _unread(process, {"messages": [{"role": "user", "content": text}], **fields}))
        await _served(process)
        for sock in socks:
            sock.close()

    return attack


async def _uploads(process: Process) -> None:
    """25 bodies of 16 MB less the last byte."""
    size = 15_900_000
    head = HEAD % size
    host, _, port = process.url.removeprefix("http://").rpartition(":")

    async def upload() -> bytes:
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(head.encode() + b"x" * (size - 1))
            return await reader.read(12)
        except ConnectionError:
            return b"reset"
        finally:
            writer.close()

    asked = asyncio.gather(*(upload() for _ in range(25)))
    await _served(process)
    answers = set(await asked)
    assert b"HTTP/1.1 503" in answers
    assert answers <= {b"HTTP/1.1 503", b"HTTP/1.1 408", b"reset"}


async def _served(process: Process) -> None:
    """Somebody innocent, all the while."""
    for _ in range(20):
        assert (await get(process.url, "/health")).status == 200
        assert (await post_json(process.url, CHAT, HELLO)).status == 200


async def _held(process: Process) -> int:
    page = (await get(process.url, "/metrics")).body.decode()
    counts = [line for line in page.splitlines() if line.startswith("gateway_memory_held_bytes")]
    assert counts
    return sum(int(float(line.split()[-1])) for line in counts)


@pytest.mark.parametrize(
    "attack",
    [
        _uploads,
        _non_readers(),
        _non_readers(temperature=0),
        _non_readers(stream=True),
        _non_readers(stream=True, temperature=0),
    ],
    ids=["uploads", "bodies", "one body", "private streams", "shared streams"],
)
async def test_memory_stays_in_its_budget_and_the_innocent_are_served(attack: Attack, tmp_path: Path) -> None:
    async with attacked(tmp_path) as process:
        await _served(process)
        before, most = resident(process), 0
        under = asyncio.ensure_future(attack(process))
        while not under.done():
            most = max(most, resident(process) - before)
            await asyncio.wait([under], timeout=0.02)
        await under
        assert most <= BUDGET * 5 // 4 + SLACK
        while await _held(process):  # all of it is given back
            await pause()
        await until(lambda: resident(process) - before <= BUDGET * 5 // 4 + SLACK)
        await _served(process)


async def test_silent_connections_do_not_keep_health_from_being_asked(tmp_path: Path) -> None:
    async with attacked(tmp_path, "--max-connections", "32") as process:
        host, _, port = process.url.removeprefix("http://").rpartition(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(40)]
        await _served(process)
        for _, writer in silent:
            writer.close()

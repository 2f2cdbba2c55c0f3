"""The attacks of the pressure benchmark: what each sends, and the settings it needs of gateway and engine. Each is
bounded in count; its caller bounds its time."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from ops.chaos.wire import MODEL, Ask, dumps, post

CHAT: Final = "/v1/chat/completions"
EMBED: Final = "/v1/embeddings"
CLOSE: Final = "connection: close"
SMALL_BUFFER: Final = 4096


@dataclass
class Attackers:
    """The connections of the attackers, and the responses they received."""

    host: str
    port: int
    sockets: list[socket.socket] = field(default_factory=list)
    responses: Counter[str] = field(default_factory=Counter)  # by status

    async def connect(self, *, buffer: int = 0) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.sockets.append(sock)
        await asyncio.get_running_loop().sock_connect(sock, (self.host, self.port))
        return sock

    async def send(self, data: bytes, *, buffer: int = 0) -> socket.socket:
        """Send on a new connection. If the gateway closes it meanwhile, that counts as a response."""
        sock = await self.connect(buffer=buffer)
        try:
            await asyncio.get_running_loop().sock_sendall(sock, data)
        except OSError as e:
            self.responses[type(e).__name__] += 1
        return sock

    async def read(self, sock: socket.socket) -> None:
        """Read until the connection ends."""
        loop, first = asyncio.get_running_loop(), b""
        with suppress(OSError):
            while data := await loop.sock_recv(sock, 1 << 18):
                if not first:
                    first = data[:12]
                    self.responses[first[9:].decode("latin-1")] += 1
        if not first:
            self.responses["no answer"] += 1

    def ports(self) -> set[int]:
        return {sock.getsockname()[1] for sock in self.sockets}

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


async def _all(*tasks: Coroutine[Any, Any, None]) -> None:
    await asyncio.gather(*tasks)


async def many_texts(on: Attackers) -> None:
    """Requests with 2,048 distinct short texts each, waiting for an engine that does not answer in time."""

    async def one(number: int) -> None:
        body = dumps({"model": MODEL, "input": [f"t{number}.{at}" for at in range(2048)]})
        await on.read(await on.send(post(body, EMBED, CLOSE)))

    await _all(*[one(number) for number in range(MANY_TEXTS)])


async def one_text(on: Attackers) -> None:
    """One text 2,048 times at 4,096 dimensions; the clients do not read."""
    body = dumps({"model": MODEL, "input": ["the same"] * 2048})
    for _ in range(12):
        await on.send(post(body, EMBED, CLOSE), buffer=SMALL_BUFFER)
    await asyncio.sleep(25)


def unfinished(clients: int) -> Callable[[Attackers], Awaitable[None]]:
    """Bodies of 15.9 MB without the last byte."""

    async def attack(on: Attackers) -> None:
        body = b'{"messages":"' + b"x" * (15_900_000 - 13)

        async def one() -> None:
            sock = await on.send(post(body[:-1], CHAT, CLOSE, length=len(body)))
            await on.read(sock)

        with suppress(TimeoutError):
            async with asyncio.timeout(25):
                await _all(*[one() for _ in range(clients)])

    return attack


async def no_reader(on: Attackers) -> None:
    """Streams of 16 MB and bodies of 8 MB that are not read for longer than a client may stall."""
    for number in range(20):
        ask = Ask(number, sampled=True, stream=number % 2 == 0)
        await on.send(post(ask.body()), buffer=SMALL_BUFFER)
    await asyncio.sleep(15)


async def no_head(on: Attackers) -> None:
    """The maximum number of connections: silent, with half a request line, or with an unfinished head."""
    for number in range(CONNECTIONS):
        await on.send((b"", b"POST /v1/cha", b"POST / HTTP/1.1\r\nhost: x\r\nx-a: b\r\n")[number % 3])
    await asyncio.sleep(20)


async def floods(on: Attackers) -> None:
    """Sixty private streams of 4 MB in frames of 4 KiB, sent by the engine at once; the clients read."""

    async def one(number: int) -> None:
        await on.read(await on.send(post(Ask(number, sampled=True).body(), CHAT, CLOSE)))

    await _all(*[one(number) for number in range(60)])


async def readers(on: Attackers) -> None:
    """One request of 15 MB with fifty readers, as the page sends it."""
    request = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "x" * 15_000_000}]}
    body = json.dumps({"request": request, "delays_ms": [0] * 50}).encode()
    await on.read(await on.send(post(body, "/-/readers", CLOSE)))


async def doubled_member(on: Attackers) -> None:
    """480 KB with 40,000 members, the last one twice."""
    names = [f"k{at:06d}" for at in range(40_000)]
    members = ",".join(f'"{name}":0' for name in [*names, names[-1]])
    await on.read(await on.send(post(f'{{"messages":[],{members}}}'.encode(), CHAT, CLOSE)))


MANY_TEXTS: Final = 256
CONNECTIONS: Final = 200


@dataclass(frozen=True, slots=True)
class Attack:
    letter: str
    name: str
    run: Callable[[Attackers], Awaitable[None]]
    seconds: float  # after which it is stopped
    flags: tuple[str, ...] = ()  # of the gateway
    optional: tuple[tuple[str, str], ...] = ()  # of a gateway that has them
    engine: tuple[str, ...] = ()


ATTACKS: Final = (
    Attack("a", f"{MANY_TEXTS} × 2,048 short texts in the queue", many_texts, 60, engine=("--hold", "90")),
    Attack("b", "one text 2,048 times, 4,096 dimensions, 12 clients that do not read", one_text, 40,
           engine=("--dimensions", "4096")),
    Attack("c", "25 × 15.9 MB without the last byte", unfinished(25), 40),
    Attack("c", "100 × 15.9 MB without the last byte", unfinished(100), 60),
    Attack("d", "20 clients that do not read 16 MB streams and 8 MB bodies", no_reader, 40,
           flags=("--client-stall-timeout", "3"),
           engine=("--frames", "4000", "--frame-bytes", "4000", "--body-bytes", "8000000")),
    Attack("e", f"{CONNECTIONS} connections without a complete head", no_head, 40,
           flags=("--max-connections", str(CONNECTIONS)), optional=(("--head-timeout", "5"),)),
    Attack("f", "60 engine streams of 4 MB at once", floods, 60,
           engine=("--frames", "1000", "--frame-bytes", "4000", "--gather", "60")),
    Attack("g", "50 readers of one 15 MB request", readers, 45),
    Attack("h", "40,000 members, the last twice", doubled_member, 45),
)  # fmt: skip

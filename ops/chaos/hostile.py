"""The hostile clients: what each sends and how long it holds its connection. Each is bounded in time and in
count."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ops.chaos.acts import Chaos, Fault
from ops.chaos.client import Client
from ops.chaos.engine import FAIL, INFINITE
from ops.chaos.wire import MODEL, Ask, dumps, post

PATIENCE: Final = 4.0  # seconds that a hostile client waits for its answer
SILENT: Final = 300  # silent connections, opened at once
LARGE: Final = 12_000_000  # bytes of a body that is still accepted


async def _raw(chaos: Chaos, data: bytes, *, hold: float = 0.0, read: int = 1 << 16, buffer: int = 0) -> None:
    """Send bytes, read up to `read` bytes, hold the connection, reset it."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    try:
        with suppress(OSError):
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(sock, (chaos.stage.host, chaos.stage.port))
                await loop.sock_sendall(sock, data)
                if read:
                    await loop.sock_recv(sock, read)
        await asyncio.sleep(hold)
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        sock.close()


def _own(chaos: Chaos, *, sampled: bool = False, tokens: int = 100, gap: int = 10) -> Ask:
    return Ask(chaos.pick.getrandbits(64), tokens=tokens, gap_ms=gap, sampled=sampled)


async def leave(chaos: Chaos) -> str:
    """Ten clients with the same prompt disconnect during the answer, each at its own time, by close or reset."""
    ask = _own(chaos, sampled=chaos.pick.random() < 0.5)

    async def one() -> None:
        client = Client(chaos.stage.host, chaos.stage.port, bound=PATIENCE)
        await client.ask(ask, leave_after=chaos.pick.uniform(0.01, 0.9), reset=chaos.pick.random() < 0.5)

    await asyncio.gather(*[one() for _ in range(10)])
    return "ten clients"


async def stall(chaos: Chaos) -> str:
    """Five clients do not read a long answer."""
    ask = Ask(chaos.pick.getrandbits(64), tokens=20_000, gap_ms=0)
    await asyncio.gather(*[_raw(chaos, post(ask.body()), hold=PATIENCE, read=0, buffer=4096) for _ in range(5)])
    return "five clients"


async def half_head(chaos: Chaos) -> str:
    halves = (b"", b"P", b"POST /v1/chat/comp", b"POST / HTTP/1.1\r\nhost: x\r\nx-a: b")
    await asyncio.gather(*[_raw(chaos, half, hold=2.0, read=0) for half in halves * 3])
    return "twelve connections"


async def half_body(chaos: Chaos) -> str:
    body = _own(chaos).body()
    await asyncio.gather(*[_raw(chaos, post(body[:-1], length=len(body)), hold=2.0, read=0) for _ in range(5)])
    return "five connections"


async def pipelined(chaos: Chaos) -> str:
    """Requests in one packet, one of them with an Upgrade header."""
    first = _own(chaos, tokens=2, gap=0)
    offer = ("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__")
    data = post(first.body(), "/v1/chat/completions", *offer) + post(first.body()) + post(first.body())
    await _raw(chaos, data)
    return "three requests in one packet"


async def poison(chaos: Chaos) -> str:
    """A request that may raise, take long, or make every engine fail."""
    name = chaos.pick.choice(list(_POISON))
    await asyncio.gather(*[_raw(chaos, data) for data in _POISON[name](chaos)])
    return name


def _text(chaos: Chaos, word: bytes) -> list[bytes]:
    body = _own(chaos, tokens=2).body().replace(b"and some", word + b" and some")
    return [post(body.replace(b'"stream":true', b'"stream":false'))] * 5


def _session(chaos: Chaos) -> list[bytes]:
    """The same sampled prompt three times at once, with non-ASCII bytes in a header."""
    return [post(_own(chaos, sampled=True, tokens=3).body(), "/v1/chat/completions", "x-session-id: \xff")] * 3


def _rank(chaos: Chaos) -> list[bytes]:
    """A header that every engine rejects, on prompts that other clients send at this moment."""
    asks = chaos.pick.sample(list(chaos.tags), min(5, len(chaos.tags)))
    return [post(ask.body(), ask.path, "x-data-parallel-rank: 99") for ask in asks]


def _members(chaos: Chaos) -> list[bytes]:
    names = [f"k{at:06d}" for at in range(8_000)]
    members = ",".join(f'"{name}":0' for name in [*names, names[-1]])
    return [post(f'{{"model":"{MODEL}","messages":[],{members}}}'.encode())]


def _odd_bodies(chaos: Chaos) -> list[bytes]:
    good = _own(chaos, tokens=2, gap=0).body()
    deep = b"[" * 50_000 + b"]" * 50_000
    bodies = [
        b"\xef\xbb\xbf" + good,
        good.decode().encode("utf-16"),
        good.replace(b'"temperature":0', b'"temperature":NaN'),
        good.replace(b"some words", b"\\ud800"),
        good[:-1] + b',"x":' + deep + b"}",
        good.replace(b'"temperature":0', b'"n":1000000000'),
        good.replace(b'"temperature":0', b'"n":0'),
        good.replace(b'"max_tokens":2', b'"max_tokens":1e400'),
        json.dumps([1, 2, 3]).encode(),
        b"",
    ]
    return [post(body) for body in bodies]


def _odd_heads(chaos: Chaos) -> list[bytes]:
    body = _own(chaos, tokens=2, gap=0).body()
    return [
        post(body, "/v1/chat/completions#?x"),
        post(body, "//v1/chat/completions"),
        post(body, "/v1/chat/completions", "transfer-encoding: chunked"),
        post(body, "/v1/chat/completions", "x-gateway-share: perhaps", "x-request-id: " + "a" * 5000),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET / HTTP/9.9\r\n\r\n",
    ]


def _many_texts(chaos: Chaos) -> list[bytes]:
    texts = [f"{chaos.pick.getrandbits(40):x} {at}" for at in range(2048)]
    return [post(dumps({"model": MODEL, "input": texts}), "/v1/embeddings")]


_POISON: Final[dict[str, Callable[[Chaos], list[bytes]]]] = {
    "bytes in a header": _session,
    "every engine fails": lambda chaos: _text(chaos, FAIL),
    "every engine says infinity": lambda chaos: _text(chaos, INFINITE),
    "a rank that is none": _rank,
    "a member doubled": _members,
    "odd bodies": _odd_bodies,
    "odd heads": _odd_heads,
    "2,048 texts": _many_texts,
}


async def silent(chaos: Chaos) -> str:
    """A flood of silent connections."""
    await asyncio.gather(*[_raw(chaos, b"", hold=2.0, read=0) for _ in range(SILENT)])
    return f"{SILENT} connections"


async def cut_upload(chaos: Chaos) -> str:
    """Large uploads, reset at different places, one of them chunked."""
    body = b'{"messages":"' + b"x" * LARGE
    cuts = [chaos.pick.randrange(LARGE) for _ in range(4)]
    uploads = [post(body[:cut], length=len(body) + 2) for cut in cuts]
    chunked = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    uploads.append(chunked + b"transfer-encoding: chunked\r\n\r\nfffff\r\n" + body[:70_000])
    await asyncio.gather(*[_raw(chaos, upload, read=0) for upload in uploads])
    return f"{len(uploads)} uploads"


async def large(chaos: Chaos) -> str:
    """One body that is large, deep, wide, or too large."""
    name = chaos.pick.choice(list(_LARGE))
    await _raw(chaos, post(_LARGE[name]()))
    return name


def _chat(rest: str) -> bytes:
    said = [{"role": "user", "content": "some words"}]
    return json.dumps({"model": MODEL, "messages": said, "max_tokens": 2}).encode()[:-1] + rest.encode() + b"}"


_LARGE: Final[dict[str, Callable[[], bytes]]] = {
    "a long prompt": lambda: _chat("").replace(b"some words", b"some words " * (LARGE // 11)),
    "a prompt of escapes": lambda: _chat("").replace(b"some words", b"\\u00e9" * (LARGE // 6)),
    "deep": lambda: _chat(',"x":' + "[" * 2_000_000 + "]" * 2_000_000),
    "wide": lambda: _chat(',"x":[' + "0," * 3_000_000 + "0]"),
    "many members": lambda: _chat("".join(f',"k{at}":0' for at in range(400_000))),
    "more than is taken": lambda: _chat(',"x":"' + "y" * 17_000_000 + '"'),
}


HOSTILE: Final[dict[str, Fault]] = {
    "clients leave": leave,
    "clients stall": stall,
    "half heads": half_head,
    "half bodies": half_body,
    "pipelined": pipelined,
    "poison": poison,
    "silent connections": silent,
    "uploads cut": cut_upload,
    "large bodies": large,
}

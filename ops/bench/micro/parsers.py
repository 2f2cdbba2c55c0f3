"""CPU time to parse an engine's response and to write a request: our parser, httptools with a call per chunk,
aiohttp's parser, and hand-written code for whole chunks, on vLLM-like events of 230 bytes. Rounds are interleaved;
the table has the median, smallest and largest µs of CPU of one thread."""

from __future__ import annotations

import argparse
import asyncio
import functools
import platform
import re
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import httptools
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpResponseParser

from proxy.upstream.http.connection import Connection
from proxy.upstream.http.pool import Pool
from proxy.upstream.http.response import ResponseParser

HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 22:33:55 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
EVENT: Final = b"data: " + b"x" * 222 + b"\n\n"  # 230 bytes, as vLLM's content events are
CHUNK: Final = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
REQUEST: Final = (
    ("content-type", "application/json"),
    ("accept", "text/event-stream"),
    ("x-request-id", "0123456789abcdef0123456789abcdef"),
)
BODY: Final = b"x" * 900
SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")

Feed = Callable[[bytes], object]


class LastBytes:
    """A receiver that keeps the last bytes it was given."""

    data = b""

    def head(self, status: int, headers: list[tuple[str, str]], known: object = None) -> None:
        pass

    def body(self, data: bytes, wired: bytes = b"") -> None:
        self.data = data


class PerChunk:
    """httptools calling a Python method per chunk, each forwarded at once."""

    def __init__(self, to: LastBytes) -> None:
        self.to = to
        self.headers: list[tuple[str, str]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        pass

    def on_body(self, data: bytes) -> None:
        self.to.body(data)

    def on_message_complete(self) -> None:
        pass


def answer(to: LastBytes) -> Feed:
    ours = ResponseParser(to, bodiless=False)
    ours.feed(HEAD)
    return ours.feed


def one_answer() -> None:
    ours = ResponseParser(LastBytes(), bodiless=False)
    ours.feed(HEAD)
    ours.close(LastBytes())


def before(to: LastBytes) -> Feed:
    parser = httptools.HttpResponseParser(PerChunk(to))
    parser.feed_data(HEAD)
    feed: Feed = parser.feed_data
    return feed


def by_hand(to: LastBytes) -> Feed:
    """Handles reads that consist of whole chunks, which most do; anything else would go to the parser."""

    def feed(data: bytes) -> None:
        pieces, at, size = [], 0, len(data)
        while at < size:
            match = SIZE.match(data, at)
            if match is None:
                raise ValueError("not whole chunks")
            start = match.end()
            end = start + int(match[1], 16)
            if data[end : end + 2] != b"\r\n":
                raise ValueError("not whole chunks")
            pieces.append(data[start:end])
            at = end + 2
        to.body(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    return feed


def aiohttps(to: LastBytes) -> Feed:
    """Includes reading the bytes from its StreamReader, but not the wake-up of a task that its client adds."""
    parser, payload = _aiohttp_parser()

    def feed(data: bytes) -> None:
        parser.feed_data(data)
        to.body(payload.read_nowait())

    return feed


def _aiohttp_parser() -> tuple[Any, Any]:
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    parser = HttpResponseParser(protocol, loop, 2**16, read_until_eof=True, auto_decompress=False)
    messages, _, _ = parser.feed_data(HEAD)
    return parser, messages[0][1]


def events() -> dict[str, tuple[Callable[[], object], int]]:
    ways: dict[str, tuple[Callable[[], object], int]] = {}
    for per_read in (1, 40):
        data = CHUNK * per_read
        for name, make in (
            ("ResponseParser (httptools)", answer),
            ("httptools alone", before),
            ("hand-written", by_hand),
            ("aiohttp's HttpResponseParser", aiohttps),
        ):
            kept = LastBytes()
            feed = make(kept)
            feed(data)
            assert kept.data == (EVENT if make is before else EVENT * per_read), name
            ways[f"event, {per_read} per read: {name}"] = functools.partial(feed, data), per_read
    return ways


def exchanges(pool: Pool) -> dict[str, tuple[Callable[[], object], int]]:
    idle = Connection(pool)

    def reuse() -> None:
        pool.release(idle)
        pool.take()

    return {
        "exchange: new httptools parser": ((lambda: httptools.HttpResponseParser(PerChunk(LastBytes()))), 1),
        "exchange: httptools, headers decoded": ((lambda: before(LastBytes())), 1),
        "exchange: ResponseParser, head parsed": (one_answer, 1),
        "exchange: aiohttp's parser, head parsed": (_aiohttp_parser, 1),
        "exchange: request() of three headers, 900 B": (
            (lambda: pool.request("POST", "/v1/chat/completions", REQUEST, BODY)),
            1,
        ),
        "exchange: pool.give and take, without a socket": (reuse, 1),
    }


async def quiet(pool: Pool) -> dict[str, tuple[Callable[[], object], int]]:
    connection = await pool.connect()
    return {"exchange: check that an idle connection has no data": ((lambda: connection.fresh(-1.0)), 1)}


def once(work: Callable[[], object], number: int) -> float:
    began = time.thread_time_ns()
    for _ in range(number):
        work()
    return (time.thread_time_ns() - began) / number / 1000


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.micro.parsers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds: int = parser.parse_args().rounds
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    pool = Pool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", connect_timeout=5, loop=loop)
    ways = {**events(), **exchanges(pool), **await quiet(pool)}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (work, per) in ways.items():
            found[name].append(once(work, 40_000 // per) / per)
    pool.close()
    server.close()
    versions = f"httptools {httptools.__version__}, aiohttp {aiohttp.__version__}"
    print(f"Python {platform.python_version()}, {versions}; median of {rounds} (least to most), µs of CPU\n")
    print("| what | µs |\n|---|---|")
    for name, times in found.items():
        print(f"| {name} | {statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f}) |")


if __name__ == "__main__":
    asyncio.run(main())

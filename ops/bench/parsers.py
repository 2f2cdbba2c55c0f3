"""Measures what reading an engine's answer and writing a request cost: our Answer, httptools with a call a chunk,
aiohttp's exported parser, a hand-written reader of whole chunks; vLLM-like events of 230 bytes.
Must not be a test: a person runs it on a quiet machine, `python -m ops.bench.parsers [--rounds N]`.

Every way is checked to give the same bytes before it is measured. The rounds of all ways are interleaved; the
table has the median, least and most microseconds of CPU of one thread.
"""

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


class Kept:
    """What a reader of answers hands its bytes to; keeps the last."""

    data = b""
    joins = False

    def head(self, status: int, headers: list[tuple[str, str]]) -> None:
        pass

    def body(self, data: bytes) -> None:
        self.data = data


class Before:
    """httptools with a Python method for each chunk, each passed on at once."""

    def __init__(self, to: Kept) -> None:
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


def answer(to: Kept) -> Feed:
    ours = ResponseParser(to, bodiless=False)
    ours.feed(HEAD)
    return ours.feed


def one_answer() -> None:
    ours = ResponseParser(Kept(), bodiless=False)
    ours.feed(HEAD)
    ours.close()


def joined(to: Kept) -> Feed:
    to.joins = True
    return answer(to)


def before(to: Kept) -> Feed:
    parser = httptools.HttpResponseParser(Before(to))
    parser.feed_data(HEAD)
    feed: Feed = parser.feed_data
    return feed


def by_hand(to: Kept) -> Feed:
    """Reads that hold nothing but whole chunks, which is most; anything else would go to the parser."""

    def feed(data: bytes) -> None:
        pieces, at, size = [], 0, len(data)
        while at < size:
            match = SIZE.match(data, at)
            if match is None:
                raise ValueError("for the parser")
            start = match.end()
            end = start + int(match[1], 16)
            if data[end : end + 2] != b"\r\n":
                raise ValueError("for the parser")
            pieces.append(data[start:end])
            at = end + 2
        to.body(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    return feed


def aiohttps(to: Kept) -> Feed:
    """With taking the bytes out of its StreamReader; without the wake-up of a task that its client adds."""
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
            ("Answer (httptools), joined to one call a read", joined),
            ("Answer (httptools)", answer),
            ("httptools alone", before),
            ("hand-written", by_hand),
            ("aiohttp's HttpResponseParser", aiohttps),
        ):
            kept = Kept()
            feed = make(kept)
            feed(data)
            assert kept.data == (EVENT if make in (before, answer) else EVENT * per_read), name
            ways[f"event, {per_read} a read: {name}"] = functools.partial(feed, data), per_read
    return ways


def exchanges(pool: Pool) -> dict[str, tuple[Callable[[], object], int]]:
    idle = Connection(pool)

    def reuse() -> None:
        pool.give(idle)
        pool.take()

    return {
        "exchange: new httptools parser": ((lambda: httptools.HttpResponseParser(Before(Kept()))), 1),
        "exchange: httptools, headers decoded": ((lambda: before(Kept())), 1),
        "exchange: Answer, head read": (one_answer, 1),
        "exchange: aiohttp's parser, head read": (_aiohttp_parser, 1),
        "exchange: request() of three headers, 900 B": (
            (lambda: pool.request("POST", "/v1/chat/completions", REQUEST, BODY)),
            1,
        ),
        "exchange: pool.give and take, without a socket": (reuse, 1),
    }


async def quiet(pool: Pool) -> dict[str, tuple[Callable[[], object], int]]:
    connection = await pool.connect()
    return {"exchange: asking the kernel whether an idle connection is quiet": ((lambda: connection.quiet), 1)}


def once(work: Callable[[], object], number: int) -> float:
    began = time.thread_time_ns()
    for _ in range(number):
        work()
    return (time.thread_time_ns() - began) / number / 1000


async def main() -> None:
    parser = argparse.ArgumentParser(description="What reading an engine's answer costs.")
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

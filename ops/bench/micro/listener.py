"""What a small request costs from its bytes to its handler and back, by part: aiohttp's server, ours on it, its
parser, httptools. CPU time of one thread in µs, and calls of Python functions; no socket is involved."""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import platform
import pstats
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
import httptools
import uvloop
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from proxy.server.listener.listener import READ_BYTES, Listener
from proxy.server.listener.request import Request

BODY: Final = b"x" * 120
HEAD: Final = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
)
OTHER: Final = HEAD.replace(b"application", b"Application")  # in turns with the first, so that neither is repeated
ANSWER: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
REQUESTS: Final = 500  # of one round
TURNS: Final = 4  # of the event loop in which aiohttp's server answers a request

Work = Callable[[int], Awaitable[None]]


class Sink(asyncio.Transport):
    """A transport that counts answers."""

    answers = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.answers += 1

    def close(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Lines:
    """httptools with the facts of a head that the listener needs; aiohttp's checks of heads are not here."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._fields: list[tuple[str, str]] = []
        self.url = self.body = b""
        self.headers: CIMultiDictProxy[str] | None = None

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.decode("latin-1"), value.decode("utf-8", "surrogateescape")))

    def on_headers_complete(self) -> None:
        self.headers, self._fields = CIMultiDictProxy(CIMultiDict(self._fields)), []

    def on_body(self, data: bytes) -> None:
        self.body = data

    def read(self) -> None:
        self._parser.feed_data(HEAD)
        self._parser.feed_data(BODY)


async def answer(request: Request) -> bool:
    request.protocol.send(ANSWER)
    return True


async def respond(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=b"{}")


def served(connection: RequestHandler, *heads: bytes) -> Work:
    """A server's work for so many requests of one connection, with these heads in turn."""

    async def work(number: int) -> None:
        for n in range(number):
            connection.data_received(heads[n % len(heads)] + BODY)
            for _ in range(TURNS):
                await asyncio.sleep(0)

    return work


def repeated(once: Callable[[], object]) -> Work:
    async def work(number: int) -> None:
        for _ in range(number):
            once()

    return work


async def turns(number: int) -> None:
    for _ in range(number * TURNS):
        await asyncio.sleep(0)


def parts(
    loop: asyncio.AbstractEventLoop, aiohttps: RequestHandler, ours: RequestHandler, other: RequestHandler
) -> dict[str, tuple[Work, Work | None]]:
    """Each part's work, and the work of the harness in it."""
    protocol = BaseProtocol(loop)
    parser = HttpRequestParser(protocol, loop, READ_BYTES, auto_decompress=False)

    def parse() -> None:
        parser.feed_data(HEAD)
        parser.feed_data(BODY)

    def url() -> URL:
        return URL.build(path="/v1/chat/completions", query_string="", fragment="", encoded=True)

    return {
        "aiohttp's server, with a task and a response object": (served(aiohttps, HEAD), turns),
        "the listener, with another head each time": (served(other, HEAD, OTHER), turns),
        "of this: aiohttp's parser, head and body": (repeated(parse), None),
        "of that: a URL, which nothing reads": (repeated(url), None),
        "of that: a StreamReader for the body": (
            repeated(lambda: StreamReader(protocol, READ_BYTES, loop=loop)),
            None,
        ),
        "the listener, with a head that its client repeats": (served(ours, HEAD), turns),
        "httptools in place of the parser": (repeated(Lines().read), None),
    }


async def cpu_us(work: Work) -> float:
    began = time.thread_time_ns()
    await work(REQUESTS)
    return (time.thread_time_ns() - began) / REQUESTS / 1000


async def calls(work: Work) -> float:
    """Python calls for each request, without asyncio's and those of this module but a parser's callbacks."""
    profile = cProfile.Profile()
    profile.enable()
    await work(REQUESTS)
    profile.disable()
    found = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    count = 0.0
    for (file, _, name), (_, number, *_) in found:
        harness = file == "~" or "/asyncio/" in file or (file == __file__ and not name.startswith("on_"))
        count += 0 if harness else number
    return count / REQUESTS


async def measure(rounds: int) -> dict[str, tuple[list[float], float]]:
    """Of each part: µs in each round, and calls."""
    listeners = [Listener(answer, max_connections=10, max_header=8190) for _ in range(2)]
    servers = [web.Server(respond, access_log=None), *listeners]
    connections = [server() for server in servers]
    sinks = [Sink() for _ in servers]
    for connection, sink in zip(connections, sinks, strict=True):
        connection.connection_made(sink)
    ways = parts(asyncio.get_running_loop(), *connections)
    await asyncio.sleep(0)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (work, harness) in ways.items():
            times[name].append(await cpu_us(work) - (await cpu_us(harness) if harness is not None else 0.0))
    counts = {name: await calls(work) for name, (work, _) in ways.items()}
    assert [sink.answers for sink in sinks] == [REQUESTS * (rounds + 1)] * len(sinks)
    for connection, server in zip(connections, servers, strict=True):
        connection.connection_lost(None)
        await server.shutdown(0)
    return {name: (times[name], counts[name]) for name in ways}


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.micro.listener", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds: int = parser.parse_args().rounds
    versions = f"aiohttp {aiohttp.__version__}, httptools {httptools.__version__}"
    print(f"Python {platform.python_version()}, {versions}; median of {rounds} (least to most)\n")
    print("| a small request | µs | Python calls |\n|---|---|---|")
    for name, (times, count) in (await measure(rounds)).items():
        print(f"| {name} | {statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f}) | {count:.0f} |")


if __name__ == "__main__":
    uvloop.run(main())

"""The mock engine: vLLM's wire format at a known pace, at so little CPU that the engine is not what is measured.
It counts its requests; `GET /bench/counts` has the numbers, and how late its events were since the last look."""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import time
from typing import Final, cast

import httptools
import uvloop

from ops.bench.wire import MODEL, Spec, events, read_spec, whole

_SSE: Final = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 22:33:55 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_END: Final = b"0\r\n\r\n"


def _plain(status: str, body: bytes) -> bytes:
    return (
        b"HTTP/1.1 %b\r\ndate: Sun, 22 Nov 2026 22:33:55 GMT\r\nserver: uvicorn\r\n"
        b"content-length: %d\r\ncontent-type: application/json\r\n\r\n%b" % (status.encode(), len(body), body)
    )


_MODELS: Final = f'{{"object":"list","data":[{{"id":"{MODEL}","object":"model","owned_by":"vllm"}}]}}'.encode()


class Pacer:
    """Sends the events of all streams when they are due, with one heap and one timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._late = 0.0
        self._heap: list[tuple[float, int, Exchange]] = []
        self._ids = itertools.count()
        self._armed = False

    def add(self, exchange: Exchange, due: float) -> None:
        heapq.heappush(self._heap, (due, next(self._ids), exchange))
        if not self._armed:
            self._arm()

    def take_late(self) -> float:
        """Seconds by which the latest event since the last call was sent after it was due."""
        late, self._late = self._late, 0.0
        return late

    def _arm(self) -> None:
        self._armed = True
        self._loop.call_later(max(0.0, self._heap[0][0] - time.monotonic()), self._tick)

    def _tick(self) -> None:
        now = time.monotonic() + 0.0005  # uvloop's timers have a resolution of 1 ms
        heap = self._heap
        due = now
        while heap and heap[0][0] <= now:
            due, _, exchange = heapq.heappop(heap)
            if exchange.step():
                heapq.heappush(heap, (due + exchange.gap, next(self._ids), exchange))
        self._late = max(self._late, time.monotonic() - due)
        self._armed = False
        if heap:
            self._arm()


class Exchange:
    """One paced stream."""

    __slots__ = ("_at", "_chunks", "_done", "_transport", "gap")

    def __init__(self, connection: Connection, spec: Spec) -> None:
        self._transport = connection.transport
        self._done = connection.finished
        self._chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in events(spec)]
        self._at = 0
        self.gap = spec.itl_us / 1e6

    def step(self) -> bool:
        """Send the next event. The finish and the end go out with the last token, as in vLLM."""
        if self._transport.is_closing():
            return False
        chunks, at = self._chunks, self._at
        self._transport.write(chunks[at])
        self._at = at + 1
        left = len(chunks) - self._at
        if left > 2:
            return True
        for chunk in chunks[self._at :]:
            self._transport.write(chunk)
        self._transport.write(_END)
        self._done()
        return False


class Connection(asyncio.Protocol):
    """One client connection."""

    counts: dict[str, int]
    pacer: Pacer

    def __init__(self, counts: dict[str, int], pacer: Pacer) -> None:
        self.counts = counts
        self.pacer = pacer
        self.transport: asyncio.Transport
        self._new()

    def _new(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.counts["connections"] += 1

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        path, body = self._path, self._body
        self._path = self._body = b""
        if path.endswith(b"/chat/completions"):
            self._generate(body)
        elif path.endswith(b"/models"):
            self.transport.write(_plain("200 OK", _MODELS))
        elif path.endswith(b"/bench/counts"):
            counts = {**self.counts, "late_us": round(1e6 * self.pacer.take_late())}
            text = ",".join(f'"{name}":{count}' for name, count in counts.items())
            self.transport.write(_plain("200 OK", f"{{{text}}}".encode()))
        elif path.endswith((b"/health", b"/get_model_info", b"/server_info")):
            self.transport.write(_plain("200 OK", b"{}"))
        elif path.endswith(b"/render"):  # requested by vllm-router's cache-aware policy
            self.transport.write(_plain("200 OK", b'{"prompt":"","token_ids":[1,2,3]}'))
        else:
            self.transport.write(_plain("404 Not Found", b'{"error":{"message":"no such path","code":404}}'))

    def finished(self) -> None:
        """The exchange is complete."""

    def _generate(self, body: bytes) -> None:
        spec = read_spec(body)
        if spec is None:
            self.transport.write(_plain("400 Bad Request", b'{"error":{"message":"not a bench","code":400}}'))
            return
        self.counts["generations"] += 1
        if not spec.stream:
            self.transport.write(_plain("200 OK", whole(spec)))
            return
        self.transport.write(_SSE)
        if spec.itl_us:
            exchange = Exchange(self, spec)
            if exchange.step():
                self.pacer.add(exchange, time.monotonic() + exchange.gap)
            return
        for event in events(spec):
            self.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self.transport.write(_END)


async def serve(port: int) -> None:
    """Serve until the process is terminated."""
    loop = asyncio.get_running_loop()
    counts = {"generations": 0, "connections": 0}
    pacer = Pacer(loop)
    server = await loop.create_server(lambda: Connection(counts, pacer), "127.0.0.1", port, backlog=2048)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.engine", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()

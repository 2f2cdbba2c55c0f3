"""The reference server: it logs the kernel's receive time of each request and the send time of each token, so the
true TTFT is known. Its own process; it prints its port and ends when its stdin is closed."""

from __future__ import annotations

import argparse
import asyncio
import re
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final, cast

import msgspec

from loadgen.drive.capture.loop import new_loop
from loadgen.drive.capture.sockets import TimestampedSocket, TimestampKeepAlive

MODEL: Final = "known"
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-store\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_ID: Final = re.compile(rb"x-request-id: *(\S+)", re.IGNORECASE)
_FRONT: Final = f'"object":"chat.completion.chunk","created":1795386835,"model":"{MODEL}","choices":['
# The role comes with the first token, since tools differ in whether a role alone counts as a token.
_FIRST: Final = '{"index":0,"delta":{"role":"assistant","content":"token "},"logprobs":null,"finish_reason":null}]'
_NEXT: Final = '{"index":0,"delta":{"content":"token "},"logprobs":null,"finish_reason":null}]'
_FINISH: Final = '{"index":0,"delta":{},"logprobs":null,"finish_reason":"length","stop_reason":null}]'
_USAGE: Final = '],"usage":{"prompt_tokens":16,"total_tokens":%d,"completion_tokens":%d}'
_MODELS: Final = f'{{"object":"list","data":[{{"id":"{MODEL}","object":"model","root":"{MODEL}"}}]}}'.encode()


class Schedule(msgspec.Struct, frozen=True):
    """How every request is answered: milliseconds from the request to the first token, and between two tokens."""

    tokens: int = 1
    ttft_ms: float = 0.0
    itl_ms: float = 0.0


class Served(msgspec.Struct):
    """One request as the server saw it. Nanoseconds of CLOCK_REALTIME, the clock of kernel timestamps."""

    answer: str  # the `id` of its chunks
    request: str  # its x-request-id, or empty
    got_ns: int  # when the kernel received its last byte
    first_ns: int = 0  # when its first token was written to the socket
    last_ns: int = 0  # the same of its last token
    by_kernel: bool = True  # got_ns is the kernel's timestamp; False: the program's, some 50 µs later


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def frame(answer: str, choices: str) -> bytes:
    return chunk(f'data: {{"id":"{answer}",{_FRONT}{choices}}}\n\n'.encode())


def end(answer: str, tokens: int) -> bytes:
    """The frames after the last token."""
    usage = _USAGE % (16 + tokens, tokens)
    return frame(answer, _FINISH) + frame(answer, usage) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def whole(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Serving(asyncio.Protocol):
    """One connection, one request at a time."""

    transport: asyncio.Transport

    def __init__(self, own: TimestampedSocket, schedule: Schedule, log: list[Served]) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = own
        self._schedule = schedule
        self._log = log
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        now = time.time_ns()
        stamp = self._socket.rx_ns
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        size = int(length.group(1)) if length else 0
        if not found or len(body) < size:
            return
        self._buffer = body[size:]
        if not head.startswith(b"POST"):
            self.transport.write(whole(_MODELS))
            return
        name = _ID.search(head)
        self._served = Served(
            answer=f"chatcmpl-{len(self._log)}",
            request=name.group(1).decode("latin-1") if name else "",
            got_ns=stamp or now,
            by_kernel=stamp != 0,
        )
        self._log.append(self._served)
        self._left = self._schedule.tokens
        self._next = self._loop.time() + self._schedule.ttft_ms / 1e3
        if self._schedule.ttft_ms:
            self._timer = self._loop.call_at(self._next, self._send)
        else:
            self._send()

    def _send(self) -> None:
        """Send one token; its time is taken as late as possible."""
        served, first = self._served, not self._served.first_ns
        self._left -= 1
        data = HEAD + frame(served.answer, _FIRST) if first else frame(served.answer, _NEXT)
        if not self._left and not self._schedule.itl_ms:
            data += end(served.answer, self._schedule.tokens)
        served.last_ns = time.time_ns()
        if first:
            served.first_ns = served.last_ns
        self.transport.write(data)
        if self._left or self._schedule.itl_ms:
            self._next += self._schedule.itl_ms / 1e3
            self._timer = self._loop.call_at(self._next, self._send if self._left else self._end)

    def _end(self) -> None:
        """Written apart from the last token: otherwise the kernel gives both the same time."""
        self.transport.write(end(self._served.answer, self._schedule.tokens))


class Server:
    """Listens on a free loopback port until closed. Connections are accepted as timestamped sockets."""

    def __init__(self, schedule: Schedule) -> None:
        self.log: list[Served] = []
        self._schedule = schedule
        self._loop = asyncio.get_running_loop()
        self._keeper = TimestampKeepAlive()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self._opening: set[asyncio.Task[object]] = set()
        self._open: set[Serving] = set()
        self._loop.add_reader(self._listener, self._accept)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except BlockingIOError:
                return
            own = TimestampedSocket(fileno=raw.detach())
            own.setblocking(False)
            own.stamp()
            task = self._loop.create_task(self._loop.connect_accepted_socket(partial(self._serve, own), own))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _serve(self, own: TimestampedSocket) -> Serving:
        serving = Serving(own, self._schedule, self.log)
        self._open.add(serving)
        return serving

    def close(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._keeper.close()
        for serving in self._open:
            serving.transport.close()


async def serve(schedule: Schedule) -> list[Served]:
    """Serve until stdin is closed."""
    server = Server(schedule)
    print(server.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    server.close()
    return server.log


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.generators.server", description=__doc__)
    parser.add_argument("schedule", help="a Schedule as JSON")
    parser.add_argument("log", type=Path, help="file for the served requests, written at the end as JSON")
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        log = runner.run(serve(msgspec.json.decode(args.schedule, type=Schedule)))
    args.log.write_bytes(msgspec.json.encode(log))


if __name__ == "__main__":
    main()

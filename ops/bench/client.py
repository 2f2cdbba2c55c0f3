"""The benchmark's client: many connections at little cost, and every byte of every answer is checked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, cast

import httptools
import msgspec

from ops.bench.wire import Spec, expected

_CONTENT: Final = b'"content":"'
MAX_KEPT: Final = 2_000_000  # gaps recorded per part; later ones are dropped


@dataclass(slots=True)
class Tally:
    """The results of one measured part; times in seconds."""

    done: int = 0
    events: int = 0
    wrong: list[str] = field(default_factory=list)  # descriptions of wrong answers, at most 100
    ttft: list[float] = field(default_factory=list)  # request written to first byte of the first content event
    gaps: list[float] = field(default_factory=list)  # between two reads that brought body bytes
    verdicts: dict[str, int] = field(default_factory=dict)  # by x-gateway-cache
    seconds: float = 0.0


class Client(asyncio.Protocol):
    """One connection, used for one exchange after the other."""

    def __init__(self, host: str, headers: Mapping[str, str], tally: Tally, check: Callable[[bytes, bytes], bool]):
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._front = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n{lines}".encode()
        self._tally = tally
        self._check = check
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._spec: Spec | None = None
        self._done: Callable[[Client], None] | None = None
        self._pieces: list[bytes] = []
        self._sent = self._last = 0.0
        self._first = False
        self._keep = True
        self._verdict = ""

    def send(self, spec: Spec, done: Callable[[Client], None]) -> None:
        """Send a request; `done` is called when the answer is complete, right or wrong."""
        self._spec, self._done = spec, done
        self._pieces = []
        self._first = True
        self._last = 0.0
        self._verdict = ""
        body = spec.body()
        self._sent = time.perf_counter()
        self._transport.write(
            b"%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (self._front, len(body), body)
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._spec is not None:
            self._finish(f"connection lost during the answer ({exc})")

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._first and _CONTENT in data and (data.count(_CONTENT) > 1 or _CONTENT + b'"' not in data):
            self._first = False
            self._tally.ttft.append(now - self._sent)
        elif self._last and len(self._tally.gaps) < MAX_KEPT:
            self._tally.gaps.append(now - self._last)
        self._last = now
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as e:
            self._transport.abort()
            self._finish(f"not HTTP: {e}")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-gateway-cache":
            self._verdict = value.decode("ascii")

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self._keep = self._parser.should_keep_alive()
        self._parser = httptools.HttpResponseParser(self)
        spec = self._spec
        if spec is None:
            return
        body = b"".join(self._pieces)
        if status != 200:
            self._finish(f"status {status}: {body[:200]!r}")
        elif not self._check(body, expected(spec)):
            self._finish(f"wrong bytes for {spec}: {len(body)} of {len(expected(spec))}: {body[-200:]!r}")
        else:
            self._finish("")

    def _finish(self, wrong: str) -> None:
        spec, done = self._spec, self._done
        self._spec = self._done = None
        if wrong:
            if len(self._tally.wrong) < 100:
                self._tally.wrong.append(wrong)
        elif spec is not None:
            self._tally.done += 1
            self._tally.events += spec.events if spec.stream else 1
            if self._verdict:
                self._tally.verdicts[self._verdict] = self._tally.verdicts.get(self._verdict, 0) + 1
        if done is not None:
            done(self)

    @property
    def usable(self) -> bool:
        return self._keep and not self._transport.is_closing()

    def close(self) -> None:
        self._spec = None
        self._transport.abort()


def same_bytes(got: bytes, wanted: bytes) -> bool:
    return got == wanted


class _Chunk(msgspec.Struct):
    class Choice(msgspec.Struct):
        class Delta(msgspec.Struct):
            content: str | None = None

        delta: Delta | None = None
        message: Delta | None = None

    choices: list[Choice] = []


def same_text(got: bytes, wanted: bytes) -> bool:
    """For a peer that re-serialises JSON: the text is equal, and a stream ends with [DONE]."""
    return _text(got) == _text(wanted) and (b"[DONE]" in got) == (b"[DONE]" in wanted)


def _text(body: bytes) -> str:
    frames = [line[5:] for line in body.split(b"\n") if line.startswith(b"data:")] or [body]
    found = []
    for frame in frames:
        if frame.strip() != b"[DONE]":
            for choice in msgspec.json.decode(frame, type=_Chunk).choices:
                part = choice.delta or choice.message
                found.append((part.content or "") if part else "")
    return "".join(found)


class Load:
    """Drives connections to one address. `headers` are added to every request."""

    def __init__(
        self,
        port: int,
        headers: Mapping[str, str],
        check: Callable[[bytes, bytes], bool] = same_bytes,
    ) -> None:
        self._port = port
        self._headers = headers
        self._check = check
        self.tally = Tally()

    async def open(self) -> Client:
        loop = asyncio.get_running_loop()
        host = f"127.0.0.1:{self._port}"
        async with asyncio.timeout(10):
            _, client = await loop.create_connection(
                lambda: Client(host, self._headers, self.tally, self._check), "127.0.0.1", self._port
            )
        return client

    async def closed(self, connections: int, specs: Iterator[Spec], seconds: float, *, ramp: float = 0.0) -> Tally:
        """Closed loop: each connection sends its next request after each answer. Waits for the last answers.

        `ramp`: seconds over which the first requests are spread.
        """
        loop = asyncio.get_running_loop()
        self.tally = Tally()
        clients = [await self.open() for _ in range(connections)]
        until = time.perf_counter() + seconds
        over: asyncio.Future[None] = loop.create_future()
        running = connections

        def again(client: Client) -> None:
            nonlocal running
            if time.perf_counter() < until and client.usable:
                client.send(next(specs), again)
                return
            running -= 1
            if not running and not over.done():
                over.set_result(None)

        began = time.perf_counter()
        for number, client in enumerate(clients):
            if ramp and (pause := began + ramp * number / connections - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            client.send(next(specs), again)
        try:
            async with asyncio.timeout(seconds + 60):
                await over
        except TimeoutError:
            self.tally.wrong.append(f"{running} answers did not end")
        self.tally.seconds = time.perf_counter() - began
        for client in clients:
            client.close()
        return self.tally

    async def waves(self, connections: int, specs: Iterator[Spec], seconds: float) -> Tally:
        """All connections send the same request at once; when all are answered, the next one."""
        loop = asyncio.get_running_loop()
        self.tally = Tally()
        clients = [await self.open() for _ in range(connections)]
        began = time.perf_counter()
        while time.perf_counter() < began + seconds:
            spec = next(specs)
            over: asyncio.Future[None] = loop.create_future()
            running = connections

            def ended(_: Client, over: asyncio.Future[None] = over) -> None:
                nonlocal running
                running -= 1
                if not running and not over.done():
                    over.set_result(None)

            for client in clients:
                client.send(spec, ended)
            try:
                async with asyncio.timeout(60):
                    await over
            except TimeoutError:
                self.tally.wrong.append(f"{running} answers did not end")
                break
        self.tally.seconds = time.perf_counter() - began
        for client in clients:
            client.close()
        return self.tally

    async def opened(self, rate: float, specs: Iterator[Spec], seconds: float, *, in_turn: bool = False) -> Tally:
        """Open loop: `rate` requests per second, regardless of the answers; the connection that became idle last
        is used next or, `in_turn`, the one that is idle for longest."""
        self.tally = Tally()
        free: list[Client] = [await self.open() for _ in range(16)]
        everyone = list(free)
        running = 0
        idle = asyncio.Event()
        began = time.perf_counter()
        for at in range(int(rate * seconds)):
            pause = began + at / rate - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            if not free:
                client = await self.open()
                everyone.append(client)
            else:
                client = free.pop(0 if in_turn else -1)
            running += 1
            idle.clear()

            def ended(client: Client) -> None:
                nonlocal running
                running -= 1
                if not running:
                    idle.set()
                if client.usable:
                    free.append(client)

            client.send(next(specs), ended)
        try:
            async with asyncio.timeout(30):
                await idle.wait()
        except TimeoutError:
            self.tally.wrong.append(f"{running} answers did not end")
        self.tally.seconds = time.perf_counter() - began
        for client in everyone:
            client.close()
        return self.tally

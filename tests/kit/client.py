"""Owns a raw HTTP/1.1 client for tests: exact bytes out, exact framing in, truncation told from an end.
Must not know the proxy: it is the independent peer that the gateway's bytes are judged by.
Called by tests; `post_json` and `streaming` for the usual, `Connection` for what no client should send."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tests.kit.patience import patience

PATIENCE = 30.0  # seconds without a byte after which a test fails with a reason
Headers = Iterable[tuple[str, str]]

_arrivals = count()  # one order for all events of all connections


class NoAnswer(Exception):
    """The connection ended before a whole head had come."""


class IncompleteBody(Exception):
    """The connection ended before the body did. `received` is what had come of it, unframed."""

    def __init__(self, received: bytes) -> None:
        super().__init__(f"the body was cut after {len(received)} bytes: ...{received[-80:]!r}")
        self.received = received


@dataclass(frozen=True)
class Head:
    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]  # as sent, in order

    def get(self, name: str, default: str | None = None) -> str | None:
        """The one value of this header; a header sent twice is an error of the test's subject."""
        values = self._values.get(name.lower(), ())
        assert len(values) < 2, f"{name} was sent {len(values)} times"
        return values[0] if values else default

    @cached_property
    def _values(self) -> dict[str, list[str]]:
        values: dict[str, list[str]] = {}
        for key, value in self.headers:
            values.setdefault(key.lower(), []).append(value)
        return values

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(f"{name} is not among {[key for key, _ in self.headers]}")
        return value

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None


@dataclass(frozen=True)
class Answer:
    """A complete answer: the head, the body, its HTTP chunks (or one piece), and its exact wire bytes."""

    head: Head
    body: bytes
    chunks: tuple[bytes, ...]
    raw: bytes

    @property
    def status(self) -> int:
        return self.head.status

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[bytes]:
        return split_events(self.body)[0]


@dataclass(frozen=True)
class Event:
    """One SSE frame with its terminator, and its place in the order of arrival over all connections."""

    raw: bytes
    order: int

    @cached_property
    def data(self) -> bytes:
        lines = [line for line in re.split(rb"\r\n|\r|\n", self.raw) if line.startswith(b"data:")]
        return b"\n".join(line[5:].removeprefix(b" ") for line in lines)

    @property
    def is_done(self) -> bool:
        return self.data == b"[DONE]"

    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def text(self) -> str:
        """The content of this chunk's choices, chat or completions; empty where there is none."""
        if self.is_done:
            return ""
        choices = self.json().get("choices", ())
        return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)


def split_events(data: bytes) -> tuple[list[bytes], bytes]:
    """Whole frames with their terminators, and the rest. Naive on purpose: an oracle, not a codec."""
    *frames, rest = re.split(rb"(?<=\n\n)|(?<=\r\n\r\n)", data)
    return frames, rest


class Connection:
    """One TCP connection to the server. Use as an async context manager."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.head: Head | None = None  # the latest
        self.raw = bytearray()  # the latest body's exact bytes so far, framing included
        self._in_body = False
        self._left = 0  # of a content-length
        self._rest = b""  # of a frame

    @classmethod
    async def open(cls, url: str) -> Connection:
        parts = urlsplit(url)
        async with patience(PATIENCE):
            return cls(*await asyncio.open_connection(parts.hostname, parts.port, limit=2**26))

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # Out

    async def send(self, data: bytes, *, step: int | None = None) -> None:
        """Exact bytes; with `step`, in writes of so many, the loop turning in between."""
        for at in range(0, len(data), step or len(data) or 1):
            self.writer.write(data[at : at + (step or len(data))])
            await self.writer.drain()
            if step:
                await asyncio.sleep(0)

    async def request(self, method: str, path: str, body: bytes = b"", headers: Headers = ()) -> None:
        await self.send(request_bytes(method, path, body, headers))

    def half_close(self) -> None:
        """No more bytes from us (FIN), while we still read."""
        self.writer.write_eof()

    async def abort(self) -> None:
        """Leave as a crashed client does: RST, at once."""
        sock = self.writer.get_extra_info("socket")
        if sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        await self.close()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass

    # In

    async def read_head(self) -> Head:
        """The next final head; interim 1xx answers are passed over."""
        while True:
            try:
                async with patience(PATIENCE):
                    data = await self.reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise NoAnswer(f"no answer: {error!r}") from error
            first, *lines = data[:-4].decode("latin-1").split("\r\n")
            version, status, reason = (*first.split(" ", 2), "")[:3]
            assert version in ("HTTP/1.1", "HTTP/1.0"), first
            fields = [line.partition(":") for line in lines]
            self.head = Head(int(status), reason, tuple((name, value.strip()) for name, _, value in fields))
            if self.head.status >= 200:
                self.raw.clear()
                self._in_body, self._rest = True, b""
                self._left = int(self.head.get("content-length", "0") or 0)
                return self.head

    async def chunk(self) -> bytes | None:
        """The next HTTP chunk, or whatever came where the body is not chunked; None at its end."""
        if not self._in_body:
            await self.read_head()
        data = await self._next(self.head) if self.head and self.head.status not in (204, 304) else b""
        self._in_body = bool(data)
        return data or None

    async def _next(self, head: Head) -> bytes:
        if (head.get("transfer-encoding") or "").lower() == "chunked":
            assert "content-length" not in head, "both Content-Length and Transfer-Encoding"
            if size := int((await self._line()).split(b";")[0], 16):
                data = await self._exactly(size + 2)
                assert data.endswith(b"\r\n"), f"a chunk of another size than said: {data[-20:]!r}"
                return data[:-2]
            while await self._line() != b"\r\n":
                pass
            return b""
        if "content-length" not in head:
            return await self._some(2**16, until_close=True)
        data = await self._some(self._left) if self._left else b""
        self._left -= len(data)
        return data

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, or what is left of it, as it comes."""
        while (data := await self.chunk()) is not None:
            yield data

    async def read(self) -> Answer:
        """The whole answer (or what is left of it), or IncompleteBody."""
        head = self.head if self._in_body and self.head else await self.read_head()
        received: list[bytes] = []
        try:
            while (data := await self.chunk()) is not None:
                received.append(data)
        except IncompleteBody as error:
            raise IncompleteBody(b"".join(received) + error.received) from error.__cause__
        return Answer(head, b"".join(received), tuple(received), bytes(self.raw))

    async def event(self) -> Event | None:
        """The next SSE frame; None at the end. A body that ends inside a frame is IncompleteBody too."""
        while not (found := split_events(self._rest))[0]:
            chunk = await self.chunk()
            if chunk is None:
                if self._rest:
                    raise IncompleteBody(self._rest)
                return None
            self._rest += chunk
        frame = found[0][0]
        self._rest = self._rest[len(frame) :]
        return Event(frame, next(_arrivals))

    async def events(self) -> AsyncIterator[Event]:
        """SSE frames as they arrive."""
        while (event := await self.event()) is not None:
            yield event

    async def at_eof(self) -> bool:
        """True once the server has closed; an AssertionError if it says something instead."""
        try:
            async with patience(PATIENCE):
                data = await self.reader.read(1000)
        except ConnectionError:
            return True
        assert not data, f"bytes instead of a close: {data!r}"
        return True

    async def _line(self) -> bytes:
        try:
            async with patience(PATIENCE):
                data = await self.reader.readuntil(b"\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise IncompleteBody(b"") from error
        self.raw += data
        return data

    async def _exactly(self, size: int) -> bytes:
        try:
            async with patience(PATIENCE):
                data = await self.reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise IncompleteBody(error.partial) from error
        except ConnectionError as error:
            raise IncompleteBody(b"") from error
        self.raw += data
        return data

    async def _some(self, size: int, *, until_close: bool = False) -> bytes:
        try:
            async with patience(PATIENCE):
                data = await self.reader.read(size)
        except ConnectionError as error:
            raise IncompleteBody(b"") from error
        if not data and not until_close:
            raise IncompleteBody(b"")
        self.raw += data
        return data


def request_bytes(method: str, path: str, body: bytes = b"", headers: Headers = ()) -> bytes:
    """A plain request: Host and, with a body, Content-Length and JSON, unless the headers say otherwise."""
    given = {name.lower() for name, _ in headers}
    own = [("Host", "localhost")]
    if body or method == "POST":
        own += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    if "transfer-encoding" in given:
        given.add("content-length")
    lines = [f"{name}: {value}" for name, value in (*(o for o in own if o[0].lower() not in given), *headers)]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body


async def call(url: str, method: str, path: str, body: bytes = b"", headers: Headers = ()) -> Answer:
    """One request on a connection of its own, and its whole answer."""
    async with await Connection.open(url) as connection:
        await connection.request(method, path, body, headers)
        return await connection.read()


async def get(url: str, path: str, headers: Headers = ()) -> Answer:
    return await call(url, "GET", path, headers=headers)


async def post_json(url: str, path: str, obj: object, headers: Headers = ()) -> Answer:
    return await call(url, "POST", path, json.dumps(obj).encode(), headers)


@asynccontextmanager
async def streaming(url: str, path: str, obj: object, headers: Headers = ()) -> AsyncIterator[Connection]:
    """The request is sent; the head is not awaited. `read_head()`, `events()`, `read()`, `abort()`."""
    async with await Connection.open(url) as connection:
        await connection.request("POST", path, json.dumps(obj).encode(), headers)
        yield connection


async def sse_events(url: str, path: str, obj: object, headers: Headers = ()) -> AsyncIterator[Event]:
    """Every event of one streamed answer, as it arrives. Asserts that it is an event stream."""
    async with streaming(url, path, obj, headers) as connection:
        head = await connection.read_head()
        assert head["content-type"].startswith("text/event-stream"), head
        async for event in connection.events():
            yield event

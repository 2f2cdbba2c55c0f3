"""Owns one exchange with the fake engine: the request as it came, and every way to answer or not to.
Must not know which test drives it, nor the proxy: nothing happens until a test or a script says so.
Called by `tests/kit/engine.py`, which hands turns out; it lives on the engine's connection protocol."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from tests.kit.engine_wire import (
    DONE,
    LAST_CHUNK,
    BadRequest,
    Headers,
    Request,
    RequestReader,
    Shape,
    dumps,
    head,
    http_chunk,
)
from tests.kit.patience import patience

PATIENCE = 5.0  # seconds that a test waits for a fact before it fails with a readable reason


class ClientGone(ConnectionError):
    """The client closed its connection before the answer was complete."""


class Connection(asyncio.Protocol):
    """One accepted connection. Never stops reading, so that a leaving client is always noticed."""

    transport: asyncio.Transport

    def __init__(
        self, open_: set[Connection], number: int, on_request: Callable[[Connection, Request], None]
    ) -> None:
        self.number = number
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.turn: Turn | None = None
        self.error: Exception | None = None  # what the client did wrong
        self._open = open_
        self._on_request = on_request
        self._reader = RequestReader()
        self._writable: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._open.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            for request in self._reader.feed(data):
                if self.turn is not None and not self.turn.done:
                    raise BadRequest(f"a request came before the answer to {self.turn!r} had ended")
                self._on_request(self, request)
        except BadRequest as error:
            self.error = error
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        self.lost.set_result(None)
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    async def write(self, data: bytes) -> None:
        if self.lost.done() or self.transport.is_closing():
            raise ClientGone(f"connection {self.number} is closed")
        self.transport.write(data)
        if self._writable is not None:
            await asyncio.shield(self._writable)
            if self.lost.done():
                raise ClientGone(f"connection {self.number} was closed while being written to")

    def reset(self) -> None:
        """Close so that the peer sees RST, not FIN."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class Turn:
    """One request and its answer. The client's leaving before the answer's end is `is_cancelled`."""

    def __init__(self, number: int, connection: Connection, request: Request) -> None:
        self.number = number
        self.method = request.method
        self.path = request.path
        self.headers = request.headers
        self.raw_headers = request.raw_headers
        self.body = request.body
        self.started = False  # the head has been written
        self.done = False  # the answer is complete, or the engine itself ended it
        self._connection = connection
        self._chunked = True
        self._role = True
        self._roles: set[int] = set()
        self._tokens = 0

    def __repr__(self) -> str:
        state = "done" if self.done else "cancelled" if self.is_cancelled else "open" if self.started else "new"
        return f"<Turn {self.number} {self.method} {self.path} on connection {self.connection}: {state}>"

    # The request

    @property
    def connection(self) -> int:
        return self._connection.number

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def is_chat(self) -> bool:
        return "chat/completions" in self.path

    @property
    def wants_stream(self) -> bool:
        return self.json().get("stream") is True

    @property
    def wants_usage(self) -> bool:
        return bool((self.json().get("stream_options") or {}).get("include_usage"))

    @property
    def prompt_tokens(self) -> int:
        """As this engine counts: one token per word of JSON text in the prompt, or per token id."""
        body = self.json()
        return len(json.dumps(body.get("messages", body.get("prompt", ""))).split())

    @cached_property
    def shape(self) -> Shape:
        return Shape(chat=self.is_chat, model=str(self.json().get("model", "m1")), number=self.number)

    # A streamed answer

    async def start(
        self, status: int = 200, headers: Headers = (), *, chunked: bool = True, role: bool = True
    ) -> None:
        """The head of an event stream. `chunked=False` delimits it by close; `role=False` sends no role."""
        self._chunked, self._role, self.started = chunked, role, True
        lines = [("content-type", "text/event-stream; charset=utf-8"), ("vary", "Origin"), *headers]
        if not self._keeps_alive:
            lines.append(("connection", "close"))
        if chunked:
            lines.append(("transfer-encoding", "chunked"))
        await self.raw(head(status, lines))

    async def send(self, *texts: str, index: int = 0) -> None:
        """Content chunks, one HTTP chunk each, in one write; the head and the role first where due."""
        if not self.started:
            await self.start()
        frames = self._role_due(index) + [self.shape.content(text, index) for text in texts]
        self._tokens += len(texts)
        await self.frame(*frames)

    def _role_due(self, index: int) -> list[bytes]:
        if not (self._role and self.is_chat) or index in self._roles:
            return []
        self._roles.add(index)
        return [self.shape.role(index)]

    async def frame(self, *frames: bytes) -> None:
        """Raw event bytes, each argument in one HTTP chunk of its own."""
        await self.raw(b"".join(map(http_chunk, frames) if self._chunked else frames))

    async def raw(self, data: bytes) -> None:
        """Exact bytes on the socket. Waits while the client does not read; raises ClientGone if it left."""
        await self._connection.write(data)

    async def finish(
        self,
        text: str = "",
        *,
        reason: str = "stop",
        usage: bool | None = None,
        choices: Sequence[int] = (0,),
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
    ) -> None:
        """Finish chunks, usage (if asked for, or as told), `[DONE]`, the last HTTP chunk."""
        if not self.started:
            await self.start()
        usage = self.wants_usage if usage is None else usage
        frames: list[bytes] = []
        for index in choices:
            frames += self._role_due(index)
            frames.append(self.shape.finish(reason, text, index, fingerprint=not usage))
            self._tokens += bool(text)
        if usage:
            prompt = self.prompt_tokens if prompt_tokens is None else prompt_tokens
            tokens = self._tokens if completion_tokens is None else completion_tokens
            frames.append(self.shape.usage(prompt, tokens))
        await self.end(*frames, DONE)

    async def end(self, *frames: bytes) -> None:
        """The given frames and the last HTTP chunk, in one write: the answer is complete as HTTP."""
        await self.raw(b"".join(map(http_chunk, frames)) + LAST_CHUNK if self._chunked else b"".join(frames))
        self.done = True
        if not (self._chunked and self._keeps_alive):
            self._connection.transport.close()

    # A whole answer, and none

    async def respond(self, status: int = 200, content: object = b"", headers: Headers = ()) -> None:
        """A whole answer with content-length. Bytes go as they are, anything else as JSON."""
        body = content if isinstance(content, bytes) else dumps(content)
        lines = [("content-length", str(len(body))), ("content-type", "application/json")]
        given = {name.lower() for name, _ in headers}
        lines = [line for line in lines if line[0] not in given] + [("vary", "Origin"), *headers]
        if not self._keeps_alive:
            lines.append(("connection", "close"))
        self.started = True
        await self.raw(head(status, lines) + body)
        self.done = True
        if not self._keeps_alive:
            self._connection.transport.close()

    async def answer(self, *texts: str, reason: str = "stop", tokens: int | None = None) -> None:
        """A whole vLLM-shaped answer to a non-streaming generation: one text per choice."""
        count = sum(len(text.split()) for text in texts) if tokens is None else tokens
        reasons = [reason] * len(texts)
        await self.respond(200, self.shape.whole(list(texts), reasons, self.prompt_tokens, count))

    async def drop(self, *, reset: bool = False) -> None:
        """Close the socket at once, in the middle of whatever was said: FIN, or RST if asked."""
        self.done = True
        if reset:
            self._connection.reset()
        else:
            self._connection.transport.close()
        await asyncio.shield(self._connection.lost)

    def mark_done(self) -> None:
        """A test that wrote the whole answer by `raw` says so: the connection may take the next request."""
        self.done = True

    # The client's leaving

    @property
    def is_cancelled(self) -> bool:
        return not self.done and self._connection.lost.done()

    async def cancelled(self, seconds: float = PATIENCE) -> None:
        """Waits until the client has closed the connection before the answer's end."""
        assert not self.done, f"{self!r} was answered to its end: it can no longer be cancelled"
        try:
            async with patience(seconds):
                await asyncio.shield(self._connection.lost)
        except TimeoutError:
            raise AssertionError(f"{self!r}: the client did not leave within {seconds} s") from None
        assert not self.done, f"{self!r} was ended by the engine while waiting"

    @property
    def _keeps_alive(self) -> bool:
        return self.headers.get("connection", "").lower() != "close"

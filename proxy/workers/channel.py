"""The messages between the supervisor and a worker, and the channel that carries them: MessagePack, each message
after its length in four bytes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec

from proxy.flights.queue import PoolQueue
from proxy.telemetry import Family, raised
from proxy.upstream import News
from proxy.workers.order import Key

MAX_MESSAGE: Final = 64 * 1024 * 1024  # bytes: the metrics of all workers
MAX_UNSENT: Final = 64 * 1024 * 1024  # bytes that the other end has not read yet


class Hello(msgspec.Struct, tag="hello"):
    """To a worker, first: what it needs to begin."""

    index: int  # its place, from 0
    workers: int
    listen: list[int]  # descriptors of the sockets that it accepts from
    admin: list[int]  # the same of the operators' port
    port: int
    engines: list[str]  # URLs
    redis: str | None
    redis_words: str  # embedded, yours or off
    limits_redis: str | None = None  # the embedded Redis of the workers' limits
    salt: bytes = b""  # the secret of `--cache-salt auto`
    first: bool = True  # no worker of this gateway is ready yet


class Allot(msgspec.Struct, tag="allot"):
    """To a worker: how many requests it may have at each engine."""

    number: int
    places: dict[str, int]
    short: list[str] = []  # engines at which all permits are used and requests still wait


class Served(msgspec.Struct, tag="served"):
    """To a worker: tokens that tenants with requests queued there were served at other workers, by pool, class and
    tenant."""

    tokens: list[tuple[Key, int]]


class Engine(msgspec.Struct, tag="engine"):
    """From a worker, and to all others: what it has found out of an engine."""

    name: str
    news: News
    seconds: float  # for which its breaker is open
    detail: str


class Leave(msgspec.Struct, tag="leave"):
    """To a worker: another one has its place. It accepts no connection and ends once its clients have left."""


class Collect(msgspec.Struct, tag="collect"):
    """To a worker: report the metrics."""

    number: int


class Collected(msgspec.Struct, tag="collected"):
    """To a worker that has asked: the metrics of all others, and of those that have ended."""

    number: int
    families: list[list[Family]]


class Ready(msgspec.Struct, tag="ready"):
    """From a worker: it accepts."""

    models: list[str]
    engines: list[str]
    answers: bool  # whether an engine does
    redis: str
    url: str
    admin_url: str
    shares: list[str] = msgspec.field(default_factory=list)  # with other gateways
    unlisted: str = ""  # why an engine lists no models


class Report(msgspec.Struct, tag="report"):
    """From a worker: its requests by engine, and the allotment that it has applied. Comes at least every
    BEAT seconds."""

    number: int  # of the last Allot
    engines: dict[str, tuple[int, int, int]]  # in flight, queued, the most that its controller would send
    queues: list[tuple[list[str], PoolQueue]] = []  # queued requests, each summary with the engines that serve it
    leaving: dict[str, int] = {}  # in flight at engines that were removed


class Ask(msgspec.Struct, tag="ask"):
    """From a worker: it is asked for the metrics of the gateway; its own are with it."""

    number: int
    families: list[Family]


class Metrics(msgspec.Struct, tag="metrics"):
    """From a worker: its metrics; `number` 0: the last ones, as it ends."""

    number: int
    families: list[Family]


ToWorker = Hello | Allot | Served | Engine | Leave | Collect | Collected
FromWorker = Ready | Report | Engine | Ask | Metrics
T = TypeVar("T", ToWorker, FromWorker)
_ENCODE: Final = msgspec.msgpack.Encoder().encode


class Channel(Generic[T]):
    """One end of a socket pair, which receives messages of the type T."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decoder: msgspec.msgpack.Decoder[T]
    ) -> None:
        self._reader, self._writer = reader, writer
        self._decode: Callable[[bytes], T] = decoder.decode

    def __repr__(self) -> str:
        return f"<Channel {'closing' if self._writer.is_closing() else 'open'}>"

    def send(self, message: ToWorker | FromWorker) -> None:
        """Send it, without waiting. One end that does not read any more is given up."""
        if self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT:
            self._writer.transport.abort()
            return
        data = _ENCODE(message)
        self._writer.write(len(data).to_bytes(4) + data)

    async def receive(self) -> T | None:
        """The next message; None once the other end is gone, or says what is no message."""
        try:
            size = int.from_bytes(await self._reader.readexactly(4))
            if size > MAX_MESSAGE:
                return None
            return self._decode(await self._reader.readexactly(size))
        except (ConnectionError, asyncio.IncompleteReadError):
            return None
        except msgspec.MsgspecError as e:
            raised("a message between supervisor and worker", e)
            return None

    async def drain(self) -> None:
        """Wait until all is sent."""
        try:
            await self._writer.drain()
        except ConnectionError:
            pass  # the other end is gone

    def close(self) -> None:
        self._writer.close()


async def to_supervisor(sock: socket.socket) -> Channel[ToWorker]:
    """A worker's end."""
    return Channel(*await asyncio.open_unix_connection(sock=sock), msgspec.msgpack.Decoder(ToWorker))


async def to_worker(sock: socket.socket) -> Channel[FromWorker]:
    """The supervisor's end."""
    return Channel(*await asyncio.open_unix_connection(sock=sock), msgspec.msgpack.Decoder(FromWorker))

"""The messages between machines, as lines of JSON: greeting, comparison of clocks, start, outcome, records."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from typing import Final, NamedTuple

import msgspec

from loadgen.drive.processes.job import Job
from loadgen.drive.session import Outcome
from loadgen.errors import UsageError
from loadgen.record import Record

PROTOCOL: Final = 1
LINE_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of one line: a record, or an outcome with its probe's samples."""
HELLO_LIMIT: Final = 4096
PINGS: Final = 30


class Message(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One line. Exactly one of its parts is set."""

    hello: Hello | None = None
    refused: str | None = None
    ping: bool = False
    pong: int | None = None  # CLOCK_MONOTONIC of the other machine
    plan: Plan | None = None
    ready: bool = False
    start: int | None = None  # CLOCK_MONOTONIC of the machine that reads it
    stop: bool = False
    outcome: Outcome | None = None
    records: int | None = None  # so many lines with a record each follow


class Hello(msgspec.Struct, kw_only=True):
    machine: int
    host: str
    digest: str
    protocol: int = PROTOCOL


class Plan(msgspec.Struct, kw_only=True):
    """What machine 0 has drawn for all: the run's name, and the salt of its nonces."""

    run: str
    salt: str


class Offset(NamedTuple):
    """Another machine's clock minus this one's. It is within `error_ns` of that, whatever delayed the messages."""

    ns: int
    error_ns: int


def offset_of(exchanges: list[tuple[int, int, int]]) -> Offset:
    """From (sent, the other's clock, received), by the shortest round trip: the other clock was read between."""
    sent, other, received = min(exchanges, key=lambda exchange: exchange[2] - exchange[0])
    return Offset(other - (sent + received) // 2, (received - sent + 1) // 2)


def digest_of(job: Job) -> str:
    """Equal for machines that were given the same flags: of all that decides what is sent, and no secret in it."""
    same = msgspec.structs.replace(
        job,
        run="",
        workload=msgspec.structs.replace(job.workload, salt=""),
        http=msgspec.structs.replace(job.http, headers=()),
        secrets=[],
        max_in_flight=0,  # by each machine's ulimit
    )
    return hashlib.sha256(msgspec.json.encode(same)).hexdigest()


def _keep_alive(connection: socket.socket) -> None:
    """A machine that is gone without a word is noticed within a minute."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Link:
    """One connection between two machines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _keep_alive(writer.get_extra_info("socket"))
        self._reader = reader
        self._writer = writer
        self._decoder = msgspec.json.Decoder(Message)
        self._records = msgspec.json.Decoder(Record)

    def send(self, message: Message) -> None:
        self._writer.write(msgspec.json.encode(message) + b"\n")

    async def receive(self, *, limit: int = LINE_LIMIT) -> Message:
        """Raises UsageError if the other machine is gone or says something else."""
        try:
            return self._decoder.decode(await self._line(limit))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UsageError(f"another machine sent no message of this program: {error}") from None

    async def receive_record(self) -> Record:
        """Raises UsageError."""
        try:
            return self._records.decode(await self._line(LINE_LIMIT))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UsageError(f"another machine sent no record: {error}") from None

    async def _line(self, limit: int) -> bytes:
        try:
            line = await self._reader.readline()
        except (ValueError, OSError) as error:
            raise UsageError(f"the connection to another machine broke: {error}") from None
        if not line.endswith(b"\n") or len(line) > limit:
            raise UsageError("another machine closed its connection before the run had ended")
        return line

    async def send_records(self, records: list[Record]) -> None:
        """Raises OSError."""
        self.send(Message(records=len(records)))
        for record in records:
            self._writer.write(msgspec.json.encode(record) + b"\n")
            await self._writer.drain()

    def close(self) -> None:
        self._writer.close()

"""One exchange as it was seen: which bytes were there after which read, and which clock stamped them. Nothing is
parsed while it runs, so that the loop stays free."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final, NamedTuple

from loadgen.record import Failure, Record

MAX_DETAIL: Final = 500


class Read(NamedTuple):
    """One read of the socket. Times are absolute: kernel_ns on CLOCK_REALTIME, the others on CLOCK_MONOTONIC."""

    end: int  # bytes of the body that were in hand after it
    kernel_ns: int  # when its last byte came; 0 where the kernel did not say
    user_ns: int  # when the program had it
    not_before_ns: int  # nothing of it had come before this time


class Exchange:
    """The raw facts of one request. `record` already has what was known before it was sent."""

    __slots__ = (
        "_reads",
        "complete",
        "connect_ns",
        "content_type",
        "detail",
        "failure",
        "first_ns",
        "last_ns",
        "parts",
        "record",
        "shared",
        "size",
        "status",
        "tx_ns",
        "wrote_ns",
    )

    def __init__(self, record: Record) -> None:
        self.record = record
        self._reads = array("q")  # four numbers a read: 32 bytes, and nothing for the collector to walk
        self.parts: list[bytes] = []  # what each read brought of the body; joined, it is the body
        self.size = 0
        self.first_ns = 0  # when the program had something generated, for the live view only
        self.last_ns = 0  # when something was last heard, for the idle limit
        self.tx_ns = 0  # CLOCK_REALTIME, by the kernel; 0: not known
        self.wrote_ns = 0
        self.connect_ns: int | None = None
        self.status: int | None = None
        self.content_type = ""
        self.shared: str | None = None
        self.complete = False  # the body ended as HTTP says it should
        self.failure: Failure | None = None
        self.detail = ""

    def __repr__(self) -> str:
        state = self.failure or ("complete" if self.complete else "open")
        return f"<Exchange {self.record.index}: {state}, {self.read_count} reads, {self.size} bytes>"

    def saw(self, kernel_ns: int, user_ns: int, not_before_ns: int) -> None:
        """One read; `size` already counts what it brought."""
        self._reads.extend((self.size, kernel_ns, user_ns, not_before_ns))
        self.last_ns = user_ns

    @property
    def read_count(self) -> int:
        return len(self._reads) // 4

    @property
    def answered(self) -> bool:
        """The answer's first byte has come."""
        return bool(self._reads)

    def reads(self) -> Iterator[Read]:
        flat = iter(self._reads)
        return map(Read._make, zip(flat, flat, flat, flat, strict=True))

    @property
    def weight(self) -> int:
        """Bytes of memory, about."""
        return self.size + 8 * len(self._reads) + 50 * len(self.parts) + 1000

    def fail(self, failure: Failure, detail: str) -> None:
        """The first failure counts: what follows it is its consequence."""
        if self.failure is None:
            self.failure, self.detail = failure, detail[:MAX_DETAIL]

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)


CURRENT: ContextVar[Exchange] = ContextVar("exchange")
"""The exchange of the running task: how the protocol that aiohttp made learns whose answer it reads."""

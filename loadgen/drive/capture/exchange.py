"""One exchange as it was seen: which bytes were there after which read, and which clock stamped them. Nothing is
parsed while it runs, so that the loop stays free."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

from loadgen.record import Failure, Record


class Read(NamedTuple):
    """One read of the socket. kernel_ns is on CLOCK_REALTIME, the other times are on CLOCK_MONOTONIC."""

    end: int  # bytes of the body received by its end
    kernel_ns: int  # when its last byte arrived; 0 if the kernel gave no stamp
    user_ns: int  # when the program had it
    not_before_ns: int  # none of it had arrived before this time


class Exchange:
    """The raw facts of one request. `record` holds those that were known before it was sent."""

    __slots__ = (
        "_reads",
        "complete",
        "connect_ns",
        "content_type",
        "count",
        "detail",
        "ended_ns",
        "failure",
        "first_ns",
        "last_ns",
        "last_write_ns",
        "parts",
        "record",
        "reused",
        "shared",
        "size",
        "status",
        "tx_ns",
        "wrote_ns",
    )

    def __init__(self, record: Record) -> None:
        self.record = record
        self._reads = array("q")  # four numbers a read: 32 bytes, and no objects for the garbage collector
        self.parts: list[bytes] = []  # the body as it was read, in pieces
        self.size = 0
        self.first_ns = 0  # when the program had the first generated content; for the live view only
        self.last_ns = 0  # of the last data, for the idle limit
        self.tx_ns = 0  # CLOCK_REALTIME, by the kernel; 0: unknown
        self.wrote_ns = 0  # when the program began to write the request
        self.last_write_ns = 0  # when it wrote the last part of it
        self.ended_ns = 0  # when it had ended or failed; 0: it was never sent
        self.connect_ns: int | None = None
        self.reused = False  # it is on a kept-alive connection
        self.status: int | None = None
        self.content_type = ""
        self.shared: str | None = None
        self.complete = False  # the body ended as HTTP says it should
        self.failure: Failure | None = None
        self.detail = ""
        self.count: Callable[[bytes], None] | None = None  # called with each piece of the body as it arrives

    def __repr__(self) -> str:
        state = self.failure or ("complete" if self.complete else "open")
        return f"<Exchange {self.record.index}: {state}, {self.read_count} reads, {self.size} bytes>"

    def add_read(self, kernel_ns: int, user_ns: int, not_before_ns: int) -> None:
        """Record one read. `size` includes it already."""
        self._reads.extend((self.size, kernel_ns, user_ns, not_before_ns))
        self.last_ns = user_ns

    @property
    def read_count(self) -> int:
        return len(self._reads) // 4

    @property
    def answered(self) -> bool:
        """Whether the response's first byte has arrived."""
        return bool(self._reads)

    @property
    def body_ns(self) -> int:
        """When the program had the body's last byte. The read that ends the response may come later."""
        place = len(self._reads) - 4
        while place > 0 and self._reads[place - 4] == self.size:
            place -= 4
        return self._reads[place + 2] if place >= 0 else self.last_ns

    def reads(self) -> Iterator[Read]:
        flat = iter(self._reads)
        return map(Read._make, zip(flat, flat, flat, flat, strict=True))

    @property
    def weight(self) -> int:
        """Approximate bytes of memory."""
        return self.size + 8 * len(self._reads) + 50 * len(self.parts) + 1000

    def fail(self, failure: Failure, detail: str) -> None:
        """Keep the first failure: later ones are its consequences."""
        if self.failure is None:
            self.failure, self.detail = failure, detail

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)


CURRENT: ContextVar[Exchange] = ContextVar("exchange")
"""The exchange of the running task: tells aiohttp's protocol whose response it reads."""

"""A socket that asks the kernel when bytes arrived and left (SO_TIMESTAMPING), and the registry to find it by. It
is a `socket.socket` that any event loop reads in its usual way."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from typing import Any, Final
from weakref import WeakValueDictionary

# Python has no names for these (x86-64 and arm64, asm-generic/socket.h and linux/net_tstamp.h).
SO_TIMESTAMPING: Final = 37
TX_SOFTWARE: Final = 1 << 1
RX_SOFTWARE: Final = 1 << 3
SOFTWARE: Final = 1 << 4
OPT_TSONLY: Final = 1 << 11  # the error queue then holds the stamp without a copy of the packet
FLAGS: Final = RX_SOFTWARE | TX_SOFTWARE | SOFTWARE | OPT_TSONLY

ANCILLARY: Final = 128  # room for one SCM_TIMESTAMPING (64 bytes with its header) and change
ERROR_ANCILLARY: Final = 512
READ_SIZE: Final = 64 * 1024
"""Bytes of one read. asyncio asks for 256 KiB, whose allocation costs 23.7 µs a read; 64 KiB costs 4 µs."""

_MSG_ERRQUEUE: Final = getattr(socket, "MSG_ERRQUEUE", 0)
_MSG_DONTWAIT: Final = getattr(socket, "MSG_DONTWAIT", 0)
_stamp: Final = struct.Struct("@2q").unpack_from  # seconds, nanoseconds: the software stamp is the first of three


class TimestampedSocket(socket.socket):
    """A TCP socket that remembers the kernel's stamp of its last read and of its last send.

    `rx_ns`: CLOCK_REALTIME at which the last byte of the last read came; 0 where the kernel gave none.
    `tx_ns`: CLOCK_REALTIME at which the last byte of the last send left; 0 until its stamp has been read.
    `first_write_ns`, `last_write_ns`: CLOCK_MONOTONIC when the program handed over the first and the last part of
    the request: a server that does not read takes a long one in parts.

    The send stamps come through the socket's error queue, which must be emptied inside `recv`: epoll reports
    a socket whose error queue is not empty for ever, and asyncio would spin on it.
    """

    stamping = False
    rx_ns = 0
    tx_ns = 0
    first_write_ns = 0
    last_write_ns = 0
    reads = 0
    _due = 0  # whether the stamp of the last send has not been read yet
    _ahead: bytes | None = None  # read before the loop did; `rx_ns` is its stamp

    def stamp(self) -> bool:
        """Enable time stamps. False if this system has none."""
        if not sys.platform.startswith("linux"):
            return False
        try:
            self.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, FLAGS)
        except OSError:
            return False
        self.stamping = True
        return True

    def read_ahead(self) -> None:
        """Read the data that is there now; the loop's `recv` returns it later in the same iteration.

        Other callbacks run between the loop's poll and its read, and data that arrives meanwhile would be merged
        into one stamp with the earlier data. With a callback of 20 ms in each iteration and tokens 25 ms apart,
        reading ahead reduced the share of TTFTs that are intervals from 68 % (of 120) to 14 % (of 360).
        """
        if not self.stamping or self._ahead is not None:
            return
        try:
            data, ancillary, _, _ = self.recvmsg(READ_SIZE, ANCILLARY, _MSG_DONTWAIT)
        except OSError:
            return  # only the error queue, or an error: `recv` gets it again
        self._take(ancillary)
        self._ahead = data

    def _from_ahead(self, size: int) -> bytes:
        data = self._ahead or b""
        self._ahead = data[size:] or None
        return data[:size]

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        if self._ahead is not None:
            return self._from_ahead(bufsize)
        if not self.stamping:
            return super().recv(min(bufsize, READ_SIZE), flags)
        try:
            data, ancillary, _, _ = self.recvmsg(min(bufsize, READ_SIZE), ANCILLARY, flags)
        except BlockingIOError:
            self.drain()
            raise
        self._take(ancillary)
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> int:
        """asyncio's TLS reads this way: the stamp is that of the TLS record's last segment."""
        if not self.stamping:
            return super().recv_into(buffer, nbytes, flags)
        view = memoryview(buffer)[: nbytes or None]
        if self._ahead is not None:
            data = self._from_ahead(len(view))
            view[: len(data)] = data
            return len(data)
        try:
            size, ancillary, _, _ = self.recvmsg_into([view], ANCILLARY, flags)
        except BlockingIOError:
            self.drain()
            raise
        self._take(ancillary)
        return size

    def send(self, data: Any, flags: int = 0, /) -> int:
        self._sends()
        return super().send(data, flags)

    def sendmsg(self, buffers: Any, /, *more: Any) -> int:
        """asyncio sends what it has buffered this way, from Python 3.12 on."""
        self._sends()
        return super().sendmsg(buffers, *more)

    def begin_request(self) -> None:
        """The next write is a request's first."""
        self.first_write_ns = self.last_write_ns = self.tx_ns = 0

    def _sends(self) -> None:
        self.last_write_ns = time.monotonic_ns()
        self.first_write_ns = self.first_write_ns or self.last_write_ns
        self.tx_ns = 0
        self._due = self.stamping

    def _take(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        self.rx_ns = 0
        self.reads += 1
        for _, kind, content in ancillary:
            if kind == SO_TIMESTAMPING:
                seconds, nanoseconds = _stamp(content)
                self.rx_ns = seconds * 1_000_000_000 + nanoseconds
        if self._due:
            self.drain()

    def drain(self) -> None:
        """Empty the error queue. Its last stamp is that of the last send."""
        if not self.stamping:
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                _, ancillary, _, _ = self.recvmsg(0, ERROR_ANCILLARY, _MSG_ERRQUEUE)
                for _, kind, content in ancillary:
                    if kind == SO_TIMESTAMPING:
                        seconds, nanoseconds = _stamp(content)
                        self.tx_ns = seconds * 1_000_000_000 + nanoseconds
                        self._due = False


class TimestampKeepAlive:
    """Keeps the kernel's time stamping enabled from before the first request on.

    The kernel stamps packets only while some socket on the machine asks for it, and starts a moment after the
    first one does (a static key, switched by a work queue): the first responses of a run would arrive without
    stamps.
    """

    PATIENCE_NS: Final = 50_000_000

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, RX_SOFTWARE | SOFTWARE)
        self.stamping = self._settle()

    def _settle(self) -> bool:
        """Send to itself until a datagram arrives with a stamp; False if none does in time."""
        until = time.monotonic_ns() + self.PATIENCE_NS
        self._socket.settimeout(0.05)
        while time.monotonic_ns() < until:
            self._socket.sendto(b"x", self._socket.getsockname())
            _, ancillary, _, _ = self._socket.recvmsg(1, ANCILLARY)
            if any(kind == SO_TIMESTAMPING and _stamp(content) != (0, 0) for _, kind, content in ancillary):
                return True
        return False

    def close(self) -> None:
        self._socket.close()


class Sockets:
    """Makes the sockets of one client and finds them again by their descriptor.

    aiohttp and asyncio hand out a wrapper that hides the socket; its file number is public.
    """

    def __init__(self, *, kernel: bool) -> None:
        self._kernel = kernel
        self._keep_alive: TimestampKeepAlive | None = None
        if kernel and sys.platform.startswith("linux"):
            with contextlib.suppress(OSError):
                self._keep_alive = TimestampKeepAlive()
        self._open: WeakValueDictionary[int, TimestampedSocket] = WeakValueDictionary()

    def make(self, addr_info: tuple[Any, ...]) -> socket.socket:
        """For `TCPConnector(socket_factory=...)`. Raises OSError (EMFILE) out of descriptors."""
        family, kind, protocol, _, _ = addr_info
        sock = TimestampedSocket(family=family, type=kind, proto=protocol)
        if self._kernel:
            sock.stamp()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open[sock.fileno()] = sock
        return sock

    def close(self) -> None:
        if self._keep_alive is not None:
            self._keep_alive.close()

    def read_ahead(self, descriptor: int) -> None:
        """Called by the loop's selector for a readable descriptor."""
        sock = self._open.get(descriptor)
        if sock is not None:
            sock.read_ahead()

    def find(self, descriptor: int) -> TimestampedSocket | None:
        return self._open.get(descriptor)

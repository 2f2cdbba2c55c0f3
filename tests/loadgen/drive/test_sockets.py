"""The kernel's stamps, asked for by a socket that any loop reads in its usual way. Linux only."""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Iterator

import pytest

from loadgen.drive.capture.loop import new_loop, selector_of
from loadgen.drive.capture.sockets import READ_SIZE, Sockets, TimestampedSocket, TimestampKeepAlive

pytestmark = pytest.mark.usefixtures("stamping")

Pair = tuple[TimestampedSocket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Ours, connected over loopback to a plain one."""
    sockets = Sockets(kernel=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        made = sockets.make((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("", 0)))
        assert isinstance(made, TimestampedSocket)
        made.connect(server.getsockname())
        peer, _ = server.accept()
        with made, peer:
            yield made, peer
    sockets.close()


def test_every_read_has_the_kernels_stamp_between_the_send_and_the_read(pair: Pair) -> None:
    ours, peer = pair
    ours.setblocking(True)
    for _ in range(20):
        before = time.time_ns()
        peer.sendall(b"x")
        assert ours.recv(100) == b"x"
        assert before <= ours.rx_ns <= time.time_ns()
    assert ours.reads == 20


@pytest.mark.parametrize("how", ["send", "sendmsg"])
def test_a_send_is_stamped_and_its_stamp_is_out_of_the_way_after_one_read(pair: Pair, how: str) -> None:
    ours, peer = pair
    ours.setblocking(False)
    before, began = time.time_ns(), time.monotonic_ns()
    if how == "send":
        ours.send(b"request")
    else:
        ours.sendmsg([b"req", b"uest"])
    assert began <= ours.first_write_ns == ours.last_write_ns <= time.monotonic_ns()
    with pytest.raises(BlockingIOError):
        ours.recv(100)  # as the loop does when epoll reports the error queue
    assert before <= ours.tx_ns <= time.time_ns()
    with pytest.raises(BlockingIOError):
        ours.recvmsg(0, 512, socket.MSG_ERRQUEUE)
    assert peer.recv(100) == b"request"


def test_a_request_in_parts_began_with_the_first_and_the_next_one_begins_anew(pair: Pair) -> None:
    ours, _ = pair
    ours.setblocking(False)
    ours.send(b"req")
    first = ours.first_write_ns
    ours.send(b"uest")
    assert ours.first_write_ns == first < ours.last_write_ns
    ours.begin_request()
    ours.send(b"next")
    assert first < ours.first_write_ns == ours.last_write_ns


async def test_the_loop_does_not_spin_on_an_error_queue(pair: Pair) -> None:
    ours, peer = pair
    ours.setblocking(False)
    calls = 0

    class Counted(asyncio.Protocol):
        pass

    original = ours.recv

    def counting(size: int, flags: int = 0, /) -> bytes:
        nonlocal calls
        calls += 1
        return original(size, flags)

    ours.recv = counting  # type: ignore[method-assign]
    transport, _ = await asyncio.get_running_loop().create_connection(Counted, sock=ours)
    transport.write(b"request")
    for _ in range(200):
        await asyncio.sleep(0)
    assert ours.tx_ns > 0
    assert calls <= 3
    transport.close()
    await asyncio.sleep(0)
    assert peer.recv(100) == b"request"


def test_reads_into_a_buffer_are_stamped_too(pair: Pair) -> None:
    """As asyncio's TLS reads."""
    ours, peer = pair
    ours.setblocking(True)
    peer.sendall(b"hello")
    buffer = bytearray(100)
    assert ours.recv_into(memoryview(buffer)) == 5
    assert bytes(buffer[:5]) == b"hello"
    assert ours.rx_ns > 0


def test_a_read_is_never_larger_than_its_cap(pair: Pair) -> None:
    ours, peer = pair
    ours.setblocking(True)
    peer.setblocking(False)
    peer.send(b"x" * 200_000)
    assert len(ours.recv(256 * 1024)) <= READ_SIZE


def test_without_the_kernel_nothing_is_stamped_and_bytes_still_come(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        made = Sockets(kernel=False).make((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("", 0)))
        assert isinstance(made, TimestampedSocket)
        with made:
            made.connect(server.getsockname())
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"x")
                assert made.recv(10) == b"x"
                assert made.rx_ns == made.tx_ns == 0


def test_a_socket_is_found_by_its_descriptor_while_it_lives() -> None:
    sockets = Sockets(kernel=False)
    made = sockets.make((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("", 0)))
    assert sockets.find(made.fileno()) is made
    assert sockets.find(10**6) is None
    made.close()


def test_the_kernel_stamps_from_before_the_first_request_on() -> None:
    keeper = TimestampKeepAlive()
    assert keeper.stamping
    keeper.close()


# Reading ahead


def readable(ours: TimestampedSocket) -> None:
    select.select([ours], [], [])


def test_what_was_read_ahead_keeps_its_own_stamp(pair: Pair) -> None:
    ours, peer = pair
    ours.setblocking(False)
    peer.sendall(b"first")
    readable(ours)
    ours.read_ahead()
    ours.read_ahead()  # what is there already is not read over
    between = time.time_ns()
    peer.sendall(b"second")
    assert (ours.recv(100), ours.rx_ns < between) == (b"first", True)
    readable(ours)
    assert (ours.recv(100), ours.rx_ns > between) == (b"second", True)


def test_what_was_read_ahead_comes_in_pieces_where_less_is_asked_for(pair: Pair) -> None:
    ours, peer = pair
    ours.setblocking(False)
    peer.sendall(b"abcdef")
    readable(ours)
    ours.read_ahead()
    into = bytearray(3)
    assert ours.recv(2) == b"ab"
    assert (ours.recv_into(into), bytes(into)) == (3, b"cde")
    assert ours.recv(100) == b"f"
    with pytest.raises(BlockingIOError):
        ours.recv(100)


def test_an_end_that_was_read_ahead_is_an_end(pair: Pair) -> None:
    ours, peer = pair
    ours.setblocking(False)
    peer.close()
    readable(ours)
    ours.read_ahead()
    assert ours.recv(100) == b""


def test_nothing_to_read_ahead_and_no_stamps_leave_recv_as_it_was(pair: Pair) -> None:
    ours, peer = pair
    ours.setblocking(False)
    ours.read_ahead()
    with pytest.raises(BlockingIOError):
        ours.recv(100)
    ours.stamping = False
    peer.sendall(b"x")
    readable(ours)
    ours.read_ahead()
    peer.sendall(b"y")
    assert ours.recv(100) == b"xy"


def test_what_comes_between_the_look_and_the_read_is_not_merged_with_what_was_there(pair: Pair) -> None:
    ours, peer = pair
    ours.setblocking(False)
    reads: list[tuple[bytes, int]] = []

    class Kept(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            reads.append((data, ours.rx_ns))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        selector = selector_of(loop)
        assert selector is not None
        selector.read_ahead = lambda descriptor: ours.read_ahead() if descriptor == ours.fileno() else None
        transport, _ = await loop.create_connection(Kept, sock=ours)
        await asyncio.sleep(0)
        peer.sendall(b"first")
        loop.call_soon(peer.sendall, b"second")  # runs after the look that finds the first, and before its read
        while len(reads) < 2:  # noqa: ASYNC110 - a turn of the loop is what is waited for
            await asyncio.sleep(0)
        transport.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert [data for data, _ in reads] == [b"first", b"second"]
    assert reads[0][1] < reads[1][1]

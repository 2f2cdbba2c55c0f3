"""One connection to an engine, at byte level: what ends an answer, what breaks it, what never may."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

import pytest

from proxy.errors import Code
from proxy.upstream.http.connection import Connection
from proxy.upstream.http.pool import Pool
from proxy.upstream.http.response import MAX_HEAD
from tests.kit.engine import Engine
from tests.kit.engine_turn import PATIENCE
from tests.kit.patience import patience
from tests.kit.raw_server import RawServer
from tests.kit.running import until
from tests.kit.taker import Taker


@pytest.fixture
async def pool(engine: Engine) -> Pool:
    return Pool(engine.url, connect_timeout=5, loop=asyncio.get_running_loop())


def ask(pool: Pool, connection: Connection, path: str = "/x") -> Taker:
    taker = Taker()
    connection.send(pool.request("GET", path, (), b""), taker)
    return taker


@pytest.mark.parametrize(
    ("answer", "status", "data"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1;x=y\r\ni\r\n0\r\nt: 1\r\n\r\n",
            200,
            b"hi",
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", 304, b""),
        (b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n", 500, b""),
        (b"HTTP/1.1 500 X\r\ncontent-length: 00\r\n\r\n", 500, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", 200, b"a"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", 200, b"a"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 9999])
async def test_an_answer_is_whole_under_any_split_and_the_connection_is_kept(
    engine: Engine, pool: Pool, answer: bytes, status: int, data: bytes, step: int
) -> None:
    connection = await pool.connect()
    taker = ask(pool, connection)
    await engine.next_request()
    for at in range(0, len(answer), step):
        connection.data_received(answer[at : at + step])
    assert taker.endings == [None]
    assert (taker.status, taker.data) == (status, data)
    assert "link" not in dict(taker.headers)
    assert pool.take() is connection
    pool.close()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", Code.UPSTREAM_UNREACHABLE),
        (b"HTTP/1.1 200 OK\r\nContent-Le", Code.UPSTREAM_UNREACHABLE),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", Code.UPSTREAM_TRUNCATED),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", Code.UPSTREAM_TRUNCATED),
        (b"SSH-2.0-OpenSSH_9\r\n", Code.UPSTREAM_PROTOCOL),
        (b"\x16\x03\x01\x02\x00", Code.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", Code.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Code.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", Code.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 101 X\r\nUpgrade: ws\r\nConnection: upgrade\r\n\r\n", Code.UPSTREAM_PROTOCOL),
    ],
)
async def test_an_answer_that_breaks_is_lost_once_and_its_connection_never_kept(
    engine: Engine, pool: Pool, answer: bytes, code: Code
) -> None:
    taker = ask(pool, await pool.connect())
    turn = await engine.next_request()
    if answer:
        await turn.raw(answer)
    await turn.drop()
    error = await taker.ended()
    assert error is not None
    assert error.code is code
    await engine.until(lambda: not engine.open_connections)
    assert pool.take() is None
    pool.close()


async def test_an_answer_without_a_length_ends_with_its_connection(engine: Engine, pool: Pool) -> None:
    taker = ask(pool, await pool.connect())
    turn = await engine.next_request()
    await turn.raw(b"HTTP/1.1 200 OK\r\n\r\nall of it")
    await turn.drop()
    assert await taker.ended() is None
    assert taker.data == b"all of it"
    assert pool.take() is None


async def test_a_head_without_end_is_refused(engine: Engine, pool: Pool) -> None:
    connection = await pool.connect()
    taker = ask(pool, connection)
    await engine.next_request()
    connection.data_received(b"HTTP/1.1 200 OK\r\n")
    for at in range(MAX_HEAD // 1000 + 2):
        connection.data_received(b"x%04d: %b\r\n" % (at, b"y" * 991))
    error = await taker.ended()
    assert error is not None
    assert error.code is Code.UPSTREAM_PROTOCOL
    pool.close()


async def test_a_connection_that_closes_with_the_answer_is_not_kept(engine: Engine, pool: Pool) -> None:
    taker = ask(pool, await pool.connect())
    await (await engine.next_request()).raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na")
    assert await taker.ended() is None
    assert pool.take() is None
    engine.requests[0].mark_done()
    await engine.until(lambda: not engine.open_connections)


async def test_bytes_that_nobody_asked_for_close_the_connection(engine: Engine, pool: Pool) -> None:
    taker = ask(pool, await pool.connect())
    turn = await engine.next_request()
    await turn.respond(200, b"a")
    assert await taker.ended() is None
    await turn.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    await engine.until(lambda: not engine.open_connections)
    assert pool.take() is None
    pool.close()


async def test_release_of_an_old_receiver_never_disturbs_the_next_exchange(engine: Engine, pool: Pool) -> None:
    connection = await pool.connect()
    first = ask(pool, connection)
    await (await engine.next_request()).respond(200, b"one")
    assert await first.ended() is None
    assert pool.take() is connection
    second = ask(pool, connection)
    connection.release(first, content=False)
    connection.release(first, content=True)
    connection.throttle(first, True)
    await (await engine.next_request()).respond(200, b"two")
    assert await second.ended() is None
    assert second.data == b"two"
    assert engine.accepted == 1
    pool.close()


async def test_a_drain_that_is_through_leaves_its_timer_without_teeth(engine: Engine, pool: Pool) -> None:
    connection = await pool.connect()
    first = ask(pool, connection)
    turn = await engine.next_request()
    await turn.start()
    await turn.frame(b"data: [DONE]\n\n")
    await first.until(b"[DONE]\n\n")
    connection.release(first, content=True)
    drain = connection._answer
    assert drain is not None
    await turn.end()
    async with patience(PATIENCE):
        while (again := pool.take()) is None:
            await asyncio.wrap_future(asyncio.get_running_loop().run_in_executor(None, lambda: None))
    assert again is connection
    second = ask(pool, connection)
    connection._abort_if(drain)  # what the timer does when its time comes
    await (await engine.next_request()).respond(200, b"two")
    assert await second.ended() is None
    assert first.endings == []
    pool.close()


async def test_a_drain_that_does_not_end_is_cut_off(engine: Engine, pool: Pool) -> None:
    connection = await pool.connect()
    taker = ask(pool, connection)
    turn = await engine.next_request()
    await turn.start()
    await turn.frame(b"data: a\n\n")
    await taker.until(b"\n\n")
    connection.release(taker, content=True)
    drain = connection._answer
    assert drain is not None
    connection._abort_if(drain)
    await turn.cancelled()
    assert taker.endings == []


async def test_release_of_a_reader_that_left_closes_at_once(engine: Engine, pool: Pool) -> None:
    connection = await pool.connect()
    taker = ask(pool, connection)
    turn = await engine.next_request()
    connection.release(taker, content=False)
    await turn.cancelled()
    assert (taker.endings, connection.usable, len(pool)) == ([], False, 0)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOBUFS, Code.LOCAL_RESOURCES),
        (errno.ENOMEM, Code.LOCAL_RESOURCES),
        (errno.ECONNRESET, Code.UPSTREAM_UNREACHABLE),
        (errno.EPIPE, Code.UPSTREAM_UNREACHABLE),
    ],
)
async def test_a_connection_that_this_machine_has_no_buffer_for_is_our_own_shortage(
    pool: Pool, code: int, said: Code
) -> None:
    connection = await pool.connect()
    transport = connection._transport
    assert transport is not None
    taker = ask(pool, connection)
    connection.connection_lost(OSError(code, os.strerror(code)))
    transport.abort()
    error = await taker.ended()
    assert error is not None
    assert error.code is said


async def test_sending_on_a_closed_connection_is_lost_and_not_received(engine: Engine, pool: Pool) -> None:
    connection = await pool.connect()
    connection.abort()
    taker = ask(pool, connection)
    assert taker.endings == []  # never within send itself
    error = await taker.ended()
    assert error is not None
    assert error.code is Code.UPSTREAM_UNREACHABLE
    assert connection.received is False


async def test_a_held_connection_reads_on_when_it_is_given_back(engine: Engine, pool: Pool) -> None:
    connection = await pool.connect()
    first = ask(pool, connection)
    await engine.next_request()
    connection.throttle(first, True)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na")
    engine.requests[0].mark_done()
    assert pool.take() is connection
    second = ask(pool, connection)
    await (await engine.next_request()).respond(200, b"b")
    assert await second.ended() is None
    pool.close()


# What the loop has, and has not, seen of an engine that closes an idle connection


async def test_a_kept_connection_that_the_engine_closes_leaves_the_pool_at_once() -> None:
    async with RawServer() as server:
        pool = Pool(server.url, connect_timeout=5, loop=asyncio.get_running_loop())
        taker = ask(pool, await pool.connect())
        peer = await server.peer()
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na")
        assert await taker.ended() is None
        assert repr(pool).endswith("open=1 idle=1>")
        peer.close()
        await until(lambda: repr(pool).endswith("open=0 idle=0>"))


@pytest.mark.parametrize("last", [b"", b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"])
async def test_an_end_that_the_loop_has_not_read_yet_is_seen_when_a_connection_is_taken(last: bytes) -> None:
    """No turn of the loop lies between the engine's FIN and `take`: only the kernel knows of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        pool = Pool(f"http://127.0.0.1:{port}", connect_timeout=5, loop=asyncio.get_running_loop())
        connection = await pool.connect()
        accepted, _ = listener.accept()
        pool.release(connection)
        assert pool.take() is connection
        pool.release(connection)
        accepted.sendall(last)
        accepted.shutdown(socket.SHUT_WR)
        assert connection.usable, "the loop cannot know"
        assert pool.take() is None
        accepted.close()
        pool.close()


async def test_an_answer_before_the_request_was_read_is_taken_and_closes_the_connection() -> None:
    """Whatever is left of the request, the engine may take for the next one."""
    async with RawServer() as server:
        pool = Pool(server.url, connect_timeout=5, loop=asyncio.get_running_loop())
        connection, taker = await pool.connect(), Taker()
        connection.send(pool.request("POST", "/x", (), b"x" * 2**25), taker)
        peer = await server.peer()
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        assert await taker.ended() is None
        assert (taker.status, taker.data, connection.usable) == (413, b"no", False)
        assert pool.take() is None


async def test_an_engine_that_half_closes_has_ended_its_answer() -> None:
    async with RawServer() as server:
        pool = Pool(server.url, connect_timeout=5, loop=asyncio.get_running_loop())
        taker = ask(pool, await pool.connect())
        peer = await server.peer()
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        peer.half_close()
        assert await taker.ended() is None
        assert taker.data == b"all of it"
        assert await peer.gone() == b""


async def test_a_held_connection_reads_on_to_its_end_when_its_receiver_is_through(
    engine: Engine, pool: Pool
) -> None:
    connection = await pool.connect()
    taker = ask(pool, connection)
    turn = await engine.next_request()
    await turn.start()
    await turn.frame(b"data: [DONE]\n\n")
    await taker.until(b"\n\n")
    connection.throttle(taker, True)
    connection.release(taker, content=True)
    assert repr(connection) == "<Connection chunked draining>"
    await turn.end()
    await until(lambda: repr(connection) == "<Connection idle>")
    assert pool.take() is connection
    pool.close()


async def test_an_answer_that_only_closing_ends_is_not_waited_for(engine: Engine, pool: Pool) -> None:
    connection = await pool.connect()
    taker = ask(pool, connection)
    turn = await engine.next_request()
    await turn.raw(b"HTTP/1.1 200 OK\r\n\r\ndata: [DONE]\n\n")
    await taker.until(b"\n\n")
    connection.release(taker, content=True)
    assert repr(connection) == "<Connection closed>"
    await turn.cancelled()


async def test_a_receiver_that_leaves_in_the_middle_of_a_read_hears_no_more_of_it(
    engine: Engine, pool: Pool
) -> None:
    connection = await pool.connect()

    class Leaver(Taker):
        def head(self, status: int, headers: list[tuple[str, str]], known: object = None) -> None:
            super().head(status, headers)
            connection.release(self, content=False)

    leaver = Leaver()
    connection.send(pool.request("GET", "/x", (), b""), leaver)
    await engine.next_request()
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    assert (leaver.status, leaver.data, leaver.endings) == (200, b"", [])
    assert pool.take() is None


async def test_a_connection_tells_what_it_is_doing(engine: Engine, pool: Pool) -> None:
    connection = await pool.connect()
    told = [repr(connection)]
    ask(pool, connection)
    told.append(repr(connection))
    for data in (b"HTTP/1.1 200 OK\r\n", b"Content-Length: 2\r\n\r\n", b"hi"):
        connection.data_received(data)
        told.append(repr(connection))
    pool.close()
    states = ["idle", "waiting", "head", "content-length", "idle"]
    assert told == [f"<Connection {state}>" for state in states]
    assert repr(connection) == "<Connection closed>"


async def test_what_an_engine_says_unasked_is_no_fault_of_ours(engine: Engine, pool: Pool) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, words: told.append(words))
    connection = await pool.connect()
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    assert (told, connection.received) == ([], False)
    assert not connection.usable

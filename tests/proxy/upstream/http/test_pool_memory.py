"""The pool over transports in memory: which connection is taken, kept or closed, and requests of our own."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

import pytest

from proxy.errors import Code, GatewayError
from proxy.upstream.http.connection import Connection
from proxy.upstream.http.pool import IDLE_SECONDS, MAX_POLL, Pool
from proxy.upstream.pulse import Pulse
from tests.kit.clock import virtual
from tests.kit.connection_kit import HI, Transport


class House:
    """A pool whose new connections are over transports in memory."""

    def __init__(self, url: str = "http://h", **more: object) -> None:
        self.pool = Pool(url, connect_timeout=5, loop=asyncio.get_running_loop(), **more)  # type: ignore[arg-type]
        self.made: list[tuple[Connection, Transport]] = []
        self.pool._dial = self.dial  # type: ignore[method-assign]

    def connection(self) -> tuple[Connection, Transport]:
        connection, transport = Connection(self.pool), Transport()
        connection.connection_made(transport)
        self.made.append((connection, transport))
        return connection, transport

    async def dial(self) -> Connection:
        return self.connection()[0]

    def closed(self) -> list[bool]:
        return [bool(transport.closing) for _, transport in self.made]


@virtual
async def test_a_kept_connection_is_taken_until_its_time_is_over() -> None:
    for seconds, taken in ((IDLE_SECONDS - 0.01, True), (IDLE_SECONDS, False)):
        house = House()
        connection, _ = house.connection()
        house.pool.release(connection)
        connection.idle_since = asyncio.get_running_loop().time() - seconds
        assert (house.pool.take() is connection) is taken
        assert house.closed() == [not taken]
        assert repr(house.pool).endswith("idle=0>")
        house.pool.close()


@virtual
async def test_one_that_is_closed_or_has_something_to_read_is_passed_over() -> None:
    house = House()
    good, closed, loud = (house.connection()[0] for _ in range(3))
    for connection in (good, closed, loud):
        house.pool.release(connection)
    house.made[1][1].close()
    loud._poll = type("Poll", (), {"poll": lambda self, wait: [1]})()
    assert house.pool.take() is good
    assert house.made[2][1].closing == "aborted"
    house.pool.close()


@virtual
async def test_what_is_given_back_reads_on_up_to_a_bound_and_one_sweep_is_due() -> None:
    house = House(max_idle=1)
    (one, first), (other, second) = house.connection(), house.connection()
    one._held = first.paused = True
    house.pool.release(one)
    sweeper = house.pool._sweeper
    house.pool.release(other)
    assert (first.paused, house.closed(), house.pool._sweeper is sweeper) == (False, [False, True], True)
    assert second.closing == "aborted"
    assert list(house.pool._idle) == [one]
    await asyncio.sleep(IDLE_SECONDS)
    assert (house.closed(), house.pool._sweeper) == ([True, True], None)


@virtual
async def test_one_that_is_lost_while_it_waits_is_forgotten() -> None:
    house = House()
    connection = await house.pool.connect()
    house.pool.release(connection)
    connection.connection_lost(None)
    assert repr(house.pool) == "<Pool http://h open=0 idle=0>"
    house.pool.close()
    late = house.connection()[0]
    house.pool.release(late)
    assert (house.closed(), house.pool._idle, house.pool._sweeper) == ([False, True], {}, None)


@virtual
async def test_the_sweep_waits_for_the_oldest_that_is_left() -> None:
    house = House()
    loop = asyncio.get_running_loop()
    for seconds in (0.0, 1.0, 2.0):
        await asyncio.sleep(seconds - loop.time() if seconds else 0)
        house.pool.release(house.connection()[0])
    await asyncio.sleep(IDLE_SECONDS - 1.5)
    assert house.closed() == [True, False, False]
    await asyncio.sleep(1.0)
    assert house.closed() == [True, True, False]
    await asyncio.sleep(1.0)
    assert house.closed() == [True, True, True]


@virtual
async def test_a_pool_that_is_closed_has_no_timer_and_no_connection() -> None:
    house = House()
    kept = await house.pool.connect()
    used = await house.pool.connect()
    house.pool.release(kept)
    sweeper = house.pool._sweeper
    assert sweeper is not None
    house.pool.close()
    assert (sweeper.cancelled(), house.pool._sweeper, house.closed()) == (True, None, [True, True])
    assert house.pool.take() is None
    for connection in (kept, used):
        house.pool.discard(connection)
        house.pool.discard(connection)
    assert repr(house.pool) == "<Pool http://h open=0 idle=0>"


@virtual
async def test_what_is_idle_can_be_closed_at_once_and_what_is_used_is_not() -> None:
    house = House()
    connections = [await house.pool.connect() for _ in range(3)]
    for connection in connections[:2]:
        house.pool.release(connection)
    house.pool.drop_idle()
    assert (house.closed(), house.pool._idle) == ([True, True, False], {})
    house.pool.close()


# -- how a request is written -------------------------------------------------------------------------


@virtual
async def test_the_key_for_an_engine_is_in_each_request_until_it_is_another() -> None:
    pool = House("http://u:p@h:81/base", api_key="k").pool
    for key, line in (
        ("k", b"Authorization: Bearer k\r\n"),
        ("other", b"Authorization: Bearer other\r\n"),
        ("", b""),
    ):
        pool.renew(None, key)
        head = b"GET /base/x HTTP/1.1\r\nHost: h:81\r\n" + line
        assert pool.request("GET", "/x", [("A", "b")], b"") == head + b"A: b\r\n\r\n"
        with pytest.raises(GatewayError):
            pool.request("GET", "/x", [("A", "b\r\nc")], b"")


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "POST", "PATCH"])
@virtual
async def test_a_length_is_told_where_there_is_a_body_or_one_is_usual(method: str) -> None:
    pool = House().pool
    assert b"Content-Length: 2\r\n" in pool.request(method, "/", (), b"hi")
    assert (b"Content-Length: 0\r\n" in pool.request(method, "/", (), b"")) is (method in ("POST", "PATCH"))


@virtual
async def test_a_context_is_taken_where_the_engine_speaks_tls() -> None:
    first, second = ssl.create_default_context(), ssl.create_default_context()
    for url, context in (("https://h", second), ("http://h", None)):
        pool = House(url, tls=first if context else None).pool
        pool.renew(None, "")
        assert pool._tls is (first if context else None)
        pool.renew(second, "")
        assert pool._tls is context
    assert House("https://h").pool._tls is not None


# -- requests of our own ------------------------------------------------------------------------------


async def asked(house: House, answer: Callable[[Connection], object], **more: object) -> tuple[int, bytes]:
    """A request of our own, whose connections do what `answer` has them do."""
    task = asyncio.ensure_future(house.pool.ask("POST", "/x", b"{}", **more))  # type: ignore[arg-type]
    done = 0
    while not task.done():
        await asyncio.sleep(0)
        for connection, transport in house.made[done:]:
            if transport.written:
                done += 1
                answer(connection)
    return await task


@virtual
async def test_a_request_of_our_own_says_what_it_is_and_keeps_its_connection() -> None:
    house = House()
    assert await asked(house, lambda c: c.data_received(HI), name="check") == (200, b"hi")
    ((connection, transport),) = house.made
    assert transport.written == (
        b"POST /x HTTP/1.1\r\nHost: h\r\nAccept: application/json\r\nX-Request-Id: check\r\n"
        b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert house.pool.take() is connection
    house = House()
    task = asyncio.ensure_future(house.pool.get("/y"))
    await asyncio.sleep(0.01)
    assert house.made[0][1].written == b"GET /y HTTP/1.1\r\nHost: h\r\nAccept: application/json\r\n\r\n"
    house.made[0][0].data_received(HI)
    assert await task == (200, b"hi")
    house.pool.close()


@pytest.mark.parametrize(
    ("kept", "fresh", "received", "made"),
    [
        (True, False, b"", 2),  # it had died: asked again
        (True, False, b"HTTP/1.1 2", 1),  # an answer had begun
        (False, False, b"", 1),
        (True, True, b"", 2),  # the kept one is left alone
    ],
)
@virtual
async def test_only_a_kept_connection_without_a_byte_of_an_answer_is_replaced(
    kept: bool, fresh: bool, received: bytes, made: int
) -> None:
    house = House()
    if kept:
        house.pool.release(house.connection()[0])

    def dies(connection: Connection) -> None:
        if received:
            connection.data_received(received)
        connection.connection_lost(None)

    with pytest.raises(GatewayError) as caught:
        await asked(house, dies, fresh=fresh)
    assert caught.value.code is Code.UPSTREAM_UNREACHABLE
    assert len(house.made) == made
    assert (house.pool.take() is not None) is fresh
    house.pool.close()


@pytest.mark.parametrize(("more", "code"), [(0, None), (1, Code.UPSTREAM_TOO_LARGE)])
@virtual
async def test_an_answer_of_our_own_request_is_bounded_to_the_byte(more: int, code: Code | None) -> None:
    house = House()

    def answer(connection: Connection) -> None:
        connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_POLL + more))
        for size in (1000, MAX_POLL - 1000 + more):
            connection.data_received(b"x" * size)

    house.pool.reading._left = 1 << 30
    house.pool.reading._size = 1 << 30
    if code is None:
        status, body = await asked(house, answer)
        assert (status, len(body)) == (200, MAX_POLL)
    else:
        with pytest.raises(GatewayError) as caught:
            await asked(house, answer)
        assert caught.value.code is code
    house.pool.close()


@virtual
async def test_one_that_waits_no_more_closes_its_connection() -> None:
    house = House()
    task = asyncio.ensure_future(house.pool.get("/"))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert house.closed() == [True]
    house.pool.close()


@virtual
async def test_a_connection_that_took_too_long_while_we_were_paused_is_tried_again() -> None:
    for code, paused, tries in (
        (Code.UPSTREAM_CONNECT_TIMEOUT, True, 3),
        (Code.UPSTREAM_CONNECT_TIMEOUT, False, 1),
        (Code.UPSTREAM_UNREACHABLE, True, 1),
    ):
        pulse = Pulse(asyncio.get_running_loop())
        pulse.lost = lambda since, paused=paused: 9.0 * paused  # type: ignore[method-assign,misc]
        house, tried = House(pulse=pulse), list[int]()

        async def dial(code: Code = code, tried: list[int] = tried) -> Connection:
            tried.append(1)
            raise GatewayError(code, "no")

        house.pool._dial = dial  # type: ignore[method-assign]
        with pytest.raises(GatewayError):
            await house.pool.connect()
        assert (len(tried), len(house.pool)) == (tries, 0)

"""The pool of connections to one engine, on loopback: reuse, refusals, polls, and how a request is written."""

from __future__ import annotations

import asyncio

import pytest

from proxy.errors import Code, GatewayError
from proxy.upstream.backends import Backend, Backends
from proxy.upstream.health_checks import HealthChecks
from proxy.upstream.http.connection import Connection
from proxy.upstream.http.pool import IDLE_SECONDS, KEPT, KEPT_LENGTH, MAX_IDLE, MAX_POLL, Pool
from tests.kit.clock import virtual
from tests.kit.engine import Engine, full_backlog


def pool_of(url: str, connect_timeout: float = 5) -> Pool:
    return Pool(url, connect_timeout=connect_timeout, loop=asyncio.get_running_loop())


async def test_a_poll_gives_status_and_body_and_keeps_its_connection(engine: Engine) -> None:
    pool = pool_of(engine.url)
    status, body = await pool.get("/v1/models")
    assert status == 200
    assert b'"m1"' in body
    for _ in range(3):
        await pool.get("/health")
    assert (engine.accepted, len(pool)) == (1, 1)
    pool.close()


async def test_polls_at_the_same_time_have_a_connection_each(engine: Engine) -> None:
    pool = pool_of(engine.url)
    await asyncio.gather(*(pool.get("/health") for _ in range(3)))
    assert engine.accepted == 3
    pool.close()
    await engine.until(lambda: not engine.open_connections)
    assert len(pool) == 0


async def test_a_kept_connection_that_died_is_replaced_and_nobody_sees_it(engine: Engine) -> None:
    pool = pool_of(engine.url)
    engine.take("/health")
    task = asyncio.ensure_future(pool.get("/health"))
    await (await engine.next_request()).respond(200)
    await task
    task = asyncio.ensure_future(pool.get("/health"))
    await (await engine.next_request()).drop(reset=True)
    await (await engine.next_request()).respond(200, b"again")
    assert await task == (200, b"again")
    assert engine.accepted == 2
    pool.close()


async def test_a_fresh_connection_that_dies_is_not_tried_again(engine: Engine) -> None:
    pool = pool_of(engine.url)
    engine.take("/health")
    task = asyncio.ensure_future(pool.get("/health"))
    await (await engine.next_request()).drop()
    with pytest.raises(GatewayError) as caught:
        await task
    assert caught.value.code is Code.UPSTREAM_UNREACHABLE
    assert len(engine.requests) == 1


async def test_an_engine_that_refuses_is_unreachable(engine: Engine) -> None:
    engine.stop_listening()
    pool = pool_of(engine.url)
    with pytest.raises(GatewayError, match="could not be reached") as caught:
        await pool.get("/health")
    assert caught.value.code is Code.UPSTREAM_UNREACHABLE
    assert len(pool) == 0


async def test_a_host_that_does_not_exist_is_unreachable() -> None:
    with pytest.raises(GatewayError) as caught:
        await pool_of("http://no-such-host.invalid:1").connect()
    assert caught.value.code is Code.UPSTREAM_UNREACHABLE


async def test_an_engine_that_does_not_take_the_connection_times_out() -> None:
    with full_backlog() as url, pytest.raises(GatewayError, match=r"after 0\.05 s") as caught:
        await pool_of(url, 0.05).connect()
    assert caught.value.code is Code.UPSTREAM_CONNECT_TIMEOUT


async def test_garbage_is_a_protocol_error(engine: Engine) -> None:
    pool = pool_of(engine.url)
    engine.take("/health")
    task = asyncio.ensure_future(pool.get("/health"))
    turn = await engine.next_request()
    await turn.raw(b"220 mail ready\r\n")
    with pytest.raises(GatewayError) as caught:
        await task
    assert caught.value.code is Code.UPSTREAM_PROTOCOL
    await turn.cancelled()
    assert pool.take() is None


async def test_a_polled_answer_without_bound_is_cut_off(engine: Engine) -> None:
    pool = pool_of(engine.url)
    engine.take("/health")
    task = asyncio.ensure_future(pool.get("/health"))
    turn = await engine.next_request()
    await turn.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * MAX_POLL))
    with pytest.raises(ConnectionError):
        while True:
            await turn.raw(b"x" * 65536)
    with pytest.raises(GatewayError) as caught:
        await task
    assert caught.value.code is Code.UPSTREAM_TOO_LARGE


async def test_a_poll_that_is_cancelled_closes_its_connection(engine: Engine) -> None:
    pool = pool_of(engine.url)
    engine.take("/health")
    task = asyncio.ensure_future(pool.get("/health"))
    turn = await engine.next_request()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turn.cancelled()
    assert pool.take() is None


async def test_the_freshest_connection_is_taken_first_and_a_stale_one_never(engine: Engine) -> None:
    pool = pool_of(engine.url)
    old, new = await pool.connect(), await pool.connect()
    pool.release(old)
    pool.release(new)
    assert pool.take() is new
    old.idle_since -= IDLE_SECONDS
    assert pool.take() is None
    assert old.usable is False
    pool.close()


async def test_no_more_connections_are_kept_than_the_bound(engine: Engine) -> None:
    pool = pool_of(engine.url)
    pool._idle = {Connection(pool): None for _ in range(MAX_IDLE)}
    connection = await pool.connect()
    pool.release(connection)
    assert connection.usable is False
    assert len(pool._idle) == MAX_IDLE
    pool.close()


async def test_as_many_are_kept_as_may_be_in_use(engine: Engine) -> None:
    """A burst's connections are there for the next one, however large: nothing churns."""
    pool = Pool(engine.url, connect_timeout=5, loop=asyncio.get_running_loop(), max_idle=1000)
    pool._idle = {Connection(pool): None for _ in range(999)}
    last, over = await pool.connect(), await pool.connect()
    pool.release(last)
    pool.release(over)
    assert (last.usable, over.usable, len(pool._idle)) == (True, False, 1000)
    pool.close()


async def test_a_pool_that_is_closed_keeps_nothing_that_comes_back(engine: Engine) -> None:
    pool = pool_of(engine.url)
    connection = await pool.connect()
    pool.close()
    other = await pool.connect()
    pool.release(other)
    assert (connection.usable, other.usable) == (False, False)


async def test_a_request_is_written_under_the_engines_own_path() -> None:
    pool = pool_of("http://user:secret@host:81/base/")
    assert pool.request("POST", "/v1/x?y=1", [("A", "é")], b"hi") == (
        "POST /base/v1/x?y=1 HTTP/1.1\r\nHost: host:81\r\nA: é\r\nContent-Length: 2\r\n\r\nhi".encode()
    )
    assert (pool.address.host, pool.address.port) == ("host", 81)


@pytest.mark.parametrize(("method", "told"), [("GET", False), ("HEAD", False), ("POST", True), ("PUT", True)])
async def test_a_length_of_nothing_is_told_only_where_a_body_is_usual(method: str, told: bool) -> None:
    assert (b"Content-Length: 0" in pool_of("http://h").request(method, "/", (), b"")) is told


@pytest.mark.parametrize("bad", ["a\r\nEvil: 1", "a\nb", "a\rb", "a\0b"])
async def test_a_line_break_is_refused_wherever_it_is(bad: str) -> None:
    pool = pool_of("http://h")
    for method, path, header in (("GET", bad, ("A", "b")), (bad, "/", ("A", "b"))):
        with pytest.raises(GatewayError):
            pool.request(method, path, [header], b"")
    for header in ((bad, "b"), ("A", bad)):
        with pytest.raises(GatewayError) as caught:
            pool.request("GET", "/", [header], b"")
        assert caught.value.code is Code.INVALID_HEADER


@virtual
async def test_connections_that_nobody_takes_are_closed_and_the_sweeper_rests() -> None:
    loop = asyncio.get_running_loop()
    pool = Pool("http://h", connect_timeout=5, loop=loop)
    transports = []
    for _ in range(2):
        connection, transport = Connection(pool), _Transport()
        connection.connection_made(transport)
        pool.release(connection)
        transports.append(transport)
        await asyncio.sleep(1)
    await asyncio.sleep(IDLE_SECONDS - 1.5)
    assert [t.closed for t in transports] == [True, False]
    await asyncio.sleep(1)
    assert [t.closed for t in transports] == [True, True]
    assert (repr(pool), pool._sweeper) == ("<Pool http://h open=0 idle=0>", None)


class _Transport(asyncio.Transport):
    closed = False

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def resume_reading(self) -> None:
        pass


@pytest.mark.parametrize("bad", ["/a b", "/a HTTP/1.1\r\nEvil: 1", "/ HTTP/1.1"])
async def test_a_space_in_the_path_would_end_it_and_is_refused(bad: str) -> None:
    with pytest.raises(GatewayError, match="space"):
        pool_of("http://h").request("GET", bad, (), b"")


async def test_a_slow_head_is_bounded_by_who_asks(engine: Engine) -> None:
    """The connection has no clock of its own: the feeder's timers bound an exchange, the backends' a poll."""
    engine.take("/v1/models")
    timeout = 0.05
    while True:  # on a busy machine the time may be over before the models are asked for
        pool = pool_of(engine.url)
        backends = Backends([Backend(engine.url, pool, 1)])
        refreshing = asyncio.ensure_future(HealthChecks(backends, timeout=timeout).check())
        asked = asyncio.ensure_future(engine.next_request())
        await asyncio.wait([refreshing, asked], return_when=asyncio.FIRST_COMPLETED)
        if asked.done() and not refreshing.done() and not (await asked).is_cancelled:
            break
        asked.cancel()
        await refreshing
        pool.close()
        await engine.until(lambda: not engine.open_connections)
        while not engine._queue.empty():  # what came too late
            await engine.next_request()
        timeout *= 2
    turn = await asked
    await turn.raw(b"HTTP/1.1 200 OK\r\nX: ")
    await refreshing
    assert backends.all[0].detail == f"no answer to /v1/models in {timeout:g} s"
    await turn.cancelled()
    assert len(pool._idle) == 0


async def test_request_lines_that_are_kept_are_bounded_and_renewed_with_the_key() -> None:
    pool = pool_of("http://h/base")
    for number in range(3 * KEPT):
        path = f"/{number}" if number % 2 else f"/{number}" + "x" * KEPT_LENGTH
        wanted = f"POST /base{path} HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n!".encode()
        assert [pool.request("POST", path, (), b"!") for _ in range(2)] == [wanted, wanted]
        assert len(pool._begun) <= KEPT
    pool.renew(None, "key")
    assert b"Authorization: Bearer key\r\n" in pool.request("POST", path, (), b"!")

"""One connection to an engine over a transport in memory: what each call does to its pool and its receiver."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from proxy.errors import Code
from proxy.upstream.http.connection import DRAIN_SECONDS, Connection
from proxy.upstream.http.response import ResponseParser
from tests.kit.connection_kit import CHUNKED, HI, Line, Noting, Pool, Transport


@pytest.fixture
async def line() -> Line:
    """With a budget that is never used up. Faults that are contained are noted."""
    line = Line()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: line.faults.append(context["message"]))
    return line


# -- an exchange ----------------------------------------------------------------------------------------


def test_a_request_is_written_and_only_its_answer_is_received() -> None:
    line = Line()
    for _ in range(2):
        taker = line.ask()
        assert not line.connection.received
        line.read(HI)
        assert (taker.got, line.connection.received) == ([200, b"hi", "end"], True)
    assert line.transport.written == b"GET / HTTP/1.1\r\n\r\n" * 2
    assert (line.pool.told, line.transport.closing) == (["release"] * 2, "")


@pytest.mark.parametrize(("method", "bodiless"), [(b"HEAD", True), (b"GET", False), (b"HEADY", False)])
def test_only_an_answer_to_head_has_no_body(method: bytes, bodiless: bool) -> None:
    line = Line()
    taker = line.ask(method + b" / HTTP/1.1\r\n\r\n")
    line.read(HI.removesuffix(b"hi"))
    assert taker.got == ([200, "end"] if bodiless else [200])


@pytest.mark.parametrize("how", ["closing", "gone"])
def test_a_request_on_a_connection_that_is_over_is_lost_in_a_later_turn(how: str) -> None:
    for released in (False, True):
        line = Line()
        if how == "closing":
            line.transport.close()
        else:
            line.connection.connection_lost(None)
        taker = line.ask()
        assert (line.transport.written, taker.got) == (b"", [])
        if released:
            line.connection.release(taker, content=True)
        line.pool.fake.run()
        line.pool.fake.run()
        assert taker.got == ([] if released else [Code.UPSTREAM_UNREACHABLE])


@pytest.mark.parametrize(
    ("answer", "unsent", "told", "closing"),
    [
        (HI, 0, ["release"], ""),
        (HI, 1, [], "aborted"),  # the request is still going out
        (HI + b"more", 0, [], "aborted"),
        (HI.replace(b"OK", b"OK\r\nConnection: close"), 0, [], "closed"),
        (HI.replace(b"OK", b"OK\r\nConnection: close"), 1, [], "aborted"),
    ],
)
def test_a_connection_is_kept_only_where_nothing_is_in_doubt(
    answer: bytes, unsent: int, told: list[str], closing: str
) -> None:
    line = Line()
    taker = line.ask()
    line.transport.unsent = unsent
    line.read(answer)
    assert (taker.got, line.pool.told, line.transport.closing) == ([200, b"hi", "end"], told, closing)


def test_one_that_is_closing_is_not_kept() -> None:
    line = Line()
    taker = line.ask()
    line.transport.closing = "by the other side"
    line.read(HI)
    assert (taker.got, line.pool.told) == ([200, b"hi", "end"], [])


def test_what_nobody_asked_for_ends_it_at_once() -> None:
    line = Line()
    line.read(HI)
    assert (line.pool.told, line.transport.closing, line.connection.received) == (["discard"], "aborted", False)


# -- receivers that are through -------------------------------------------------------------------------


def drained(status: int, *, content: bool = True) -> tuple[Line, Noting]:
    line = Line()
    taker = line.ask()
    line.read(CHUNKED % status + b"1\r\na\r\n")
    line.connection.throttle(taker, hold=True)
    line.connection.release(taker, content=content)
    return line, taker


def test_a_receiver_that_wants_no_more_closes_it() -> None:
    line, taker = drained(200, content=False)
    assert (taker.got, line.transport.closing, line.pool.fake.handles) == ([200, b"a"], "aborted", [])


@pytest.mark.parametrize(("status", "closing"), [(200, "aborted"), (399, "aborted"), (400, ""), (503, "")])
def test_more_of_an_answer_that_was_over_closes_it_unless_it_was_a_refusal(status: int, closing: str) -> None:
    line, taker = drained(status)
    assert not line.transport.paused
    line.read(b"1\r\nb\r\n")
    assert (taker.got, line.transport.closing) == ([status, b"a"], closing)


def test_an_answer_whose_end_comes_soon_keeps_its_connection_and_its_timer_goes() -> None:
    line, taker = drained(200)
    (timer,) = line.pool.fake.handles
    assert (timer.delay, "draining" in repr(line.connection)) == (DRAIN_SECONDS, True)
    line.read(b"0\r\n\r\n")
    assert (line.pool.told, timer.cancelled, taker.got) == (["release"], True, [200, b"a"])
    assert repr(line.connection) == "<Connection idle>"


def test_an_answer_whose_end_does_not_come_closes_its_connection_and_no_later_one() -> None:
    line, _ = drained(200)
    (timer,) = line.pool.fake.handles
    timer.call()
    assert line.transport.closing == "aborted"
    line, _ = drained(200)
    (timer,) = line.pool.fake.handles
    line.read(b"0\r\n\r\n")
    line.ask()
    timer.call()
    assert line.transport.closing == ""


def test_a_head_that_comes_after_its_receiver_left_is_no_body() -> None:
    line = Line()
    taker = line.ask()
    line.connection.release(taker, content=True)
    line.read(HI.removesuffix(b"hi"))
    assert (taker.got, line.transport.closing) == ([], "")
    line.read(b"h")
    assert line.transport.closing == "aborted"


def test_only_the_receiver_of_this_exchange_holds_or_releases_it() -> None:
    line = Line()
    old = line.ask()
    line.read(HI)
    new = line.ask()
    line.connection.throttle(old, hold=True)
    line.connection.release(old, content=False)
    assert (line.transport.paused, line.transport.closing) == (False, "")
    line.connection.throttle(new, hold=True)
    assert line.transport.paused
    line.connection.throttle(old, hold=False)
    assert line.transport.paused
    line.connection.throttle(new, hold=False)
    assert not line.transport.paused


@pytest.mark.parametrize("how", ["closing", "gone"])
def test_nothing_is_paused_on_a_transport_that_is_over(how: str) -> None:
    line = Line()
    taker = line.ask()
    if how == "closing":
        line.transport.close()
    else:
        line.connection._transport = None
    line.connection.throttle(taker, hold=True)
    assert not line.transport.paused
    line.connection.release(taker, content=True)
    assert line.pool.fake.handles == []


# -- faults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("breaks", "got", "faults"),
    [
        ("body", [200, b"hi", Code.INTERNAL], ["an engine's answer"]),
        ("head", [200, Code.INTERNAL], ["an engine's answer"]),
        ("body lost", [200, b"hi", Code.INTERNAL], ["an engine's answer", "an engine's answer that was lost"]),
        ("end", [200, b"hi", "end", Code.INTERNAL], ["the end of an engine's answer"]),
        (
            "end lost",
            [200, b"hi", "end", Code.INTERNAL],
            ["the end of an engine's answer", "an engine's answer that was lost"],
        ),
    ],
)
async def test_what_a_receiver_raises_ends_its_exchange_and_is_told(
    line: Line, breaks: str, got: list[Any], faults: list[str]
) -> None:
    taker = line.ask(breaks=breaks)
    line.read(HI)
    assert (taker.got, line.faults) == (got, faults)
    assert line.transport.closing == ("" if "end" in breaks else "aborted")


async def test_a_receiver_that_left_and_raises_hears_no_more(line: Line) -> None:
    taker = line.ask(breaks="body")
    taker.then = lambda: line.connection.release(taker, content=False)
    line.read(HI)
    assert (taker.got, line.faults, line.transport.closing) == ([200], [], "aborted")
    line = Line()
    taker = line.ask(breaks="body")

    def leave() -> None:
        if taker.got == [200, b"hi"]:
            line.connection.release(taker, content=False)

    taker.then = leave
    line.read(HI)
    assert taker.got == [200, b"hi"]


def test_an_answer_that_cannot_be_read_is_lost_and_closes_the_connection() -> None:
    line = Line()
    taker = line.ask()
    line.read(b"SSH-2.0\r\n")
    assert (taker.got, line.transport.closing) == ([Code.UPSTREAM_PROTOCOL], "aborted")
    assert repr(line.connection) == "<Connection closed>"


@pytest.mark.parametrize(
    ("method", "reads"),
    [
        ("on_header", (b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n",)),
        ("on_headers_complete", (b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n",)),
        ("on_message_complete", (CHUNKED % 200, b"1;x=y\r\na\r\n0\r\n\r\n")),
    ],
)
async def test_what_our_reading_of_an_answer_raises_is_no_fault_of_the_engine(
    line: Line, monkeypatch: pytest.MonkeyPatch, method: str, reads: tuple[bytes, ...]
) -> None:
    def fails(parser: object, *arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ResponseParser, method, fails)
    taker = line.ask()
    line.read(*reads)
    assert (taker.got[-1], line.faults) == (Code.INTERNAL, ["an engine's answer"])
    assert line.transport.closing == "aborted"


async def test_an_answer_that_cannot_be_read_after_its_receiver_left_is_nobody_s(line: Line) -> None:
    taker = line.ask()
    line.read(CHUNKED % 200)
    taker.then = lambda: line.connection.release(taker, content=False)
    line.read(b"1\r\na\r\nzz\r\n")
    assert taker.got == [200, b"a"]


async def test_a_pool_that_cannot_take_it_back_harms_no_answer(line: Line) -> None:
    taker = line.ask()
    line.pool.breaks = True
    line.read(HI)
    assert (taker.got, line.faults, line.transport.closing) == (
        [200, b"hi", "end"],
        ["the end of an exchange"],
        "aborted",
    )


async def test_the_parser_is_let_go_of_and_where_that_fails_its_receiver_hears_all_the_same(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    taker = line.ask()
    answer = line.connection._answer
    assert answer is not None
    line.read(HI)
    assert (answer._parser, taker.got[-1]) == (None, "end")

    def fails(self: ResponseParser) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ResponseParser, "close", fails)
    taker = line.ask()
    line.read(HI)
    assert (taker.got, line.faults) == ([200, b"hi", "end"], ["the end of an exchange"])


async def test_an_end_that_a_receiver_does_not_take_is_an_error_to_it(line: Line) -> None:
    taker = line.ask(breaks="end")
    line.read(b"HTTP/1.1 200 OK\r\n\r\nhi")
    line.connection.connection_lost(None)
    assert (taker.got, line.faults) == ([200, b"hi", "end", Code.INTERNAL], ["the end of an engine's connection"])


# -- the end of a connection ------------------------------------------------------------------------------

UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nhi"
RESET = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


@pytest.mark.parametrize(
    ("read", "why", "last", "said"),
    [
        (b"", None, Code.UPSTREAM_UNREACHABLE, "before it answered."),
        (b"HTTP/1.1 200", RESET, Code.UPSTREAM_UNREACHABLE, "before it answered (Connection reset by peer)."),
        (HI[:-1], None, Code.UPSTREAM_TRUNCATED, "before the end of its answer."),
        (HI[:-1], RESET, Code.UPSTREAM_TRUNCATED, "before the end of its answer (Connection reset by peer)."),
        (UNTIL_CLOSE, None, "end", ""),
        (UNTIL_CLOSE, RESET, Code.UPSTREAM_TRUNCATED, "before the end of its answer (Connection reset by peer)."),
        (UNTIL_CLOSE, OSError("odd"), Code.UPSTREAM_TRUNCATED, "before the end of its answer (odd)."),
        (UNTIL_CLOSE, ValueError("odd"), Code.INTERNAL, ""),
        (b"", ValueError("odd"), Code.INTERNAL, ""),
        (HI[:-1], OSError(errno.ENOBUFS, "No buffer"), Code.LOCAL_RESOURCES, "(No buffer)"),
        (b"", OSError(errno.ENOBUFS, ""), Code.LOCAL_RESOURCES, "[Errno"),
    ],
)
def test_the_end_of_a_connection_says_what_it_means(
    read: bytes, why: Exception | None, last: object, said: str
) -> None:
    line = Line()
    taker = line.ask()
    if read:
        line.read(read)
    line.connection.connection_lost(why)
    assert taker.got[-1] == last
    assert said in "".join(taker.said)
    assert (line.pool.told, line.connection.usable) == (["discard"], False)


def test_an_idle_connection_that_the_engine_ends_leaves_the_pool() -> None:
    line = Line()
    assert line.connection.eof_received() is False
    assert (line.pool.told, line.transport.closing) == (["discard"], "aborted")
    line = Line()
    line.ask()
    assert line.connection.eof_received() is False
    assert (line.pool.told, line.transport.closing) == ([], "")
    line = Line()
    line.connection.connection_lost(None)
    assert line.pool.told == ["discard"]


def test_what_the_kernel_has_and_the_loop_has_not_read_is_seen() -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(Pool(1))
    transport = Transport()
    transport._extra = {"socket": ours}  # type: ignore[attr-defined]
    assert (connection.usable, connection.fresh(-1.0)) == (False, False)
    connection.connection_made(transport)
    assert (connection.usable, connection.fresh(-1.0), connection.fresh(0.0)) == (True, True, False)
    theirs.send(b"x")
    assert not connection.fresh(-1.0)
    ours.close()
    theirs.close()

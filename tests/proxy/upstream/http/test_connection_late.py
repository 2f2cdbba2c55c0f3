"""One connection to an engine where a turn of the loop is full: what it has read waits, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from proxy.errors import Code
from proxy.upstream.http.read_budget import PIECE, SMALL
from tests.kit.connection_kit import CHUNKED, Line, Noting

LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\nhi" + b"x" * 4000


@pytest.fixture
async def line() -> Line:
    """With a budget that is never used up. Faults that are contained are noted."""
    line = Line()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: line.faults.append(context["message"]))
    return line


@pytest.mark.parametrize(("size", "counted"), [(SMALL, False), (SMALL + 1, True)])
def test_small_reads_are_not_counted(size: int, counted: bool) -> None:
    line = Line()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"
    taker = line.ask()
    line.read(head.ljust(size, b"x"))
    assert line.pool.reading.most == (size if counted else 0)
    assert taker.got == [200, b"x" * (size - len(head))]


def full() -> tuple[Line, Noting]:
    """A line whose turn has no bytes left, with an answer of which a part was put off."""
    line = Line(1)
    taker = line.ask()
    line.pool.reading.take(5)
    line.read(LONG)
    assert (taker.got, line.transport.paused) == ([], True)
    return line, taker


def test_what_was_put_off_is_handled_in_order_in_a_later_turn() -> None:
    line, taker = full()
    line.read(b"y")  # small, but what came before it waits
    assert taker.got == []
    line.pool.fake.run()
    assert (taker.got, line.transport.paused) == ([200, b"hi" + b"x" * 4000 + b"y"], False)
    assert line.connection.deliver() == 0


def test_what_was_put_off_tells_how_much_it_was_and_leaves_a_held_line_held() -> None:
    line, taker = full()
    line.connection.throttle(taker, hold=True)
    assert line.connection.deliver() == len(LONG)
    assert line.transport.paused


@pytest.mark.parametrize(
    ("end", "last"),
    [
        (lambda line: line.connection.abort(), None),
        (lambda line: line.connection.connection_lost(None), Code.UPSTREAM_TRUNCATED),
        (lambda line: line.connection.eof_received(), b"hi" + b"x" * 4000),
    ],
)
def test_at_its_end_what_was_put_off_is_handled_once_or_not_at_all(
    end: Callable[[Line], object], last: object
) -> None:
    line, taker = full()
    end(line)
    before = list(taker.got)
    assert before[-1:] == ([] if last is None else [last])
    assert "0 wait" in repr(line.pool.reading)
    assert line.connection.deliver() == 0
    line.pool.fake.run()
    assert taker.got == before


async def test_faults_in_what_was_put_off_are_as_in_any_read(line: Line) -> None:
    for read, breaks, last in (
        (b"zz\r\n", "", Code.UPSTREAM_PROTOCOL),
        (b"1\r\na\r\n0\r\n\r\n", "body", Code.INTERNAL),
        (b"1\r\na\r\n0\r\n\r\n", "", "end"),
    ):
        line.faults.clear()
        late = Line(1)
        taker = late.ask(breaks=breaks)
        late.read(CHUNKED % 200)
        late.pool.reading.take(5)
        late.read(b"1000\r\n" + b"x" * 4096 + b"\r\n" + read)
        assert taker.got == [200]
        late.pool.fake.run()
        assert taker.got[-1] == last
        assert line.faults == (["an engine's answer"] if breaks else [])
        assert late.transport.closing == ("" if last == "end" else "aborted")


async def test_a_receiver_that_leaves_in_what_was_put_off_hears_no_more_of_it(line: Line) -> None:
    for read in (b"zz\r\n", b"0\r\n\r\n"):
        late = Line(1)
        taker = late.ask()
        late.read(CHUNKED % 200)
        late.pool.reading.take(5)
        late.read(b"1000\r\n" + b"x" * 4096 + b"\r\n" + read)
        taker.then = lambda late=late, taker=taker: late.connection.release(taker, content=False)  # type: ignore[misc]
        late.pool.fake.run()
        assert (taker.got, late.transport.closing) == ([200, b"x" * 4096], "aborted")


async def test_an_answer_whose_end_was_put_off_is_whole_where_its_connection_is_lost(line: Line) -> None:
    late = Line(1)
    taker = late.ask()
    late.read(CHUNKED % 200)
    late.pool.reading.take(5)
    late.read(b"1000\r\n" + b"x" * 4096 + b"\r\n0\r\n\r\n")
    late.connection.connection_lost(None)
    assert (taker.got, line.faults) == ([200, b"x" * 4096, "end"], [])


COUNTED = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
EVENTS = b"data: 1\n\n" * 20_000


def handled(taker: Noting) -> int:
    return sum(len(part) for part in taker.got if isinstance(part, bytes))


def test_short_lines_are_handled_a_piece_in_each_turn() -> None:
    line = Line(256 * 1024)
    taker = line.ask()
    line.read(COUNTED % len(EVENTS) + EVENTS)
    turns = [handled(taker)]
    while line.transport.paused:
        line.pool.fake.run()
        turns.append(handled(taker))
    assert max(after - before for before, after in zip([0, *turns], turns, strict=False)) <= PIECE
    assert len(turns) >= len(EVENTS) // PIECE
    assert b"".join(part for part in taker.got if isinstance(part, bytes)) == EVENTS
    assert (taker.got[-1], line.pool.told, line.transport.closing) == ("end", ["release"], "")


def test_short_lines_of_one_connection_leave_the_others_their_turn() -> None:
    line, other = Line(256 * 1024), Line()
    other.pool.reading = line.pool.reading
    taker, calm = line.ask(), other.ask()
    line.read(COUNTED % len(EVENTS) + EVENTS)
    other.read(LONG + b"x" * 4998)
    line.pool.fake.run()
    line.pool.fake.run()
    assert calm.got[-1] == "end"
    assert handled(taker) <= 3 * PIECE


def test_what_follows_the_end_of_an_answer_in_a_later_piece_closes_its_connection() -> None:
    line = Line(256 * 1024)
    head = COUNTED % 7000
    taker = line.ask()
    line.read((head + b"\n" * 7000).ljust(PIECE, b"\n") + b"\n" * PIECE)
    assert taker.got[-1] == "end"
    while line.pool.fake.handles:
        line.pool.fake.run()
    assert (line.pool.told, line.transport.closing) == ([], "aborted")
    line.connection.connection_lost(None)
    assert taker.got.count("end") == 1

    exactly = Line(256 * 1024)
    taker = exactly.ask()
    body = b"\n" * (PIECE - len(head))
    exactly.read(COUNTED % len(body) + body + b"\n" * PIECE)
    assert (taker.got[-1], exactly.pool.told, exactly.transport.closing) == ("end", [], "aborted")


@pytest.mark.parametrize("end", ["lost", "eof", "abort", "release"])
def test_at_its_end_all_pieces_are_handled_or_none(end: str) -> None:
    line = Line(256 * 1024)
    taker = line.ask()
    line.read(COUNTED % (len(EVENTS) + 1) + EVENTS)
    before = handled(taker)
    if end == "lost":
        line.connection.connection_lost(None)
        assert (handled(taker), taker.got[-1]) == (len(EVENTS), Code.UPSTREAM_TRUNCATED)
    elif end == "eof":
        line.connection.eof_received()
        assert handled(taker) == len(EVENTS)
    else:
        if end == "abort":
            line.connection.abort()
        else:
            line.connection.release(taker, content=False)
        assert handled(taker) == before
    assert "0 wait" in repr(line.pool.reading)
    assert line.connection.deliver() == 0


def test_a_receiver_that_leaves_in_one_piece_gets_no_other() -> None:
    line = Line(256 * 1024)
    taker = line.ask()
    line.read(COUNTED % len(EVENTS) + EVENTS)
    taker.then = lambda: line.connection.release(taker, content=False)
    while line.pool.fake.handles:
        line.pool.fake.run()
    assert handled(taker) <= 2 * PIECE
    assert line.transport.closing == "aborted"

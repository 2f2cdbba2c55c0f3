"""Events and chunks at their bounds: what a framer has begun, comments, sizes with most digits."""

from __future__ import annotations

import pytest

from proxy.errors import GatewayError
from proxy.wire import sse
from proxy.wire.sse import (
    MOST_LINES,
    SIZES,
    ChunkCheck,
    Framer,
    chunk,
    data_of,
    encode,
    field_of,
    is_comment,
    is_done,
    unchunks,
)


@pytest.mark.parametrize(
    ("data", "clear", "speaks"),
    [(b"", True, False), (b"\n\n", True, False), (b":", False, False), (b"d", False, True), (b"; a", False, True)],
)
def test_an_event_has_begun_that_is_or_is_no_comment(data: bytes, clear: bool, speaks: bool) -> None:
    framer = Framer(10)
    framer.feed(data)
    assert (not framer.pending, framer.speaks) == (clear, speaks)


def test_an_empty_event_at_the_very_beginning_is_one_however_lines_end_after_it() -> None:
    assert Framer(100).feed(b"\n\n: a\r\n\r\n") == [b"\n\n", b": a\r\n\r\n"]


@pytest.mark.parametrize(
    "fed", [[b"a\nb\n\n\n\nc\n\n"], [b"a\nb\n", b"\n\n\nc\n\n"], [b"a\n", b"b\n\n\n\nc\n", b"\n"]]
)
def test_empty_events_between_others_are_events(fed: list[bytes]) -> None:
    framer = Framer(100)
    assert [frame for data in fed for frame in framer.feed(data)] == [b"a\nb\n\n", b"\n\n", b"c\n\n"]


@pytest.mark.parametrize("data", [b"data: 789\n\n", b"data: 789\r\r", b"a\nb\nc\nde\n\n"])
def test_an_event_of_just_the_limit_is_an_event_and_one_byte_more_is_refused(data: bytes) -> None:
    assert Framer(len(data)).feed(data) == [data]
    assert Framer(len(data)).feed(data + data) == [data, data]
    for pieces in ([data], [data[:4], data[4:]], [data + b"x" * len(data)], [b"x" * len(data)]):
        with pytest.raises(GatewayError, match=f"larger than {len(data) - 1} bytes"):
            [framer.feed(piece) for framer in [Framer(len(data) - 1)] for piece in pieces]
    assert Framer(len(data)).feed(b"x" * len(data)) == []


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_has_so_many_lines_at_most(end: bytes) -> None:
    largest = (b"data: 1" + end) * (MOST_LINES - 1) + end
    assert Framer(1 << 20).feed(largest + b"x") == [largest]
    for step in (len(largest), 70_000):
        framer, more = Framer(1 << 20), b"data: 1" + end + largest + b"x"
        with pytest.raises(GatewayError, match=f"more than {MOST_LINES} lines"):
            [framer.feed(more[at : at + step]) for at in range(0, len(more), step)]
    single = b"data: 1\n\n" * MOST_LINES
    assert len(Framer(1 << 20).feed(single)) == MOST_LINES


@pytest.mark.parametrize(
    ("frame", "comment"),
    [
        (b": a\n\n", True),
        (b"\n\n", True),
        (b"event: ping\n\n", True),
        (b"id: 1\n\n", True),
        (b": data: error\n\n", True),
        (b"database: x\nevent: errors\n\n", True),
        (b"data: x\n\n", False),
        (b"data\n\n", False),
        (b"event: error\n\n", False),
        (b"event:  error \n\n", False),
        (b"event: error\ndata: x\n\n", False),
    ],
)
def test_a_comment_has_no_data_and_names_no_error(frame: bytes, comment: bool) -> None:
    assert is_comment(frame) is comment


def test_comments_without_those_words_are_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "field_of", lambda frame, name: pytest.fail("50,000 of them take 0.4 s"))
    assert is_comment(b": x\n\n")
    assert not is_comment(b"data:\n\n")


def test_a_carriage_return_before_the_first_line_feed_is_no_data() -> None:
    assert data_of(b"data: x\r\n\n") == b"x"
    assert data_of(b"data: xy\n") == b"xy"
    assert not is_done(b"data: [DONE]x\r\n\n")
    assert is_done(b"data: [DONE]\r\n\n")
    assert field_of(b"data: a\rdata:b\n\n", b"data") == [b"a", b"b"]
    assert encode(b"a\rb") == b"data: a\ndata: b\n\n"


@pytest.mark.parametrize("size", [1, 15, 16, len(SIZES) - 1, len(SIZES), len(SIZES) + 1])
def test_a_chunk_begins_with_its_size(size: int) -> None:
    frame = b"x" * size
    assert chunk(frame) == b"%x\r\n%b\r\n" % (size, frame)
    joined = chunk(b"a") + chunk(frame) + chunk(b"b")
    assert unchunks(joined) == ChunkCheck()(joined) == [b"a", frame, b"b"]


@pytest.mark.parametrize(
    ("data", "at"),
    [(b"", None), (b"1\r\na\r\n", None), (b"1\r\na\r\n1\r\na", 6), (b"\r\na\r\n", 0), (b"1\r\na\r\n0\r\n\r\n", 6)],
)
def test_the_first_byte_that_begins_no_chunk_is_named(data: bytes, at: int | None) -> None:
    if at is None:
        assert len(unchunks(data)) == len(data) // 6
        return
    with pytest.raises(ValueError, match=f"no whole HTTP chunk at byte {at}$"):
        unchunks(data)
    assert ChunkCheck()(data) is None


def test_what_a_check_saw_before_is_in_no_later_answer() -> None:
    check = ChunkCheck()
    assert check(b"") == []
    assert check(chunk(b"a") + chunk(b"b")) == [b"a", b"b"]
    assert check(chunk(b"c")) == [b"c"]
    assert check(b"x\r\n") is None
    assert check(chunk(b"d")) == [b"d"]
    assert check(chunk(b"e")[:-2]) is None
    assert check(chunk(b"f")) == [b"f"]

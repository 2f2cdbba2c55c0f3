"""Joined chunks: taken back to frames, and told apart from what would end a body early."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.sse import LAST_CHUNK, SIZES, ChunkCheck, chunk, unchunks

are_chunks = ChunkCheck()  # one for all: what it saw before must not matter
PIECES = st.sampled_from([b"\n", b"\r", b"\r\n", b"0\r\n\r\n", b"3\r\nabc\r\n", b"data: x\n\n", b"0", b"a"])
FRAMES = st.lists(st.one_of(st.binary(min_size=1, max_size=40), PIECES), max_size=8)


@given(FRAMES)
def test_unchunks_undoes_joined_chunks_and_an_http_parser_agrees(frames: list[bytes]) -> None:
    joined = b"".join(map(chunk, frames))
    assert unchunks(joined) == frames
    assert are_chunks(joined) == frames


@pytest.mark.parametrize(
    "data",
    [
        b"5\r\nabc\r\n",
        b"3\r\nabcd\r\n",
        b"3\r\nabc",
        b"3\r\nabc\r",
        b"3\nabc\n",
        b"3\r\nabc\n\n",
        b"-3\r\nabc\r\n",
        b"g\r\nabc\r\n",
        b"3",
        b"0",
        b"0\r\n",
        b"3\r\n",
        b"\r\n",
        b"abc",
        LAST_CHUNK,
        b"3\r\nabc\r\n" + LAST_CHUNK,
        LAST_CHUNK + b"3\r\nabc\r\n",
        LAST_CHUNK + b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
        b"ffffffffffffffffffff\r\nabc\r\n",
        b"3\r\nabc\r\n0\r\nx: y\r\n",
    ],
)
def test_what_is_not_whole_chunks_and_nothing_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no whole HTTP chunk at byte"):
        unchunks(data)
    assert are_chunks(data) is None
    assert are_chunks(chunk(b"before") + data) is None
    assert are_chunks(chunk(b"before")) == [b"before"]


@pytest.mark.parametrize("data", [b"03\r\nabc\r\n", b"E\r\n" + b"x" * 14 + b"\r\n", b"3;a=b\r\nabc\r\n"])
def test_chunks_that_we_would_write_otherwise_are_not_ours(data: bytes) -> None:
    assert as_http(data)
    assert are_chunks(data) is None
    assert are_chunks(chunk(b"x" * 5000)) == [b"x" * 5000]
    with pytest.raises(ValueError, match="at byte 0"):
        unchunks(data)


def as_http(data: bytes) -> bool:
    """Whole chunks by RFC 9112 7.1, extensions included, read as simply as can be."""
    while data:
        line, end, rest = data.partition(b"\r\n")
        digits = line.partition(b";")[0].strip(b" \t")
        size = (
            int(digits, 16) if end and digits.isalnum() and set(digits.lower()) <= set(b"0123456789abcdef") else 0
        )
        if not size or rest[size : size + 2] != b"\r\n":
            return False
        data = rest[size + 2 :]
    return True


@given(
    FRAMES,
    st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 3), st.sampled_from([b"", b"0", b"\r\n", b"\n", b"a"]))
    ),
)
def test_damaged_chunks_pass_only_where_they_are_what_we_would_write(
    frames: list[bytes], damage: list[tuple[int, int, bytes]]
) -> None:
    data = b"".join(map(chunk, frames))
    for at, gone, instead in damage:
        data = data[:at] + instead + data[at + gone :]
    found = are_chunks(data)
    try:
        assert found == unchunks(data)
        assert as_http(data)
    except ValueError:
        assert found is None


@pytest.mark.parametrize("size", [1, len(SIZES) - 1, len(SIZES), len(SIZES) + 1])
def test_a_chunk_says_its_size_however_it_is_made(size: int) -> None:
    assert chunk(b"x" * size) == b"%x\r\n%b\r\n" % (size, b"x" * size)

"""Where the chunks of a body end, over any split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.http.chunk_ends import ChunkEnds

AFTER = b"\r\nGET / HTTP/1.1\r\n\r\n"


def taken(data: bytes, step: int) -> tuple[int, bool]:
    ends, at = ChunkEnds(), 0
    while at < len(data) and not ends.over:
        at += ends.take(data[at : at + step])
    return at, ends.over


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.integers(1, 60),
    st.sampled_from(["", ";a=b", " "]),
)
def test_the_chunks_end_after_the_last_one_s_size(chunks: list[bytes], step: int, more: str) -> None:
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), more.encode(), chunk) for chunk in chunks)
    last = b"0" + more.encode() + b"\r\n"
    assert taken(body + last + AFTER, step) == (len(body + last), True)


@pytest.mark.parametrize("line", [b"x", b"", b"-5", b"5 5", b";a", b"0x"])
def test_what_is_no_size_ends_them(line: bytes) -> None:
    assert taken(line + b"\r\n" + AFTER, 1) == (len(line) + 2, True)


def test_a_size_that_does_not_end_is_not_kept() -> None:
    ends = ChunkEnds()
    assert ends.take(b"5;" + b"a" * 10**6) == 10**6 + 2
    assert not ends.over
    assert ends.take(b"a\r\nhello\r\n0\r\n") == 13
    assert ends.over

"""Chunks that are read without httptools: what comes of them is what comes of the same bytes with it. A head that
has come before changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.http import response
from proxy.upstream.http.framing import InvalidResponse
from proxy.upstream.http.response import FEW, KNOWN_BYTES, MAX_KNOWN, ResponseParser
from proxy.wire import SIZE_LINES, chunk
from tests.kit.connection_kit import Line
from tests.kit.fault_cases import CHUNKED
from tests.kit.taker import Taker
from tests.proxy.upstream.http.test_response import split

FORMS = (
    lambda data: chunk(data),
    lambda data: b"%X\r\n%b\r\n" % (len(data), data),
    lambda data: b"0%x\r\n%b\r\n" % (len(data), data),
    lambda data: b"%x;a=b\r\n%b\r\n" % (len(data), data),
    lambda data: b" %x\r\n%b\r\n" % (len(data), data),
    lambda data: b"+%x\r\n%b\r\n" % (len(data), data),
    lambda data: b"%x\n%b\n" % (len(data), data),
    lambda data: b"%x\r\n%b\r\r" % (len(data), data),
    lambda data: b"%x\r\n%b" % (len(data) + 1, data),
    lambda data: b"\r\n",
    lambda data: b"1_0\r\n0123456789abcdef\r\n",
)
"""Ways to write a chunk, the usual one first. Half of them no reader may take."""
ENDS = (
    b"",
    b"0\r\n\r\n",
    b"0\r\n\r\n0\r\n\r\n",
    b"0\r\na: b\r\n\r\n",
    b"00\r\n\r\n",
    b"0\r\n\r\nHTTP/1.1 200 OK\r\n",
    b"0\r\nxx",
)
DATA = st.one_of(
    st.sampled_from([1, 2, 9, 10, 15, 16, 17, 254, 255, 256, 257, 2041, 2042, 4095, 4096, 4097]).map(b"x".__mul__),
    st.sampled_from([b"\r\n", b"0\r\n\r\n", b"1\r\na\r\n", b"\r\n\r\n"]),
)
CHUNKS = st.lists(st.tuples(DATA, st.one_of(st.just(0), st.integers(0, len(FORMS) - 1))), max_size=5)
CUTS = st.lists(st.integers(0, 600), max_size=6)


class Read(NamedTuple):
    """What came of a body."""

    data: bytes
    ended: bool
    refused: bool
    surplus: bool


def read(head: bytes, reads: Iterable[bytes]) -> Read:
    taker = Taker()
    answer = ResponseParser(taker, bodiless=False)
    answer.feed(head)
    ended = refused = surplus = False
    for data in reads:
        surplus = ended
        if ended:
            break
        try:
            ended = answer.feed(data)
        except InvalidResponse:
            refused = True
            break
    answer.close(taker)
    return Read(taker.data, ended, refused, surplus or answer.surplus)


@given(chunks=CHUNKS, end=st.sampled_from(ENDS), cuts=CUTS)
def test_chunks_behind_a_known_head_are_read_as_behind_a_new_one(
    chunks: list[tuple[bytes, int]], end: bytes, cuts: list[int]
) -> None:
    reads = split(b"".join(FORMS[form](data) for data, form in chunks) + end, cuts)
    with mock.patch.object(response, "_KNOWN_CHUNKED", {}):
        assert read(CHUNKED, reads) == read(CHUNKED, reads)


@given(chunks=CHUNKS, end=st.sampled_from(ENDS), cuts=CUTS)
def test_a_connection_takes_whole_chunks_as_any_other_reads(
    chunks: list[tuple[bytes, int]], end: bytes, cuts: list[int]
) -> None:
    """`Noting` compares each chunk that it is given with its data."""
    reads = split(b"".join(FORMS[form](data) for data, form in chunks) + end, cuts)
    lines = []
    for here in (False, True):
        line = Line()
        with mock.patch.object(response, "_KNOWN_CHUNKED", {}):
            taker = line.ask()
            line.read(CHUNKED)
            for data in reads:
                if line.transport.closing or not line.connection._answer:
                    break
                line.connection._answer.between &= here
                line.read(data)
        body = b"".join(each for each in taker.got if isinstance(each, bytes))
        lines.append((body, [each for each in taker.got if not isinstance(each, bytes)], line.transport.closing))
    assert lines[0] == lines[1]


@given(chunks=CHUNKS, end=st.sampled_from(ENDS), cuts=CUTS)
def test_a_read_of_a_few_whole_chunks_is_read_as_the_parser_reads_it(
    chunks: list[tuple[bytes, int]], end: bytes, cuts: list[int]
) -> None:
    reads = split(b"".join(FORMS[form](data) for data, form in chunks) + end, cuts)
    with mock.patch.object(response, "FEW", 0):
        parsed = read(CHUNKED, reads)
    assert read(CHUNKED, reads) == parsed


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, 100])
@pytest.mark.parametrize("size", [1, 20, 3000])
def test_of_many_chunks_in_one_read_none_is_lost(count: int, size: int) -> None:
    data = b"".join(chunk(b"%c" % n * size) for n in range(count))
    assert read(CHUNKED, [data[:-3], data[-3:] + b"0\r\n\r\n"]) == read(CHUNKED, [data, b"0\r\n\r\n"])
    assert len(read(CHUNKED, [data]).data) == count * size


def test_a_stream_of_whole_chunks_needs_no_parser() -> None:
    with mock.patch.object(response, "_KNOWN_CHUNKED", {}):
        for known in (False, True):
            taker = Taker()
            answer = ResponseParser(taker, bodiless=False)
            answer.feed(CHUNKED + b"2\r\nhi\r\n")
            assert answer.feed(b"1\r\n!\r\n1\r\n?\r\n0\r\n\r\n")
            assert taker.data == b"hi!?"
            assert (answer._parser is None) is known


def test_every_length_has_the_size_line_of_its_only_whole_chunk() -> None:
    known = {length: line for length, line in enumerate(SIZE_LINES) if len(line) <= length}
    written = [chunk(b"x" * size) for size in range(1, 4096)]
    assert known == {len(each): each[: each.index(b"\n") + 1] for each in written}


def test_a_known_head_of_a_stream_is_made_once_for_each_receiver() -> None:
    class Knowing(Taker):
        known: object = None

        def head(self, status: int, headers: list[tuple[str, str]], known: object = None) -> None:
            super().head(status, headers, known)
            self.known = known

    with mock.patch.object(response, "_KNOWN_CHUNKED", {}):
        seen = [Knowing() for _ in range(3)]
        for taker in seen:
            assert ResponseParser(taker, bodiless=False).feed(CHUNKED + b"2\r\nhi\r\n0\r\n\r\n")
        assert [taker.headers for taker in seen] == [seen[0].headers] * 3
        assert seen[0].known is None
        assert seen[1].known is seen[2].known is not None
        assert [taker.data for taker in seen] == [b"hi"] * 3


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Request-Id: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: " + b"x" * KNOWN_BYTES + b"\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["with an id of its own", "large", "after an interim one"],
)
def test_heads_that_do_not_repeat_are_not_kept(head: bytes) -> None:
    with mock.patch.object(response, "_KNOWN_CHUNKED", {}):
        assert ResponseParser(Taker(), bodiless=False).feed(head + b"0\r\n\r\n")
        assert not response._KNOWN_CHUNKED


def test_a_head_with_a_length_too_is_refused_though_the_rest_of_it_is_known() -> None:
    for extra in (b"Content-Length: 5\r\n", b"content-length: 5\r\n"):
        with mock.patch.object(response, "_KNOWN_CHUNKED", {}):
            plain = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            assert ResponseParser(Taker(), bodiless=False).feed(plain + b"0\r\n\r\n")
            assert response._KNOWN_CHUNKED
            with pytest.raises(InvalidResponse):
                ResponseParser(Taker(), bodiless=False).feed(plain.replace(b"\r\n\r\n", b"\r\n" + extra + b"\r\n"))


def test_the_response_to_head_has_no_body_though_its_head_is_known() -> None:
    with mock.patch.object(response, "_KNOWN_CHUNKED", {}):
        for bodiless in (False, True):
            assert ResponseParser(Taker(), bodiless=bodiless).feed(CHUNKED + (b"" if bodiless else b"0\r\n\r\n"))


def test_known_heads_are_bounded() -> None:
    with mock.patch.object(response, "_KNOWN_CHUNKED", {}):
        for number in range(2 * MAX_KNOWN):
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-N: %d\r\n\r\n" % number
            assert ResponseParser(Taker(), bodiless=False).feed(head + b"0\r\n\r\n")
            assert 0 < len(response._KNOWN_CHUNKED) <= MAX_KNOWN


async def test_a_receiver_that_raises_at_a_token_ends_its_own_exchange() -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["message"]))
    line = Line()
    taker = line.ask(breaks="body")
    line.read(CHUNKED, b"1\r\na\r\n")
    assert line.transport.closing == "aborted"
    assert (len(taker.said), told) == (1, ["an engine's answer"])


def test_a_token_behind_input_that_waits_is_no_earlier_than_it() -> None:
    line = Line(1)
    taker = line.ask()
    line.read(CHUNKED, chunk(b"x" * 3000), chunk(b"y" * 3000), b"1\r\na\r\n")
    assert b"a" not in taker.got
    while line.connection.deliver():
        pass
    assert b"".join(each for each in taker.got if isinstance(each, bytes)) == b"x" * 3000 + b"y" * 3000 + b"a"

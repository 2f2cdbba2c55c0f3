"""One answer, read under any split: the outcome is that of the table, wherever the reads fall."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code
from proxy.upstream.http.framing import InvalidResponse
from proxy.upstream.http.response import (
    _KNOWN,
    KNOWN_BYTES,
    MAX_HEAD,
    MAX_KNOWN,
    MAX_MADE,
    MAX_OVERHEAD,
    KnownHead,
    ResponseParser,
)
from tests.kit.fault_cases import CHUNKED, HI, OK, Case, Outcome, Whole, broken_cases, surplus_cases, whole_cases
from tests.kit.taker import Taker

CASES = [case for case in (*whole_cases(), *surplus_cases(), *broken_cases()) if case.answer]
SHORT = [case for case in CASES if len(case.answer) < 300]
CUTS = st.lists(st.integers(0, 400), max_size=12)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


def outcome(case: Case, reads: list[bytes]) -> Outcome:
    """As the connection would have it, without one: what is read after the end is surplus."""
    taker = Taker()
    answer = ResponseParser(taker, bodiless=case.method == "HEAD")
    ended = more = False
    for read in reads:
        if ended:
            more = True
            break
        try:
            ended = answer.feed(read)
        except InvalidResponse:
            return Code.UPSTREAM_PROTOCOL
    framing = answer.framing
    if framing is None:
        return Code.UPSTREAM_UNREACHABLE
    if not ended and not (answer.until_close and case.end == "fin"):
        return Code.UPSTREAM_TRUNCATED
    kept = framing.keep and not answer.surplus and not more and not case.end
    return Whole(taker.data, taker.status, kept)


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_one_cut_anywhere_changes_nothing(case: Case) -> None:
    for at in range(len(case.answer)):
        assert outcome(case, split(case.answer, [at])) == case.ours, at


@given(st.sampled_from(CASES), CUTS)
def test_many_cuts_change_nothing(case: Case, cuts: list[int]) -> None:
    assert outcome(case, split(case.answer, cuts)) == case.ours


NAMES = st.sampled_from(
    [
        *(b"content-length", b"Content-Length", b"date", b"server", b"x-a", b"X_B", b"connection", b"Connection"),
        *(b"x y", b"transfer-encoding", b"trailer", b"upgrade", b"", b"x\xe9"),
    ]
)  # fmt: skip
VALUES = st.sampled_from(
    [
        *(b"2", b"02", b" 2 ", b"3", b"0", b"+2", b"2,2", b"", b"\t", b"a\tb ", b"close", b"keep-alive, close"),
        *(b"chunked", b"\xe9", b"a\x00b", b"a\x7f", b"a\rb", b"h2c", b"9" * 16, b" a " + b" " * 99 + b"b"),
    ]
)  # fmt: skip
STARTS = st.sampled_from(
    [
        *(b"HTTP/1.1 200 OK", b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.0 200 OK", b"HTTP/1.1 404 No\tt"),
        *(b"HTTP/1.1 204 N", b"HTTP/1.1 304 N", b"HTTP/1.1 101 S", b"HTTP/1.1 100 C", b"HTTP/1.1 600 X"),
        *(b"HTTP/1.1 2000 X", b"HTTP/1.1 20 X", b"HTTP/1.1  200 OK", b"HTTP/1.1 200 \xe9", b"http/1.1 200 OK"),
        b"\r\nHTTP/1.1 200 OK",
    ]
)  # fmt: skip


def read_of(reads: list[bytes]) -> object:
    taker = Taker()
    parser = ResponseParser(taker, bodiless=False)
    try:
        ended = [parser.feed(read) for read in reads]
    except InvalidResponse:
        return "invalid"
    return taker.status, taker.headers, taker.data, parser.framing, parser.surplus, ended[-1]


@given(STARTS, st.lists(st.tuples(NAMES, VALUES), max_size=5), st.sampled_from([b"", b"hi", b"hi!", b"h"]))
def test_a_plain_head_is_read_as_httptools_reads_it(
    start: bytes, fields: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """A head in one read is read here where it is plain; one that is cut is read by httptools."""
    head = start + b"\r\n" + b"".join(name + b":" + value + b"\r\n" for name, value in fields) + b"\r\n"
    assert read_of([head + body]) == read_of([head[:9], head[9:] + body])


def body_of(size: int, head: bytes = b"date: today\r\n%b\r\nserver: x\r\n") -> bytes:
    lines = head % (b"content-length: %d" % size)
    return b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n" + b"x" * size


class Knowing(Taker):
    """Keeps what it is told of heads that have come before."""

    known: object = None

    def head(self, status: int, headers: list[tuple[str, str]], known: object = None) -> None:
        super().head(status, headers)
        self.known = known


def knowing_of(answer: bytes) -> Knowing:
    taker = Knowing()
    assert ResponseParser(taker, bodiless=False).feed(answer)
    return taker


def test_a_head_that_has_come_before_is_read_as_the_first_time_but_for_its_length() -> None:
    mark = b"x-mark: %x\r\n%%b\r\nserver: x\r\n" % id(object())
    first, second, third = (knowing_of(body_of(size, mark)) for size in (3, 12, 3))
    assert first.known is None
    assert second.known is not None
    assert second.known is third.known
    assert (third.status, third.headers, third.data) == (first.status, first.headers, first.data)
    assert (second.headers[1], len(second.data)) == (("content-length", "12"), 12)
    elsewhere = knowing_of(body_of(3, mark.replace(b"server: x", b"Server: x")))
    assert elsewhere.known is None


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("zeros", [b"0", b"00", b"000000000000000", b"0000000000000000"])
def test_a_length_of_zero_ends_with_the_head_however_it_is_written(zeros: bytes, known: bool) -> None:
    start = b"HTTP/1.1 200 OK\r\nx-zeros: %d%d\r\ncontent-length: " % (len(zeros), known)
    if known:
        knowing_of(start + b"3\r\n\r\nabc")
    taker = knowing_of(start + zeros + b"\r\n\r\n")
    assert (taker.status, taker.data, taker.headers[-1]) == (200, b"", ("content-length", zeros.decode()))


@pytest.mark.parametrize("size", [b"", b"0", b"00", b"+3", b"\xb2", b"9" * 16, b"3, 3", b"3\r\ncontent-length: 3"])
def test_a_known_head_with_an_odd_length_is_read_as_any_other(size: bytes) -> None:
    start = b"HTTP/1.1 200 OK\r\nx-odd: 1\r\ncontent-length: "
    for length in (3, 4):
        knowing_of(start + b"%d\r\n\r\n" % length + b"x" * length)
    whole = start + size + b"\r\n\r\n"
    assert read_of([whole]) == read_of([whole[:9], whole[9:]])


def test_heads_that_are_never_the_same_are_not_kept() -> None:
    head = b"x-request-id: 7\r\n%b\r\n"
    assert [knowing_of(body_of(3, head)).known for _ in range(2)] == [None, None]
    large = b"x-large: " + b"a" * KNOWN_BYTES + b"\r\n%b\r\n"
    assert [knowing_of(body_of(3, large)).known for _ in range(2)] == [None, None]
    for number in range(2 * MAX_KNOWN):
        knowing_of(body_of(3, b"x-number: %d\r\n%%b\r\n" % number))
    assert len(_KNOWN) <= MAX_KNOWN


EXTENSIONS = st.sampled_from([b"", b";a", b";a=b", b';a="b;c"', b";a;b=c"])
CHUNKS = st.lists(st.tuples(st.binary(min_size=1, max_size=40), EXTENSIONS, st.integers(0, 3)), max_size=8)
TRAILERS = st.lists(st.sampled_from([b"x: y\r\n", b"x-longer: and more\r\n"]), max_size=3)


@given(CHUNKS, TRAILERS, CUTS, st.binary(max_size=10))
def test_any_chunks_give_their_body_and_end_where_they_end(
    chunks: list[tuple[bytes, bytes, int]], trailers: list[bytes], cuts: list[int], surplus: bytes
) -> None:
    coded = b"".join(b"0" * zeros + b"%x%b\r\n%b\r\n" % (len(c), e, c) for c, e, zeros in chunks)
    data = CHUNKED + coded + b"0\r\n" + b"".join(trailers) + b"\r\n"
    taker = Taker()
    answer = ResponseParser(taker, bodiless=False)
    ends = [answer.feed(read) for read in split(data, cuts)]
    assert ends == [False] * (len(ends) - 1) + [True]
    assert (taker.data, answer.surplus) == (b"".join(c for c, _, _ in chunks), False)
    assert taker.headers == [("transfer-encoding", "chunked")]


@given(st.binary(max_size=200), CUTS)
def test_rubbish_raises_nothing_but_refused(rubbish: bytes, cuts: list[int]) -> None:
    for start in (b"", OK, CHUNKED, OK + b"Content-Length: "):
        answer = ResponseParser(Taker(), bodiless=False)
        try:
            for read in split(start + rubbish, cuts):
                if answer.feed(read):
                    break
        except InvalidResponse:
            pass


def test_the_chunks_of_one_read_are_one_call() -> None:
    taker = Taker()
    answer = ResponseParser(taker, bodiless=False)
    answer.feed(CHUNKED + b"1\r\na\r\n" * 40)
    assert (taker.data, taker.reads) == (b"a" * 40, 1)
    answer.feed(b"1\r\nb\r\n1\r\nc")
    assert (taker.data, taker.reads) == (b"a" * 40 + b"bc", 2)


def test_what_came_before_a_fault_has_gone_out() -> None:
    taker = Taker()
    answer = ResponseParser(taker, bodiless=False)
    with pytest.raises(InvalidResponse, match="chunk size"):
        answer.feed(CHUNKED + b"2\r\nhi\r\nzz\r\n")
    assert taker.data == b"hi"


def test_a_trailer_does_not_become_a_header_that_was_handed_out() -> None:
    taker = Taker()
    assert ResponseParser(taker, bodiless=False).feed(CHUNKED + b"2\r\nhi\r\n0\r\nset-cookie: evil\r\n\r\n")
    assert taker.headers == [("transfer-encoding", "chunked")]


def test_a_head_is_bounded_to_the_byte_and_interim_ones_count() -> None:
    for before in (b"", b"HTTP/1.1 100 C\r\n\r\n" * 100):
        rest = MAX_HEAD - len(before) - len(OK) - len("X: \r\n" + "Content-Length: 2\r\n\r\n")
        for size, fits in ((rest, True), (rest + 1, False)):
            data = before + OK + b"X: " + b"y" * size + b"\r\n" + HI
            for reads in ([data], split(data, list(range(0, len(data), 1000)))):
                answer = ResponseParser(Taker(), bodiless=False)
                if fits:
                    assert any(answer.feed(read) for read in reads)
                else:
                    with pytest.raises(InvalidResponse, match="larger than"):
                        for read in reads:
                            answer.feed(read)


@pytest.mark.parametrize("start", [b"1;", b"0\r\nx: ", b"0"])
def test_chunks_that_are_all_framing_have_an_end(start: bytes) -> None:
    """An extension, a trailer or a size that never ends would be kept, or read, for ever."""
    answer = ResponseParser(Taker(), bodiless=False)
    answer.feed(CHUNKED + b"1\r\na\r\n" + start)
    with pytest.raises(InvalidResponse, match="without a body"):
        for _ in range(MAX_OVERHEAD // 1000 + 2):
            answer.feed(b"0" * 1000)


def test_a_long_body_of_small_chunks_is_not_taken_for_framing() -> None:
    taker = Taker()
    answer = ResponseParser(taker, bodiless=False)
    answer.feed(CHUNKED)
    for _ in range(MAX_OVERHEAD // 5 + 2):
        answer.feed(b"1;x")
        answer.feed(b"\r\na\r\n")
    assert len(taker.data) == MAX_OVERHEAD // 5 + 2


@pytest.mark.parametrize(("more", "refused"), [(0, False), (1, True)])
def test_framing_without_any_body_is_bounded_to_the_byte(more: int, refused: bool) -> None:
    answer = ResponseParser(Taker(), bodiless=False)
    answer.feed(CHUNKED + b"1\r\na\r\n")
    answer.feed(b"1;" + b"x" * (MAX_OVERHEAD - 2))
    if refused:
        with pytest.raises(InvalidResponse, match=f"^{MAX_OVERHEAD} bytes of chunk headers without a body"):
            answer.feed(b"x")
    else:
        answer.feed(b"\r\nb\r\n")
        answer.feed(b"1;" + b"x" * (MAX_OVERHEAD - 2))  # a body came between them


def test_a_counted_body_ends_to_the_byte_and_what_follows_is_surplus() -> None:
    for reads, data, surplus in (
        ([b"a", b"b"], b"ab", False),
        ([b"ab"], b"ab", False),
        ([b"abc"], b"ab", True),
        ([b"a", b"bcd"], b"ab", True),
    ):
        taker = Taker()
        answer = ResponseParser(taker, bodiless=False)
        assert not answer.feed(OK + b"Content-Length: 2\r\n\r\n")
        assert [answer.feed(read) for read in reads] == [False] * (len(reads) - 1) + [True]
        assert (taker.data, answer.surplus, taker.reads) == (data, surplus, len(reads))


@pytest.mark.parametrize("rest", [b"", b"x", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_what_follows_an_answer_without_a_body_is_surplus(rest: bytes) -> None:
    answer = ResponseParser(Taker(), bodiless=False)
    assert answer.feed(b"HTTP/1.1 204 No Content\r\n\r\n" + rest)
    assert answer.surplus is bool(rest)


def test_names_of_headers_are_in_lower_case_and_values_without_white_space_at_their_end() -> None:
    taker = Taker()
    answer = ResponseParser(taker, bodiless=False)
    answer.feed(OK + b"Content-Type: a/b \t\r\nX-Y: \xe9\r\nDATE:  now\r\nContent-Length: 1\r\n\r\n")
    assert taker.headers == [("content-type", "a/b"), ("x-y", "é"), ("date", "now"), ("content-length", "1")]


@pytest.mark.parametrize("body", [b"", b"1\r\na\r\n"])
@pytest.mark.parametrize("rest", [b"", b"\0", b"nonsense", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])
def test_what_follows_the_last_chunk_is_surplus_and_no_body(body: bytes, rest: bytes) -> None:
    taker = Taker()
    answer = ResponseParser(taker, bodiless=False)
    answer.feed(CHUNKED + b"1\r\nx\r\n")
    assert answer.feed(body + b"0\r\n\r\n" + rest)
    assert (answer.surplus, taker.data) == (bool(rest), b"x" + body[3:4])


def test_of_interim_answers_nothing_is_left_in_the_answer() -> None:
    for interim in (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 2):
        taker = Taker()
        assert ResponseParser(taker, bodiless=False).feed(interim + OK + HI)
        assert (taker.headers, taker.data) == ([("content-length", "2")], b"hi")


def test_an_answer_that_is_let_go_of_hands_nothing_out() -> None:
    taker = Taker()
    answer = ResponseParser(taker, bodiless=False)
    answer.feed(CHUNKED)
    answer.close(Taker())
    answer.feed(b"1\r\na\r\n")
    assert taker.data == b""


def test_what_is_made_of_a_head_is_bounded() -> None:
    head = KnownHead(200, (), (), {})
    for number in range(3 * MAX_MADE):
        head.keep(("engine", number), number)
        assert len(head.made) <= MAX_MADE
        assert head.made["engine", number] == number

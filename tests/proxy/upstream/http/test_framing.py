"""What a head says of where its answer ends, as a table; the whole answers are in `fault_cases.py`."""

from __future__ import annotations

import pytest

from proxy.upstream.http.framing import MAX_HEADERS, Framing, InvalidResponse, Kind, framing_of

LENGTH, CHUNKED = ("content-length", "5"), ("transfer-encoding", "chunked")
CLOSE, ALIVE = ("connection", "close"), ("connection", "keep-alive")


@pytest.mark.parametrize(
    ("version", "status", "headers", "framing"),
    [
        ("1.1", 200, [LENGTH], Framing(Kind.LENGTH, 5, True)),
        ("1.1", 200, [CHUNKED], Framing(Kind.CHUNKED, 0, True)),
        ("1.1", 200, [], Framing(Kind.UNTIL_CLOSE, 0, False)),
        ("1.1", 200, [ALIVE], Framing(Kind.UNTIL_CLOSE, 0, False)),
        ("1.1", 200, [("content-length", "0")], Framing(Kind.NONE, 0, True)),
        ("1.1", 200, [LENGTH, CLOSE], Framing(Kind.LENGTH, 5, False)),
        ("1.1", 200, [CLOSE, LENGTH, ALIVE], Framing(Kind.LENGTH, 5, False)),
        ("1.1", 200, [LENGTH, ("connection", "keep-alive, Close")], Framing(Kind.LENGTH, 5, False)),
        ("1.1", 200, [LENGTH, ("connection", "closed")], Framing(Kind.LENGTH, 5, True)),
        ("1.0", 200, [LENGTH], Framing(Kind.LENGTH, 5, False)),
        ("1.0", 200, [LENGTH, ALIVE], Framing(Kind.LENGTH, 5, True)),
        ("1.0", 200, [LENGTH, ("connection", "keep-alive, close")], Framing(Kind.LENGTH, 5, False)),
        ("1.1", 204, [], Framing(Kind.NONE, 0, True)),
        ("1.1", 204, [("content-length", "0")], Framing(Kind.NONE, 0, True)),
        ("1.1", 204, [LENGTH], Framing(Kind.NONE, 0, False)),
        ("1.1", 204, [CHUNKED], Framing(Kind.NONE, 0, False)),
        ("1.1", 205, [], Framing(Kind.UNTIL_CLOSE, 0, False)),
        ("1.1", 304, [LENGTH], Framing(Kind.NONE, 0, True)),
        ("1.1", 999, [LENGTH], Framing(Kind.LENGTH, 5, True)),
        ("1.1", 100, [], None),
        ("1.1", 103, [("link", "x")], None),
        ("1.1", 199, [], None),
        ("1.1", 200, [LENGTH, ("x", "close")], Framing(Kind.LENGTH, 5, True)),
        ("1.1", 200, [LENGTH, *[("x", "y")] * (MAX_HEADERS - 1)], Framing(Kind.LENGTH, 5, True)),
    ],
)
def test_the_end_of_an_answer_is_what_its_head_says(
    version: str, status: int, headers: list[tuple[str, str]], framing: Framing | None
) -> None:
    assert framing_of(version, status, headers) == framing


@pytest.mark.parametrize("headers", [[], [LENGTH], [CHUNKED]])
def test_an_answer_to_head_has_no_body_whatever_it_says(headers: list[tuple[str, str]]) -> None:
    assert framing_of("1.1", 200, headers, bodiless=True) == Framing(Kind.NONE, 0, True)


@pytest.mark.parametrize(
    ("version", "status", "headers", "why"),
    [
        ("2.0", 200, [LENGTH], "HTTP/2.0"),
        ("0.9", 200, [LENGTH], "HTTP/0.9"),
        ("1.1", 99, [LENGTH], "status 099"),
        ("1.1", 0, [LENGTH], "status 000"),
        ("1.1", 101, [], "status 101"),
        ("1.1", 200, [LENGTH, LENGTH], "two lengths"),
        ("1.1", 200, [LENGTH, CHUNKED], "both"),
        ("1.1", 200, [CHUNKED, CHUNKED], "not chunked alone"),
        ("1.1", 200, [("transfer-encoding", "gzip, chunked")], "not chunked alone"),
        ("1.1", 200, [("transfer-encoding", "")], "not chunked alone"),
        ("1.0", 200, [CHUNKED], "not chunked alone"),
        ("1.1", 200, [("transfer-encoding", "y" * 41)], f"'{'y' * 40}'"),
        ("1.1", 100, [LENGTH], "claims to have a body"),
        ("1.1", 102, [CHUNKED], "claims to have a body"),
        ("1.1", 200, [LENGTH, *[("x", "y")] * MAX_HEADERS], "more than 128"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(
    version: str, status: int, headers: list[tuple[str, str]], why: str
) -> None:
    with pytest.raises(InvalidResponse, match=why):
        framing_of(version, status, headers)

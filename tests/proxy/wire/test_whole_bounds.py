"""When an answer is whole, at the bounds: what is still counted, what is read leniently, what is stored."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from proxy.wire.sse import DONE
from proxy.wire.whole import (
    MAX_CHOICES,
    MAX_COUNTED,
    asked_of,
    endings,
    lack_of,
    note,
    read_body,
    whole_body,
    whole_streams,
)
from tests.proxy.wire.test_whole import CHOICE, TEXT, completion, end, frame


def ended_by(data: bytes) -> dict[int, str]:
    ended: dict[int, str] = {}
    note(data, ended)
    return ended


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        (b"[" + b" " * 62 + b"1]", 1),
        (b"[" + b" " * 63 + b"1]", 0),  # not looked for further
        (b'["' + b"a" * (MAX_COUNTED - 4) + b'"]', 1),
        (b'["' + b"a" * (MAX_COUNTED - 3) + b'"]', 0),
        (b'["a", "b"', 0),
        (b"[-1]", 1),
        (b"[]", 0),
        (b"7", 0),
        (b"null", 0),
    ],
    ids=lambda each: str(each)[:12],
)
def test_prompts_are_counted_within_bounds(prompt: bytes, count: int) -> None:
    assert asked_of(msgspec.structs.replace(completion("a"), fields={"prompt": Raw(prompt)})) == count


@pytest.mark.parametrize(("n", "count"), [(99_999, 99_999), (100_000, 0), (0, 0)])
def test_more_choices_than_can_be_are_not_counted(n: int, count: int) -> None:
    assert asked_of(completion("a", n=n)) == count


@pytest.mark.parametrize(
    "odd",
    [
        b'data: {"choices":5,"choices":[{"index":0,"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":5,"lp":NaN}\n\n',
        b'data: {"choices":[{"index":0,"finish_reason":"stop","lp":NaN}\n\n',
        b'data: {"lp":NaN,"x":' + b"[" * 100_000 + b"\n\n",
    ],
    ids=["twice", "of another type", "cut short", "deep"],
)
def test_a_frame_that_no_reader_takes_ends_nothing(odd: bytes) -> None:
    assert ended_by(odd) == {}


def test_the_last_index_that_can_be_is_a_choice() -> None:
    assert ended_by(frame(end(MAX_CHOICES - 1))) == {MAX_CHOICES - 1: "stop"}
    listed = json.dumps({"choices": [CHOICE | {"index": MAX_CHOICES}]}).encode()
    lack = read_body(listed, "chat", 0)[1]
    assert lack is not None
    assert f"choice {MAX_CHOICES}" in lack.words


@pytest.mark.parametrize(
    ("ended", "asked", "words"),
    [
        ({}, 0, "without any finish_reason"),
        ({}, 2, "without any finish_reason"),
        ({0: "stop"}, 2, "with 1 of 2 choices"),
        ({0: "stop", 1: ""}, 1, "with 1 of 2 choices"),
        ({0: "", 1: ""}, 3, "with 0 of 3 choices"),
        ({1: "stop"}, 1, "with 1 of 1 choices"),
        ({0: "stop", 2: "stop"}, 2, "with 2 of 2 choices"),
    ],
)
def test_how_many_choices_are_complete_is_told(ended: dict[int, str], asked: int, words: str) -> None:
    lack = lack_of(ended, asked)
    assert lack is not None
    assert lack.few
    assert words in lack.words


@pytest.mark.parametrize("ended", [{0: "stop"}, {0: "stop", 1: "length"}, {5: "stop"}])
def test_where_the_number_asked_for_is_not_known_any_is_whole(ended: dict[int, str]) -> None:
    assert lack_of(ended, 0) is None


@pytest.mark.parametrize(
    ("ended", "asked"), [({0: "stop", 1: "length"}, 1), ({0: "stop", 1: "stop", 7: "stop"}, 2)]
)
def test_an_answer_with_more_choices_than_were_asked_for_is_another_request_s(
    ended: dict[int, str], asked: int
) -> None:
    words = f"The engine's answer has more choices than the {asked} asked for."
    assert lack_of(ended, asked) == (words, False, True)


@pytest.mark.parametrize(
    ("endpoint", "body", "words", "few"),
    [
        ("embeddings", {"data": 5}, "no list of data", False),
        ("embeddings", {"data": [{"index": 0, "embedding": [1]}]}, "has 1 embeddings for 2 inputs", False),
        ("chat", {"choices": 5}, "no list of choices", False),
        ("chat", {"choices": [CHOICE, CHOICE]}, "choice 0", True),
        ("chat", {"choices": [CHOICE | {"index": "x"}], "error": {"a": 1}}, "instead of an answer", False),
        ("chat", {"choices": 5, "object": "error"}, "instead of an answer", False),
    ],
)
def test_a_lack_says_what_of_and_whether_the_rest_is_good(endpoint: Any, body: Any, words: str, few: bool) -> None:
    lack = read_body(json.dumps(body).encode(), endpoint, 2)[1]
    assert lack is not None
    assert words in lack.words
    assert lack.few is few


def test_only_frames_with_a_finish_say_how_choices_ended() -> None:
    assert endings([TEXT]) == {}
    assert endings([TEXT], {1: "stop"}) == {1: "stop"}


def finish(index: int, reason: str = "stop") -> bytes:
    """As vLLM writes it."""
    return b"data: %b\n\n" % json.dumps({"choices": [end(index, reason)]}, separators=(",", ":")).encode()


@pytest.mark.parametrize("bad", range(3))
def test_a_choice_that_was_aborted_in_what_all_streams_share_is_seen_wherever_it_is(bad: int) -> None:
    shared = [finish(n, "abort" if n == bad else "stop") for n in range(3)]
    good = [finish(n) for n in range(3)]
    for between in ([], [TEXT]):
        tail = [[finish(3), DONE], [finish(3), frame(usage={}), DONE]]
        assert whole_streams([*between, *good, *between], tail)
        assert not whole_streams([*between, *shared, *between], tail)


def test_a_shared_frame_without_its_blank_line_is_not_read_for_ever() -> None:
    assert whole_streams([finish(0).replace(b"\n", b"\r\n")], [[finish(1), DONE]])


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices":[{"finish_reason":"stop","text":"\xff"}]}',
        b'{"embedding":[1]}',
        b'{"embedding":[1],"choices":[{"finish_reason":null}]}',
    ],
)
def test_a_stored_body_that_is_not_whole(body: bytes) -> None:
    assert not whole_body(body)


def test_a_stored_body_that_is_whole() -> None:
    assert whole_body(b'{"choices":[{"finish_reason":"stop","text":"\xc3\xa4"}]}')
    assert whole_body(b'{"choices":[{"finish_reason":"stop"}],"embedding":[1]}')
    assert whole_body(b'{"data":[{"embedding":[1]}]}')
    assert whole_body(b'{"choices":[{"index":1,"finish_reason":"stop"}]}')  # how many were asked for is not known

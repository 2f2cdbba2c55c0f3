"""What each client of one answer is told of it: endings, ids, tokens, and whether these are an estimate."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from proxy.wire.choices import Part, StreamSplit, split_body
from proxy.wire.fold.known import Unfoldable
from proxy.wire.frames import Usage
from proxy.wire.sse import DONE
from tests.proxy.wire.test_choices import ERROR, chunk, objects, parts, taken, total


def frame(*choices: dict[str, Any], **more: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps({"id": "chatcmpl-r0", "choices": list(choices), **more}).encode()


def said(index: int, text: str = "a", finish: Any = None) -> dict[str, Any]:
    return {"index": index, "delta": {"content": text}, "finish_reason": finish}


@pytest.mark.parametrize(
    ("endings", "whole"),
    [
        ({}, False),
        ({0: "stop"}, False),
        ({0: "stop", 1: "abort"}, False),
        ({0: "stop", 1: "length"}, True),
    ],
)
def test_a_part_is_whole_where_each_of_its_choices_ended_by_a_reason_of_openais(
    endings: dict[int, str], whole: bool
) -> None:
    assert Part(0, 2, False, "r", endings).whole is whole


def test_nothing_is_counted_and_nothing_has_failed_before_the_engine_says_so() -> None:
    split = StreamSplit(parts(1, 1), request_id="r0")
    assert split.usage_of(1) == Usage(0, 0, 0)
    failed = [split.failed]
    for frame_ in (chunk(0, "a"), ERROR, chunk(0, "b")):
        split.feed(frame_)
        failed.append(split.failed)
    assert failed == [False, False, True, True]


def test_a_part_that_has_ended_hears_of_no_comment_and_no_error() -> None:
    split = StreamSplit(parts(1, 1), request_id="r0", fingerprint=Raw(b'"fp"'))
    split.feed(chunk(0, "a", finish="stop"))
    assert [n for n, _, _ in split.feed(frame(said(0), said(1)))] == [1]
    assert split.feed(ERROR) == [(1, ERROR, False)]
    assert split.feed(frame(said(0), said(1))) == []


def test_a_frame_that_is_refused_half_way_has_ended_nobody() -> None:
    split = StreamSplit(parts(1, 1), request_id="r0", fingerprint=Raw(b'"fp"'))
    with pytest.raises(Unfoldable):
        split.feed(frame(said(0, finish="stop"), said(7)))
    assert [part.ended for part in split.parts] == [False, False]
    assert [n for n, _, _ in split.feed(DONE)] == [0, 0]
    assert [part.ended for part in split.parts] == [True, False]
    assert split.feed(DONE) == []


@pytest.mark.parametrize("usage", [False, True])
def test_each_choice_of_a_frame_with_several_is_its_own_partys(usage: bool) -> None:
    split = StreamSplit(parts(2, 1, usage=usage), request_id="r0")
    given = split.feed(frame(said(0, ""), said(1, "b"), said(2, "c", "stop")))
    assert [(n, content) for n, _, content in given] == [(0, False), (0, True), (1, True)][: 3 if usage else 2]
    given = split.feed(frame(said(0, "", "length"), said(1, "", "stop")))
    assert [(n, content) for n, _, content in given] == ([(0, False), (0, False)] if usage else [])
    assert [part.content_events for part in split.parts] == [1, 1]
    split.feed(total(3))
    last = split.feed(DONE)
    assert [content for _, own, content in last if own == DONE] == [False, False]
    if usage:
        assert [content for _, _, content in last] == [False] * 4
    assert split.ended


def test_the_first_reason_that_is_none_of_openais_stays() -> None:
    split = StreamSplit(parts(1), request_id="r0")
    for reason in ("abort", "stop"):
        split.feed(chunk(0, "", finish=reason))
    assert split.parts[0].endings == {0: "abort"}
    assert split.feed(DONE) == []
    assert not split.ended


def test_a_reason_that_is_no_text_ends_a_choice_and_makes_it_not_whole() -> None:
    split = StreamSplit(parts(1), request_id="r0")
    split.feed(frame({**said(0), "finish_reason": 5}))
    assert split.parts[0].endings == {0: "?"}


def test_a_choice_without_an_index_is_the_first_and_a_frame_with_no_choice_is_nobodys() -> None:
    split = StreamSplit(parts(1, 1), request_id="r0")
    assert [n for n, _, _ in split.feed(frame({"delta": {"content": "a"}}))] == [0]
    assert split.feed(frame()) == []
    assert split.feed(frame(usage=None)) == []


@pytest.mark.parametrize("frames", [[chunk(0, "a", tokens=3)], [total(3)]], ids=["as it goes", "at the end"])
def test_the_tokens_of_the_prompt_are_everybodys(frames: list[bytes]) -> None:
    split = StreamSplit(parts(1, 1), request_id="r0")
    for each in frames:
        split.feed(each)
    assert [split.usage_of(n).prompt_tokens for n in (0, 1)] == [5, 5]


def test_a_choice_that_was_never_counted_has_no_tokens_where_others_were() -> None:
    split = StreamSplit(parts(2, 1), request_id="r0")
    for index, tokens in ((0, 4), (1, None), (2, 2)):
        split.feed(chunk(index, "a", finish="stop", tokens=tokens))
    split.feed(DONE)
    assert [part.completion_tokens for part in split.parts] == [4, 2]
    assert [part.estimated for part in split.parts] == [False, False]


@pytest.mark.parametrize(
    ("counts", "counted", "estimated"),
    [((1,), True, False), ((1,), False, True), ((1, 1), True, True), ((1, 1), False, True)],
)
def test_tokens_are_an_estimate_but_for_one_part_that_the_engine_counted(
    counts: tuple[int, ...], counted: bool, estimated: bool
) -> None:
    split = StreamSplit(parts(*counts), request_id="r0")
    for index in range(len(counts)):
        split.feed(chunk(index, "a", finish="stop"))
    if counted:
        split.feed(total(2))
    split.feed(DONE)
    assert [part.estimated for part in split.parts] == [estimated] * len(counts)


def test_a_finish_waits_for_the_fingerprint_and_is_as_it_was_where_there_is_none_or_its_own() -> None:
    plain = StreamSplit(parts(1), request_id="r0")
    finish = frame(said(0, "", "stop"))
    (own,) = taken(plain, [finish, DONE])
    assert objects(own) == objects([finish])
    named = frame(said(0, "", "stop"), system_fingerprint="own")
    (own,) = taken(StreamSplit(parts(1), request_id="r0", fingerprint=Raw(b'"fp"')), [named])
    assert objects(own)[0]["system_fingerprint"] == "own"


def test_an_id_that_is_not_of_the_request_stays_as_the_engine_gave_it() -> None:
    split = StreamSplit(parts(1, 1), request_id="r9")
    ((_, own, _),) = split.feed(chunk(1, "a"))
    assert objects([own])[0]["id"] == "chatcmpl-r0"


# One body


def body(*choices: dict[str, Any], **more: Any) -> bytes:
    listed = [{"index": n, "finish_reason": "stop", **choice} for n, choice in enumerate(choices)]
    return json.dumps({"id": "cmpl-r0", "choices": listed, **more}).encode()


def usage(completion: int) -> dict[str, int]:
    return {"prompt_tokens": 2, "completion_tokens": completion, "total_tokens": 2 + completion}


IDS: list[dict[str, Any]] = [{"text": "aa", "token_ids": [1, 2]}, {"text": "b", "token_ids": [3]}]


@pytest.mark.parametrize("ours", [False, True])
def test_listed_token_ids_count_and_are_hidden_where_no_client_asked_for_them(ours: bool) -> None:
    given = parts(1, 1)
    both = split_body(body(*IDS, usage=usage(30), prompt_token_ids=[7]), given, request_id="r0", ids=ours)
    found = [(json.loads(own[0]), own[1]) for own in both if own is not None]
    assert [used for _, used in found] == [Usage(2, 2, 4), Usage(2, 1, 3)]
    assert [own["usage"] for own, _ in found] == [usage(2), usage(1)]
    assert [own["id"] for own, _ in found] == ["cmpl-r0", "cmpl-r1"]
    assert [own["choices"][0]["token_ids"] for own, _ in found] == ([None, None] if ours else [[1, 2], [3]])
    assert [own["prompt_token_ids"] for own, _ in found] == [None if ours else [7]] * 2
    assert [part.estimated for part in given] == [False, False]


def test_a_body_without_token_ids_gets_none() -> None:
    (only,) = split_body(body({"text": "a"}), parts(1), request_id="r0", ids=True)
    assert only is not None
    own = json.loads(only[0])
    assert "prompt_token_ids" not in own
    assert own["choices"] == [{"index": 0, "finish_reason": "stop", "text": "a"}]


LOGGED = [{"text": "aaa", "logprobs": {"tokens": ["a"]}}, {"text": "b", "logprobs": {"tokens": ["b", "c"]}}]
CHATTED = [
    {"message": {"content": "a"}, "logprobs": {"content": [{}]}},
    {"message": {"content": "b"}, "logprobs": {"content": [{}, {}]}},
]


@pytest.mark.parametrize(
    ("choices", "completion", "tokens", "estimated"),
    [
        (LOGGED, 3, [1, 2], False),
        (CHATTED, 3, [1, 2], False),
        (LOGGED, 8, [5, 3], True),  # not the engine's count: by bytes, `"aaa"` of 5 and `"b"` of 3
        ([LOGGED[0], {"text": "b", "logprobs": None}], 1, [1, 0], True),
        ([IDS[0], {"text": "b", "token_ids": None}], 7, [4, 3], True),
        ([{"message": "x" * 28}, {"message": "x" * 8}], 8, [6, 2], True),
        ([{}, {}], 3, [2, 1], True),
    ],
)
def test_tokens_are_counted_where_all_are_listed_and_else_shared_out_by_bytes(
    choices: list[dict[str, Any]], completion: int, tokens: list[int], estimated: bool
) -> None:
    given = parts(1, 1)
    found = split_body(body(*choices, usage=usage(completion)), given, request_id="r0")
    assert [own[1].completion_tokens for own in found if own is not None] == tokens
    assert [part.estimated for part in given] == [estimated, estimated]


@pytest.mark.parametrize("odd", [{"prompt_tokens": -1}, "x", None])
def test_usage_that_cannot_be_is_in_no_part(odd: Any) -> None:
    (only,) = split_body(body({"text": "a"}, usage=odd), parts(1), request_id="r0")
    assert only is not None
    assert "usage" not in json.loads(only[0])
    assert only[1] == Usage()


def test_a_part_of_two_choices_of_which_one_did_not_end_gets_nothing() -> None:
    data = body({"text": "a"}, {"text": "b", "finish_reason": 5}, {"text": "c"})
    first, second = split_body(data, parts(2, 1), request_id="r0")
    assert first is None
    assert second is not None

"""One answer with many choices taken apart: by properties, and by what vLLM 0.32 was recorded to say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from proxy.wire.choices import Part, StreamSplit, split_body
from proxy.wire.fold.known import Unfoldable
from proxy.wire.sse import DONE, data_of, is_done
from tests.golden import load

ERROR = b'data: {"error":{"message":"no","type":"x","code":500}}\n\n'


def parts(*counts: int, usage: bool = False) -> list[Part]:
    made, first = [], 0
    for n, count in enumerate(counts):
        made.append(Part(first, count, usage, f"r{n}"))
        first += count
    return made


def chunk(index: int, text: str, *, finish: str | None = None, tokens: int | None = None) -> bytes:
    members: dict[str, Any] = {
        "id": "chatcmpl-r0",
        "object": "chat.completion.chunk",
        "choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}],
    }
    if tokens is not None:
        members["usage"] = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
    return b"data: %b\n\n" % json.dumps(members).encode()


def total(completion: int) -> bytes:
    members = {
        "id": "chatcmpl-r0",
        "choices": [],
        "usage": {"prompt_tokens": 5, "completion_tokens": completion, "total_tokens": 5 + completion},
        "system_fingerprint": "fp",
    }
    return b"data: %b\n\n" % json.dumps(members).encode()


def taken(split: StreamSplit, frames: list[bytes]) -> list[list[bytes]]:
    """What each part was given, in order."""
    given: list[list[bytes]] = [[] for _ in split.parts]
    for frame in frames:
        for n, own, _ in split.feed(frame):
            given[n].append(own)
    return given


def objects(frames: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(data_of(frame) or b"null") for frame in frames if not is_done(frame)]


STEPS = st.lists(st.tuples(st.integers(0, 5), st.text('ab c\n"', min_size=1, max_size=3)), max_size=40)


@given(steps=STEPS, cut=st.lists(st.integers(1, 5), min_size=1, max_size=3), usage=st.booleans())
def test_each_part_gets_its_own_choices_from_zero_all_of_their_text_and_one_end(
    steps: list[tuple[int, str]], cut: list[int], usage: bool
) -> None:
    count = sum(cut)
    steps = [(index % count, text) for index, text in steps]
    frames = [chunk(index, text) for index, text in steps]
    frames += [chunk(index, "", finish="stop") for index in range(count)]
    split = StreamSplit(parts(*cut, usage=usage), request_id="r0")
    given = taken(split, [*frames, total(len(steps)), DONE])
    first = 0
    for n, own in enumerate(given):
        assert own[-1] == DONE
        assert own.count(DONE) == 1
        said = [chunk["choices"][0] for chunk in objects(own) if chunk["choices"]]
        for index in range(cut[n]):
            text = "".join(choice["delta"]["content"] for choice in said if choice["index"] == index)
            assert text == "".join(text for at, text in steps if at == first + index)
        assert {choice["index"] for choice in said} == set(range(cut[n]))
        assert all(chunk["id"] == f"chatcmpl-r{n}" for chunk in objects(own))
        assert [("usage" in chunk) for chunk in objects(own)].count(True) == usage
        first += cut[n]
    assert split.ended
    assert sum(part.completion_tokens for part in split.parts) == len(steps)


def test_a_part_ends_when_its_own_choices_have_where_the_fingerprint_is_known() -> None:
    split = StreamSplit(parts(1, 1), request_id="r0", fingerprint=Raw(b'"fp"'))
    split.feed(chunk(0, "a"))
    ends = split.feed(chunk(0, "", finish="stop"))
    assert [n for n, _, _ in ends] == [0, 0]
    assert json.loads(data_of(ends[0][1]) or b"")["system_fingerprint"] == "fp"
    assert ends[1][1] == DONE
    assert not split.ended
    assert split.feed(chunk(0, "late")) == []


def test_who_asked_for_usage_gets_its_finish_at_once_and_its_usage_with_the_engines() -> None:
    split = StreamSplit(parts(1, 1, usage=True), request_id="r0")
    assert [n for n, _, _ in split.feed(chunk(0, "a", finish="stop", tokens=1))] == [0]
    split.feed(chunk(1, "bc", finish="stop", tokens=4))
    split.feed(total(5))
    ends = taken(split, [DONE])
    assert [objects(own)[0]["usage"]["completion_tokens"] for own in ends] == [1, 4]
    assert [objects(own)[0]["usage"]["total_tokens"] for own in ends] == [6, 9]
    assert objects(ends[0])[0]["system_fingerprint"] == "fp"


@pytest.mark.parametrize(
    ("all_together", "tokens"), [(None, [2, 1]), (30, [20, 10])], ids=["not counted", "counted"]
)
def test_tokens_that_the_engine_does_not_count_for_each_choice_go_by_events(
    all_together: int | None, tokens: list[int]
) -> None:
    split = StreamSplit(parts(1, 1), request_id="r0")
    for index, text in ((0, "a"), (1, "b"), (0, "c")):
        split.feed(chunk(index, text))
    for index in (0, 1):
        split.feed(chunk(index, "", finish="stop"))
    if all_together is not None:
        split.feed(total(all_together))
    split.feed(DONE)
    assert [part.completion_tokens for part in split.parts] == tokens


def test_an_error_and_a_comment_are_everybodys() -> None:
    split = StreamSplit(parts(1, 2), request_id="r0")
    assert split.feed(b": ping\n\n") == [(0, b": ping\n\n", False), (1, b": ping\n\n", False)]
    assert split.feed(ERROR) == [(0, ERROR, False), (1, ERROR, False)]
    assert split.ended  # nothing follows an error, whatever the engine sends
    assert split.feed(chunk(0, "a")) == split.feed(DONE) == []


@pytest.mark.parametrize(
    "frame", [chunk(7, "a"), b"data: [1]\n\n", b'data: {"choices":[{"index":"x"}]}\n\n', b"data: {\n\n"]
)
def test_what_cannot_be_told_apart_is_refused(frame: bytes) -> None:
    with pytest.raises(Unfoldable):
        StreamSplit(parts(1, 1), request_id="r0").feed(frame)


@pytest.mark.parametrize("usage", [False, True])
def test_vllms_own_stream_of_four_choices_comes_apart_into_streams_such_as_it_sends_for_one(usage: bool) -> None:
    recorded = load("chat-sampled-n4-stream-usage")
    alone = load("chat-stop-stream-usage" if usage else "chat-stop-stream").frames()
    given = taken(StreamSplit(parts(1, 1, 1, 1, usage=usage), request_id=""), recorded.frames())
    shape = [sorted(chunk) for chunk in objects(alone)]
    for own in given:
        assert sorted(objects(own)[0]) == shape[0]  # the role
        assert [sorted(chunk) for chunk in objects(own)][-2:] == shape[-2:]  # finish, and usage or the last text
        assert all(chunk["choices"][0]["index"] == 0 for chunk in objects(own) if chunk["choices"])
    if usage:
        counts = [objects(own)[-1]["usage"]["completion_tokens"] for own in given]
        assert counts == [6, 6, 6, 6]


def test_vllms_own_body_of_four_choices_comes_apart_and_its_tokens_add_up() -> None:
    recorded = load("chat-sampled-n4")
    split = split_body(recorded.body, parts(1, 2, 1), request_id="")
    bodies = [json.loads(found[0]) for found in split if found is not None]
    assert [[choice["index"] for choice in body["choices"]] for body in bodies] == [[0], [0, 1], [0]]
    texts = [choice["message"]["content"] for body in bodies for choice in body["choices"]]
    assert texts == [choice["message"]["content"] for choice in recorded.json()["choices"]]
    usage = recorded.json()["usage"]
    assert sum(body["usage"]["completion_tokens"] for body in bodies) == usage["completion_tokens"]
    assert all(body["usage"]["prompt_tokens"] == usage["prompt_tokens"] for body in bodies)
    assert all(body.keys() == recorded.json().keys() for body in bodies)


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b'{"choices":null}', b'{"choices":[{"index":0},{"index":0}]}', b'{"choices":[{}]}']
)
def test_a_body_whose_choices_cannot_be_told_apart_is_refused(body: bytes) -> None:
    with pytest.raises(Unfoldable):
        split_body(body, parts(1, 1), request_id="")


@pytest.mark.parametrize("reason", ["abort", "error", None, ""])
def test_a_part_whose_choices_are_not_all_there_and_whole_gets_nothing_and_the_others_get_theirs(
    reason: str | None,
) -> None:
    choices = [{"index": n, "message": {"content": "x"}, "finish_reason": "stop"} for n in range(4)]
    choices[2]["finish_reason"] = reason
    body = json.dumps({"choices": choices}).encode()
    first, second, third = split_body(body, parts(2, 1, 2), request_id="")
    assert first is not None
    assert len(json.loads(first[0])["choices"]) == 2
    assert second is third is None


def test_tokens_that_the_engine_lists_for_each_choice_are_what_each_is_told() -> None:
    choices = [
        {"index": 0, "finish_reason": "stop", "text": "aaaaaaaa", "logprobs": {"tokens": ["a"]}},
        {"index": 1, "finish_reason": "stop", "text": "b", "logprobs": {"tokens": ["b", "c", "d"]}},
    ]
    body = json.dumps(
        {"choices": choices, "usage": {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}}
    )
    split = split_body(body.encode(), parts(1, 1), request_id="")
    assert [found[1].completion_tokens for found in split if found is not None] == [1, 3]

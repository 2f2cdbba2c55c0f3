"""When an answer is whole: shapes that engines were seen to send, properties, and the recordings of vLLM."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.frames import Usage, has_content
from proxy.wire.openai import PATHS, ApiRequest, decode
from proxy.wire.sse import DONE
from proxy.wire.whole import (
    MAX_CHOICES,
    REASONS,
    SMALL,
    asked_of,
    endings,
    lack_of,
    note,
    read_body,
    take_event,
    whole_body,
    whole_streams,
)
from tests.golden import load, names
from tests.kit.cpu import cpu_seconds

GENERATED = ("/v1/chat/completions", "/v1/completions")


def frame(*choices: dict[str, Any] | Any, **more: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps({"choices": list(choices), **more}).encode()


def end(index: int, reason: Any = "stop") -> dict[str, Any]:
    return {"index": index, "delta": {}, "finish_reason": reason}


def chat(**fields: Any) -> ApiRequest:
    return decode("chat", json.dumps({"messages": [], **fields}).encode())


def completion(prompt: Any, **fields: Any) -> ApiRequest:
    return decode("completions", json.dumps({"prompt": prompt, **fields}).encode())


@pytest.mark.parametrize(
    ("api_request", "count"),
    [
        (chat(), 1),
        (chat(n=None), 1),
        (chat(n=3), 3),
        (chat(n="3"), 0),
        (chat(n=2.0), 0),
        (chat(n=-1), 0),
        (chat(n=10**30), 0),
        (completion("a"), 1),
        (completion("a", n=2), 2),
        (completion(["a", "b"], n=2), 4),
        (completion([1, 2, 3]), 1),
        (completion([[1], [2, 3]]), 2),
        (completion([]), 0),
        (completion("a", prompt_embeds="x"), 0),
        (completion(["a" * 2_000_000]), 0),
        (decode("embeddings", b'{"input": [ "a", "b" ]}'), 2),
        (decode("embeddings", b'{"input":[1, 2]}'), 1),
        (decode("embeddings", b'{"input":[{"role":"system","content":"a"},{"role":"user","content":"b"}]}'), 0),
        (decode("embeddings", b'{"input":[[{"role":"user","content":"a"}],[{"role":"user","content":"b"}]]}'), 2),
        (decode("embeddings", b'{"input":"a", "n": 7}'), 1),
    ],
)
def test_how_many_are_asked_for(api_request: ApiRequest, count: int) -> None:
    assert asked_of(api_request) == count


RECORDED = [name for name in names() if load(name).path in PATHS.values() and load(name).status == 200]


@pytest.mark.parametrize("name", RECORDED)
def test_whatever_vllm_was_recorded_to_answer_is_whole(name: str) -> None:
    recorded = load(name)
    endpoint = next(endpoint for endpoint, path in PATHS.items() if path == recorded.path)
    asked = asked_of(decode(endpoint, recorded.request_body))
    if recorded.headers["content-type"].startswith("text/event-stream"):
        frames = recorded.frames()
        assert lack_of(endings(frames), asked) is None
        assert taken(frames[:-1], asked) == (set(range(asked)), [])
        assert whole_streams(frames[:-3], [frames[-3:], frames[-3:]])
        assert not whole_streams(frames[:-1], [[]])
    else:
        usage, lack = read_body(recorded.body, endpoint, asked)
        assert lack is None
        assert usage is not None
        assert usage.prompt_tokens == recorded.json()["usage"]["prompt_tokens"]
        assert whole_body(recorded.body)


CHOICE = {"index": 0, "message": {"content": "half"}, "finish_reason": "stop"}
NOT_WHOLE: list[tuple[int, Any, str]] = [
    (1, {"error": {"message": "no"}}, "error"),
    (1, {"error": "no", "choices": [CHOICE]}, "error"),
    (1, {"object": "error", "message": "no"}, "error"),
    (1, {}, "no choices"),
    (1, {"choices": None}, "no choices"),
    (1, {"choices": []}, "no choices"),
    (1, {"choices": {}}, "no list of choices"),
    (1, {"choices": "stop"}, "no list of choices"),
    (1, {"choices": [None]}, "no list of choices"),
    (1, {"choices": [[]]}, "no list of choices"),
    (1, {"choices": [CHOICE | {"index": "0"}]}, "no list of choices"),
    (1, {"choices": [CHOICE | {"finish_reason": 1}]}, "no list of choices"),
    (1, {"choices": [CHOICE | {"finish_reason": {"a": "stop"}}]}, "no list of choices"),
    (1, {"choices": [CHOICE | {"finish_reason": None}]}, "0 of 1"),
    (1, {"choices": [CHOICE | {"finish_reason": ""}]}, "0 of 1"),
    (1, {"choices": [{"index": 0}]}, "no list of choices"),
    (1, {"choices": [{}] * 100_000}, "no list of choices"),
    (1, {"choices": [CHOICE | {"finish_reason": "abort"}]}, "'abort'"),
    (1, {"choices": [CHOICE | {"finish_reason": "error"}]}, "'error'"),
    (1, {"choices": [CHOICE | {"finish_reason": "Stop"}]}, "'Stop'"),
    (1, {"choices": [CHOICE | {"finish_reason": "x" * 10**6}]}, "xxx"),
    (1, {"choices": [CHOICE, CHOICE]}, "choice 0"),
    (1, {"choices": [CHOICE | {"index": 1}]}, "1 of 1"),
    (1, {"choices": [CHOICE | {"index": -1}]}, "choice -1"),
    (1, {"choices": [CHOICE, CHOICE | {"index": 1}]}, "more choices than the 1 asked for"),
    (2, {"choices": [CHOICE | {"index": n} for n in range(3)]}, "more choices than the 2 asked for"),
    (2, {"choices": [CHOICE]}, "1 of 2"),
    (2, {"choices": [CHOICE, CHOICE | {"index": 1, "finish_reason": None}]}, "1 of 2"),
    (0, {"choices": [CHOICE, CHOICE | {"index": 1, "finish_reason": None}]}, "1 of 2"),
    (2, {"choices": [{"finish_reason": "stop"}, {"finish_reason": "stop"}]}, "choice 0"),
    (1, [], "not a JSON object"),
    (1, "text", "not a JSON object"),
    (1, None, "not a JSON object"),
]


@pytest.mark.parametrize(("asked", "body", "words"), NOT_WHOLE)
def test_a_body_that_is_not_whole_is_told_in_words(asked: int, body: Any, words: str) -> None:
    _, lack = read_body(json.dumps(body).encode(), "chat", asked)
    assert lack is not None
    assert words in lack.words
    assert len(lack.words) < 200
    assert not whole_body(json.dumps(body).encode()) or asked > 1 or words == "1 of 1" or "asked for" in words


DATUM = {"index": 0, "embedding": [0.5, 1]}
ODD_VECTORS: list[Any] = [None, [], "", {}, 5, True, [None], {"a": 1}, ["x"], [True], [False, 1], [{}], [0.5, "1"]]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data": None},
        {"data": []},
        {"data": {}},
        {"data": [None, None]},
        {"data": [DATUM]},
        {"data": [DATUM, {"index": 1}]},
        {"data": [DATUM, DATUM]},
        {"data": [DATUM, DATUM | {"index": 2}]},
        {"data": [DATUM, DATUM | {"index": 1}, DATUM | {"index": 2}]},
        {"data": [DATUM, {"embedding": [0.5]}]},
        *({"data": [DATUM, {"index": 1, "embedding": odd}]} for odd in ODD_VECTORS),
        {"error": {"message": "no"}, "data": [DATUM, DATUM]},
        {"object": "error"},
    ],
)
def test_embeddings_without_a_vector_for_each_input_are_not_whole(body: Any) -> None:
    assert read_body(json.dumps(body).encode(), "embeddings", 2)[1] is not None


def test_vectors_as_numbers_and_as_base64_are_whole() -> None:
    body = json.dumps({"data": [DATUM, {"index": 1, "embedding": "AAAA"}], "error": None}).encode()
    assert read_body(body, "embeddings", 2) == (None, None)


@pytest.mark.parametrize("number", ["1e999", "-1E400", "1e+309", "NaN", "Infinity"])
def test_a_vector_with_a_number_that_is_no_float_is_not_whole(number: str) -> None:
    body = b'{"data":[{"index":0,"embedding":[0.5,%b]}]}' % number.encode()
    try:
        assert read_body(body, "embeddings", 1)[1] is not None
    except msgspec.MsgspecError:
        pass  # no JSON


def test_an_event_with_a_number_of_too_many_digits_is_none_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda text: pytest.fail("it was read"))
    event = b'data: {"choices":[{"index":0,"finish_reason":"stop"}],"a":NaN,"b":%b}\n\n' % (b"9" * 310)
    assert take_event(event, {}, 1, content=False) is not None
    for text, good in ((b"9" * 310, False), (b'"%b"' % (b"9" * 310), True)):
        ended: dict[int, str] = {}
        filled = b'data: {"choices":[{"index":0,"finish_reason":"stop"}],"a":"%b","b":%b}\n\n' % (
            b"x" * SMALL,
            text,
        )
        assert (take_event(filled, ended, 1, content=False) is None) is good
        assert ended == ({0: "stop"} if good else {})


@pytest.mark.parametrize("offset", [0, 1, 17, 33])
@pytest.mark.parametrize("number", ["9" * 309, "-" + "9" * 309, "9" * 310, "9" * 4299, "9" * 310 + "e-1"])
def test_a_vector_with_an_integer_that_is_no_float_is_not_whole(number: str, offset: int) -> None:
    for numbers in (number, f"1,{number},2"):
        body = b'{"data":[{"index":0,"embedding":[%b%b]}]}' % (b" " * offset, numbers.encode())
        assert read_body(body, "embeddings", 1)[1] is not None


def test_a_vector_of_long_integers_takes_linear_time() -> None:
    body = b'{"data":[{"index":0,"embedding":[%b1]}]}'

    def seconds(number: bytes) -> float:
        text = body % ((number + b",") * (1_000_000 // len(number)))
        return min(cpu_seconds(lambda: read_body(text, "embeddings", 1)) for _ in range(3))

    assert seconds(b"9" * 4299) < 3 * seconds(b"1" * 300)


@pytest.mark.parametrize("number", ["1" + "0" * 308, "-1" + "0" * 308])
def test_a_vector_may_have_the_largest_integers_that_are_floats(number: str) -> None:
    body = b'{"data":[{"index":0,"embedding":[%b]}]}' % number.encode()
    assert read_body(body, "embeddings", 1)[1] is None


@pytest.mark.parametrize("number", ["0", "-1", "1e-05", "1.5E-7", "2e3", "1E+2", "-0.0"])
def test_a_vector_s_numbers_may_be_written_in_any_way_of_json(number: str) -> None:
    body = b'{"data":[{"index":0,"embedding":[%b, 1]}]}' % number.encode()
    assert read_body(body, "embeddings", 1)[1] is None


ODD = ["1" + 30 * "0", str(2**64), str(2**41), "-1", "5.0", '"5"', "[]", "true", "1e400", "1" + 5000 * "0"]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens", "total_tokens"])
def test_a_count_that_cannot_be_is_left_out_and_the_answer_is_whole(odd: str, name: str) -> None:
    usage = {"prompt_tokens": "3", "completion_tokens": "4", "total_tokens": "7"} | {name: odd}
    text = ",".join(f'"{member}":{value}' for member, value in usage.items())
    body = b'{"choices":[%b],"usage":{%b}}' % (json.dumps(CHOICE).encode(), text.encode())
    found, lack = read_body(body, "chat", 1)
    assert lack is None
    assert found == (Usage(3, 4, 7) if name == "total_tokens" else None)


@pytest.mark.parametrize("usage", [b"null", b"[]", b"5", b'"x"', b'{"prompt_tokens":null}'])
def test_usage_of_another_type_is_left_out(usage: bytes) -> None:
    body = b'{"choices":[%b],"usage":%b}' % (json.dumps(CHOICE).encode(), usage)
    found, lack = read_body(body, "chat", 1)
    assert lack is None
    assert found is None or found == Usage()


@pytest.mark.parametrize("body", [b"", b"{", b'{"choices":NaN}', b'{"choices":[' + b"[" * 100_000, b"\xff"])
def test_what_is_not_json_is_told_by_an_exception_that_is_expected(body: bytes) -> None:
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError, RecursionError)):
        read_body(body, "chat", 1)
    assert not whole_body(body)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([*sorted(REASONS), "abort", "error", "", None, 5, ["stop"]])),
        max_size=8,
    ),
    st.integers(0, 4),
)
def test_a_stream_is_whole_where_each_choice_ended_and_none_was_aborted(
    finishes: list[tuple[int, Any]], asked: int
) -> None:
    ended: dict[int, str] = {}
    for index, reason in finishes:
        note(frame(end(index, reason)), ended)
    readable = [(index, reason) for index, reason in finishes if reason is None or isinstance(reason, str)]
    bad = [reason for _, reason in readable if reason and reason not in REASONS]
    seen = {index for index, _ in readable}
    good = {index for index, reason in readable if reason in REASONS}
    whole = not bad and bool(good) and seen == good and (not asked or good == set(range(asked)))
    lack = lack_of(ended, asked)
    assert (lack is None) is whole
    if lack is not None:
        assert (lack.few or lack.more) is not bool(bad)
        assert lack.more is (not bad and bool(good) and seen == good > set(range(asked)))
        assert not bad or repr(bad[0]) in lack.words or repr(bad[-1]) in lack.words or len(set(bad)) > 1


@pytest.mark.parametrize(
    "odd",
    [
        b"",
        b": ping\n\n",
        b"data: {\n\n",
        b'data: {"choices":[{"finish_reason":"stop"\n\n',
        b'data: {"choices":{"finish_reason":"stop"}}\n\n',
        b'data: [{"finish_reason":"stop"}]\n\n',
        b'data: {"x":' + b"[" * 100_000 + b',"finish_reason":"stop"}\n\n',
        b'data: {"choices":[{"index":1.5,"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[{"index":true,"finish_reason":"stop"}]}\n\n',
        b'data: \xff{"choices":[{"finish_reason":"stop"}]}\n\n',
    ],
)
def test_a_frame_that_cannot_be_read_ends_nothing_and_raises_nothing(odd: bytes) -> None:
    ended: dict[int, str] = {}
    note(odd, ended)
    assert ended == {}


@pytest.mark.parametrize("index", [-1, MAX_CHOICES, 10**30])
def test_an_index_that_cannot_be_is_no_choice(index: int) -> None:
    ended: dict[int, str] = {}
    assert not note(frame(end(index), end(0)), ended)
    lack = lack_of(ended, 1)
    assert lack is not None
    assert "index" in lack.words


@pytest.mark.parametrize(
    "odd", [b'"lp":NaN', b'"lp":-Infinity', b'"text":"\\ud83d"', b'"lp":1e999', b'"a":1,"a":2']
)
def test_what_python_reads_in_a_finish_frame_is_read(odd: bytes) -> None:
    ended: dict[int, str] = {}
    assert note(b'data: {"choices":[{%b,"index":0,"finish_reason" : "length"}]}\n\n' % odd, ended)
    assert ended == {0: "length"}


TEXT = frame({"index": 0, "delta": {"content": "a [DONE] b\n\n"}, "finish_reason": None})


@pytest.mark.parametrize(
    ("frames", "whole"),
    [
        ([TEXT, frame(end(0)), DONE], True),
        ([TEXT, frame(end(0)), frame(usage={"prompt_tokens": 1}), DONE], True),
        ([TEXT.replace(b"\n", b"\r\n"), frame(end(0)).replace(b"\n", b"\r\n"), b"data: [DONE]\r\n\r\n"], True),
        ([b'data: {"choices":[{"finish_reason"   :  "stop"}]}\n\n', DONE], True),
        ([TEXT, frame(end(0), end(1, None)), DONE], False),
        ([TEXT, frame(end(0, "abort")), DONE], False),
        ([TEXT, frame(end(0)), frame(end(0, "abort")), DONE], False),
        ([TEXT, frame(end(0)), frame(end(1, "error")), DONE], False),
        ([TEXT, frame(end(0)), DONE, DONE], False),
        ([TEXT, DONE, frame(end(0)), DONE], False),
        ([TEXT, frame(end(0)), DONE, TEXT], False),
        ([TEXT, frame(end(0))], False),
        ([TEXT, DONE], False),
        ([DONE], False),
        ([], False),
    ],
)
def test_stored_frames_are_whole_where_done_is_last_and_once_and_each_choice_ended(
    frames: list[bytes], whole: bool
) -> None:
    for cut in range(len(frames)):
        assert whole_streams(frames[:cut], [frames[cut:]]) is whole
    assert not whole_streams(frames, [[]])


def taken(frames: list[bytes], asked: int) -> tuple[set[int], list[str]]:
    """The choices that have ended by these events, and what no whole answer has."""
    ended: dict[int, str] = {}
    lacks = [take_event(each, ended, asked, content=has_content(each)) for each in frames]
    return set(ended), [lack.words for lack in lacks if lack is not None]


CONTENT = {"index": 0, "delta": {"content": "a"}, "finish_reason": None}


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (b"data: boom\n\n", "no part of an answer"),
        (b'data: {"type":"error","message":"x"}\n\n', "no part of an answer"),
        (b'data: {"detail":"Internal Server Error"}\n\n', "no part of an answer"),
        (b'data: [{"error":{"message":"boom"}}]\n\n', "no part of an answer"),
        (b'data: {"e\\u0072ror":{"message":"boom"}}\n\n', "no part of an answer"),
        (b'data: {"choices":null}\n\n', "no part of an answer"),
        (b'data: \xef\xbb\xbf{"choices":[{"index":1,"finish_reason":"stop"}]}\n\n', "no part of an answer"),
        (b'data: {"choices":[5]}\n\n', "no part of an answer"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "no part of an answer"),
        (frame(CONTENT | {"index": -1}), "no part of an answer"),
        (frame(CONTENT | {"index": 10**30}), "more choices than the 2 asked for"),
        (frame(CONTENT | {"index": 2}), "more choices than the 2 asked for"),
        (frame(end(2)), "more choices than the 2 asked for"),
        (frame(CONTENT), "continued the choice 0 after its finish_reason"),
        (frame(CONTENT | {"finish_reason": "stop"}), "continued the choice 0 after its finish_reason"),
        (frame(end(1, "abort")), "no part of an answer"),
        (b'data: {"choices":[{"index":1,"finish\\u005freason":"abort"}]}\n\n', "no part of an answer"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_an_event_that_no_whole_answer_has_is_told(odd: bytes, words: str) -> None:
    _, lacks = taken([frame(CONTENT), frame(end(0)), odd, frame(end(1))], 2)
    assert len(lacks) == 1
    assert words in lacks[0]


@pytest.mark.parametrize(
    "event",
    [
        frame(CONTENT | {"index": 1}),
        frame(end(0)),  # twice, without content
        frame({"index": 0, "delta": {"content": ""}, "finish_reason": None}),
        frame(usage={"prompt_tokens": 1}),
        b'data: {"usage":{"prompt_tokens":1}}\n\n',
        b"data:\n\n",  # which no client is told of
        b"data:  \n\n",
        b'data: {"choices":[{"index":1,"logprobs":NaN}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\ud83d"},"index":1}],"x":5}\n\n',
    ],
)
def test_an_event_that_a_whole_answer_may_have_lacks_nothing(event: bytes) -> None:
    ended, lacks = taken([frame(CONTENT), frame(end(0)), event, frame(end(1))], 2)
    assert (ended, lacks) == ({0, 1}, [])


def test_a_reason_of_any_length_is_told_by_its_beginning() -> None:
    lack = lack_of({0: "x" * 70}, 1)
    assert lack is not None
    assert lack.words == f"The engine ended the answer with finish_reason {'x' * 64!r}."


@pytest.mark.parametrize(
    ("body", "few"), [(b'{"choices":[]}', True), (b'{"choices":null}', False), (b"{}", False)]
)
def test_a_body_without_choices_has_too_few_only_where_it_lists_them(body: bytes, few: bool) -> None:
    lack = read_body(body, "chat", 1)[1]
    assert lack is not None
    assert lack.few is few

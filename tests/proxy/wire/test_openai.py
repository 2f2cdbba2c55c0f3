"""Request bodies: what is read of them, what is refused and how, and what goes up to the engine."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.wire.openai import Endpoint, decode, stream_extras, with_usage

CHAT = b'{"model": "m1", "messages": [{"role": "user", "content": "hi"}]}'
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def test_a_request_is_read_for_what_the_gateway_acts_on() -> None:
    body = CHAT[:-1] + b', "stream": true, "stream_options": {"include_usage": true}, "temperature": 0, "seed": 7}'
    api_request = decode("chat", body)
    assert (api_request.endpoint, api_request.model, api_request.stream, api_request.include_usage) == (
        "chat",
        "m1",
        True,
        True,
    )
    assert (api_request.temperature, api_request.seed, api_request.body) == (0, 7, body)
    assert list(api_request.fields) == ["model", "messages", "stream", "stream_options", "temperature", "seed"]
    assert api_request.prompt == b'[{"role": "user", "content": "hi"}]'


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("chat", b'{"messages": []}'),
        ("chat", b' \n{"messages": [1, null]}\n'),
        ("chat", b'{"messages": [], "model": null, "stream": null, "stream_options": null}'),
        ("chat", b'{"messages": [], "temperature": 1, "seed": -1}'),
        ("chat", b'{"messages": [], "stream_options": { }}'),
        ("chat", b'{"messages": [], "logit_bias": {"1": 1e400}, "": 0}'),
        ("chat", b'{"messages": [{"a": 1, "a": 2}]}'),
        ("completions", b'{"prompt": "a"}'),
        ("completions", b'{"prompt": [1, 2]}'),
        ("completions", b'{"prompt": [[1], "a"]}'),
        ("completions", b'{"prompt_embeds": "AAAA"}'),
        ("embeddings", b'{"input": "a"}'),
        ("embeddings", b'{"input": [[1, 2]]}'),
    ],
)
def test_a_body_that_the_engine_might_take_is_passed_on(endpoint: Endpoint, body: bytes) -> None:
    api_request = decode(endpoint, body)
    assert api_request.body == body
    assert api_request.stream is False
    assert api_request.fields.keys() == json.loads(body).keys()


@pytest.mark.parametrize(
    ("endpoint", "body", "code", "param", "says"),
    [
        ("chat", b"", Code.INVALID_JSON, None, "empty"),
        ("chat", b"{", Code.INVALID_JSON, None, "not valid JSON"),
        ("chat", CHAT + b"x", Code.INVALID_JSON, None, "not valid JSON"),
        ("chat", CHAT + CHAT, Code.INVALID_JSON, None, "not valid JSON"),
        ("chat", b'{"messages": [], "a": NaN}', Code.INVALID_JSON, None, "not valid JSON"),
        ("chat", b'{"messages": [], }', Code.INVALID_JSON, None, "not valid JSON"),
        ("chat", b'{"messages": "\xff"}', Code.INVALID_JSON, None, "byte 14"),
        ("chat", b"\xff\xfe{\x00}\x00", Code.INVALID_JSON, None, "UTF-8"),
        ("chat", b'{"messages": [], "a": 1, "a": 1}', Code.INVALID_JSON, "a", "'a' is given twice"),
        ("chat", b'{"messages": [], "\\u0061": 1, "a": 1}', Code.INVALID_JSON, "a", "'a' is given twice"),
        ("chat", b"[]", Code.INVALID_VALUE, None, "must be a JSON object"),
        ("chat", b"null", Code.INVALID_VALUE, None, "must be a JSON object"),
        ("chat", b'"a"', Code.INVALID_VALUE, None, "must be a JSON object"),
        ("chat", b"{}", Code.MISSING_FIELD, "messages", "'messages' is missing"),
        ("chat", b'{"messages": null}', Code.MISSING_FIELD, "messages", "required"),
        ("chat", b'{"prompt_embeds": "AAAA"}', Code.MISSING_FIELD, "messages", "required"),
        ("completions", b'{"messages": []}', Code.MISSING_FIELD, "prompt", "required"),
        ("embeddings", b'{"prompt": "a"}', Code.MISSING_FIELD, "input", "required"),
        ("chat", b'{"messages": "a"}', Code.INVALID_VALUE, "messages", "array"),
        ("chat", b'{"messages": {}}', Code.INVALID_VALUE, "messages", "array"),
        ("completions", b'{"prompt": 1}', Code.INVALID_VALUE, "prompt", "str"),
        ("chat", b'{"messages": [], "model": 1}', Code.INVALID_VALUE, "model", "str"),
        ("chat", b'{"messages": [], "stream": "wahr"}', Code.INVALID_VALUE, "stream", "bool"),
        ("chat", b'{"messages": [], "stream": 2}', Code.INVALID_VALUE, "stream", "bool"),
        ("chat", b'{"messages": [], "temperature": "0x"}', Code.INVALID_VALUE, "temperature", "float"),
        ("chat", b'{"messages": [], "seed": 1.5}', Code.INVALID_VALUE, "seed", "int"),
        ("chat", b'{"messages": [], "stream_options": 1}', Code.INVALID_VALUE, "stream_options", "object"),
        (
            "chat",
            b'{"messages": [], "stream_options": {"include_usage": 2}}',
            Code.INVALID_VALUE,
            "stream_options.include_usage",
            "bool",
        ),
        (
            "chat",
            b'{"messages": [], "stream_options": {"include_usage": false}}',
            Code.INVALID_VALUE,
            "stream_options",
            "with stream: true",
        ),
        (
            "completions",
            b'{"prompt": "", "stream_options": {"n": 1}}',
            Code.INVALID_VALUE,
            "stream_options",
            "stream",
        ),
    ],
)
def test_a_body_that_cannot_be_right_is_refused_with_what_and_where(
    endpoint: Endpoint, body: bytes, code: Code, param: str | None, says: str
) -> None:
    with pytest.raises(GatewayError, match=says) as caught:
        decode(endpoint, body)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.status == 400


@pytest.mark.parametrize("opener", [b"[", b'{"a":'])
def test_a_body_nested_beyond_reason_is_refused(opener: bytes) -> None:
    with pytest.raises(GatewayError) as caught:
        decode("chat", b'{"messages": [], "a": ' + opener * 100_000)
    assert caught.value.code is Code.INVALID_JSON


@given(body=st.binary(max_size=60) | TEXT.map(str.encode))
def test_no_bytes_break_it_but_as_an_error_of_the_client(body: bytes) -> None:
    try:
        decode("chat", body)
    except GatewayError as error:
        assert error.status == 400


@given(
    extras=st.dictionaries(
        TEXT, st.integers() | TEXT | st.floats(allow_nan=False, allow_infinity=False), max_size=4
    )
)
def test_asking_for_usage_keeps_every_other_member_as_it_was_written(extras: dict[str, Any]) -> None:
    extras = {
        k: v for k, v in extras.items() if k not in ("model", "stream", "stream_options", "temperature", "seed")
    }
    body = json.dumps(
        {**extras, "messages": [{"content": "é", "role": "user"}], "stream": True}, indent=1
    ).encode()
    api_request = decode("chat", body)
    asked = msgspec.json.decode(with_usage(api_request), type=dict[str, msgspec.Raw])
    assert json.loads(bytes(asked.pop("stream_options"))) == {"include_usage": True}
    assert {name: bytes(raw) for name, raw in asked.items()} == {
        n: bytes(raw) for n, raw in api_request.fields.items()
    }


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ("null", '{"include_usage":true}'),
        ("{}", '{"include_usage":true}'),
        ('{"include_usage": false}', '{"include_usage":true}'),
        (
            '{"continuous_usage_stats": true}',
            '{"include_usage":true}',
        ),  # says nothing where usage is not asked for
        ('{"x": [1, 2.0]}', '{"x":[1, 2.0],"include_usage":true}'),
    ],
)
def test_asking_for_usage_keeps_the_other_stream_options(options: str, asked: str) -> None:
    api_request = decode("chat", f'{{"messages": [], "stream": true, "stream_options": {options}}}'.encode())
    assert with_usage(api_request).decode() == f'{{"messages":[],"stream":true,"stream_options":{asked}}}'


@pytest.mark.parametrize(
    ("members", "read"),
    [
        ('"stream": 1', (True, False, None, None)),
        ('"stream": "True", "stream_options": {"include_usage": "yes"}', (True, True, None, None)),
        ('"stream": "0", "temperature": "0", "seed": "4"', (False, False, 0.0, 4)),
        ('"temperature": " .5", "seed": 42.0', (False, False, 0.5, 42)),
        ('"stream": 1.0, "stream_options": {"include_usage": 0, "new": [1]}', (True, False, None, None)),
    ],
)
def test_loose_types_are_read_as_vllm_reads_them_and_sent_as_they_came(
    members: str, read: tuple[bool, bool, float | None, int | None]
) -> None:
    body = f'{{"messages": [], {members}}}'.encode()
    api_request = decode("chat", body)
    assert (api_request.stream, api_request.include_usage, api_request.temperature, api_request.seed) == read
    assert api_request.body == body


@pytest.mark.parametrize(
    ("options", "extras"),
    [
        (None, {}),
        ("null", {}),
        ("{}", {}),
        ('{"include_usage": true}', {}),
        ('{"continuous_usage_stats": false}', {}),
        ('{"continuous_usage_stats": null, "x": null, "y": false}', {"x": b"null", "y": b"false"}),
        ('{"include_usage": true, "continuous_usage_stats": true}', {"continuous_usage_stats": b"true"}),
        ('{"x": {"a": 1}}', {"x": b'{"a": 1}'}),
    ],
)
def test_only_stream_options_that_change_the_frames_are_extras(
    options: str | None, extras: dict[str, bytes]
) -> None:
    member = "" if options is None else f', "stream_options": {options}'
    found = stream_extras(decode("chat", f'{{"messages": [], "stream": true{member}}}'.encode()))
    assert {name: bytes(raw) for name, raw in found.items()} == extras


@given(
    st.lists(
        st.tuples(st.sampled_from(["model", "user", "é", "x", "\n", "", "\x1f", '"']), st.text(max_size=5)),
        max_size=6,
    ),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,", " :"), (",", ": ")]),
    st.booleans(),
)
def test_a_member_given_twice_is_always_found(
    members: list[tuple[str, str]], marks: tuple[str, str], ascii_only: bool
) -> None:
    pairs: list[tuple[str, object]] = [("messages", []), *members]
    texts = [
        json.dumps(name, ensure_ascii=ascii_only) + marks[1] + json.dumps(value, ensure_ascii=ascii_only)
        for name, value in pairs
    ]
    body = ("{" + marks[0].join(texts) + "}").encode()
    names = [name for name, _ in pairs]
    if len(set(names)) == len(names):
        assert set(decode("chat", body).fields) == set(names)
    else:
        with pytest.raises(GatewayError, match="given twice"):
            decode("chat", body)


def test_a_member_as_short_as_can_be_given_twice_is_found() -> None:
    for body in (
        b'{"":0,"":0,"messages":[]}',
        b'{"messages":[],"":"","":0}',
        b'{"n":1,"n":2,"messages":[]}',
        b'{"\\"\\"":1, "\\u0022\\u0022":2, "messages":[]}',
    ):
        with pytest.raises(GatewayError, match="given twice"):
            decode("chat", body)


@given(st.text(max_size=8), st.randoms(use_true_random=False))
def test_no_spelling_of_a_name_is_shorter_than_the_one_that_sizes_are_compared_with(name: str, pick: Any) -> None:
    """What the check for members given twice rests on."""
    try:
        least = len(msgspec.json.encode({name: 0}))
    except UnicodeEncodeError:
        return  # a lone surrogate is no name
    escaped = "".join(json.dumps(c, ensure_ascii=pick.random() < 0.5)[1:-1] for c in name)
    body = f'{{"{escaped}":0}}'.encode()
    assert msgspec.json.decode(body) == {name: 0}
    assert least <= len(body)


@pytest.mark.parametrize("tail", ["", " \n"])
def test_usage_is_asked_for_without_writing_the_body_anew(tail: str) -> None:
    body = '{"messages": [ ], "stream": true}' + tail
    assert with_usage(decode("chat", body.encode())) == (
        b'{"messages": [ ], "stream": true,"stream_options":{"include_usage":true}}'
    )
    asked = ('{"stream_options": {"include_usage": true}, "stream": true, "messages": []}' + tail).encode()
    assert with_usage(decode("chat", asked)) == asked

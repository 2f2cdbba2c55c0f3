"""Request bodies at their bounds: members, messages, options; and bodies that are sent with other values."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from proxy.errors import Code, GatewayError
from proxy.wire.openai import (
    MAX_MEMBERS,
    MAX_MESSAGES,
    MAX_STREAM_OPTIONS,
    ApiRequest,
    Large,
    decode,
    stream_extras,
    with_fields,
    with_usage,
)


def refused(body: bytes) -> GatewayError:
    with pytest.raises(GatewayError) as e:
        decode("chat", body)
    return e.value


def test_a_request_may_have_so_many_members() -> None:
    members: dict[str, Any] = {"messages": [], **{f"n{n}": 0 for n in range(MAX_MEMBERS)}}
    error = refused(json.dumps(members).encode())
    assert (error.code, error.param) == (Code.INVALID_VALUE, None)
    assert f"has {MAX_MEMBERS + 1} members; it may have {MAX_MEMBERS}" in error.message
    del members["n0"]
    assert len(decode("chat", json.dumps(members).encode()).fields) == MAX_MEMBERS


def test_a_chat_may_have_so_many_messages_and_a_list_of_prompts_more() -> None:
    most = b"[" + b",".join([b"{}"] * MAX_MESSAGES)
    assert decode("chat", b'{"messages":%b]}' % most).prompt == most + b"]"
    error = refused(b'{"messages":%b,{}]}' % most)
    assert (error.code, error.param) == (Code.INVALID_VALUE, "messages")
    assert f"There are {MAX_MESSAGES + 1} messages; at most {MAX_MESSAGES}" in error.message
    assert decode("completions", b'{"prompt":%b,{}]}' % most).stream is False


@pytest.mark.parametrize("stream", [b"true", b"1"])
def test_stream_options_may_have_so_many_bytes(stream: bytes) -> None:
    start = b'{"messages":[],"stream":%b,"stream_options":' % stream
    options = b'{"a":"%b"}' % (b"x" * (MAX_STREAM_OPTIONS - 8))
    assert stream_extras(decode("chat", start + options + b"}")).keys() == {"a"}
    error = refused(start + options.replace(b"x", b"xx", 1) + b"}")
    assert (error.code, error.param) == (Code.INVALID_VALUE, "stream_options")
    assert f"over {MAX_STREAM_OPTIONS} bytes" in error.message


@pytest.mark.parametrize("more", [0, 1])
def test_which_member_is_given_twice_is_told_where_that_is_cheap_to_find(more: int) -> None:
    commas = 100_000 - 2 + more
    error = refused(b'{"messages":[%b0],"a":1,"a":2}' % (b"0," * commas))
    assert error.code is Code.INVALID_JSON
    assert (error.param, error.message) == (
        (None, "A field is given twice; give each once.")
        if more
        else ("a", "The field 'a' is given twice; give it once.")
    )
    escaped = refused(b'{"messages":[%b0],"a":1,"\\u0061":2}' % (b"0," * commas))
    assert escaped.param == "a"


@pytest.mark.parametrize("spaces", ["", " " * 9])
def test_a_long_body_in_which_each_is_given_once_is_taken(spaces: str) -> None:
    body = b'{"prompt":%b[%b0]}' % (spaces.encode(), b"0," * 100_001)
    assert decode("completions", body).body is body


def test_a_body_that_is_no_json_is_told_in_the_reader_s_words() -> None:
    told = "The request body is not valid JSON: JSON is malformed: invalid character (byte 13)."
    assert refused(b'{"messages":[}').message == told
    assert "surrogate" in refused(b'{"messages":["\\ud800"]}').message


def test_a_long_name_that_is_given_twice_is_told_by_its_beginning() -> None:
    name = b"n" * 70
    error = refused(b'{"messages":[],"%b":1,"%b":2}' % (name, name))
    assert (error.param, error.message) == ("n" * 64, f"The field {'n' * 64!r} is given twice; give it once.")


def test_a_wrong_type_is_told_with_its_place_and_without_the_reader_s_own_words() -> None:
    error = refused(b'{"messages":[],"model":5}')
    assert error.message == "Wrong type at 'model': Expected `str | null`, got `int`."
    assert refused(b"[]").message == "The request body must be a JSON object: Expected `object`, got `array`."


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (b'{"messages":[],"stream":true,"stream_options":{"include_usage":null}}', (True, False)),
        (b'{"messages":[],"stream":"on","stream_options":{"include_usage":"maybe"}}', None),
        (b'{"messages":[],"stream":"on","stream_options":"x"}', None),
        (b'{"messages":[],"stream":"1","stream_options":{"include_usage":"1"}}', (True, True)),
    ],
)
def test_options_of_a_loose_type_are_read_or_refused(body: bytes, read: tuple[bool, bool] | None) -> None:
    if read is None:
        assert refused(body).code is Code.INVALID_VALUE
    else:
        api_request = decode("chat", body)
        assert (api_request.stream, api_request.include_usage) == read


def test_streaming_options_of_an_embedding_are_for_the_engine_to_judge() -> None:
    api_request = decode("embeddings", b'{"input":"a","stream_options":{"include_usage":true}}')
    assert api_request.include_usage


def ask_of(body: bytes) -> ApiRequest:
    return decode("chat", body)


def test_other_values_of_fields_that_are_there_are_put_in_their_place() -> None:
    api_request = with_fields(ask_of(b'{ "n": 1, "messages": [] }'), {"n": Raw(b"2"), "x": Raw(b"3")})
    assert api_request.body == b'{"n":2,"messages":[],"x":3}'
    assert {name: bytes(raw) for name, raw in api_request.fields.items()} == {
        "n": b"2",
        "messages": b"[]",
        "x": b"3",
    }


def test_fields_that_are_new_are_put_at_the_end_of_what_the_client_wrote() -> None:
    api_request = with_fields(ask_of(b'{ "messages": [] } \n'), {"n": Raw(b"2"), 'a"': Raw(b"null")})
    assert api_request.body == b'{ "messages": [] ,"n":2,"a\\"":null}'
    assert decode("chat", api_request.body).fields.keys() == api_request.fields.keys()
    empty = msgspec.structs.replace(api_request, fields={}, body=b"{}")
    assert with_fields(empty, {"n": Raw(b"2")}).body == b'{"n":2}'


def test_usage_is_asked_for_in_a_request_without_fields_and_in_no_large_one() -> None:
    api_request = ask_of(b'{"messages":[],"stream":true}')
    bare = msgspec.structs.replace(api_request, fields={}, body=b"{}")
    assert with_usage(bare) == b'{"stream_options":{"include_usage":true}}'
    large = msgspec.structs.replace(api_request, large=Large((1, 1), None, 0, False))
    assert with_usage(large) is api_request.body
    assert with_usage(api_request) == b'{"messages":[],"stream":true,"stream_options":{"include_usage":true}}'


def test_a_prompt_that_is_not_there_is_null() -> None:
    assert decode("completions", b'{"prompt_embeds":"x"}').prompt == b"null"

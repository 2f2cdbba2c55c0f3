"""The key where an engine may refuse a request: a refusal is for those alone who sent the same."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.flights.key import Keyer
from proxy.wire.openai import Endpoint, decode
from tests.proxy.flights.test_key import CHAT, Written, dense, key, spelled


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user", 5),
        ("user", ["a"]),
        ("user", "x" * 257),
        ("user", "a\0b"),
        ("metadata", "x"),
        ("metadata", []),
        ("metadata", {"a": 1}),
        ("metadata", {"a": ["b"]}),
        ("metadata", {"a": None}),
        ("metadata", {"n" * 65: "v"}),
        ("metadata", {"n": "v" * 513}),
        ("metadata", {"n": "v" * 10**6}),
        ("metadata", {str(n): "v" for n in range(17)}),
        ("stream_options", {}),
    ],
)
def test_what_an_engine_may_refuse_is_keyed_though_it_changes_no_token(name: str, value: Any) -> None:
    """CHAT is not streamed: vLLM refuses stream_options there."""
    assert key({**CHAT, name: value}) != key(CHAT)
    assert key({**CHAT, name: value}) == key(json.dumps({**CHAT, name: value}, indent=1))


@pytest.mark.parametrize(
    ("name", "value"), [("stream", True), ("stream_options", {}), ("stream_options", {"include_usage": True})]
)
def test_streaming_of_an_embedding_is_keyed(name: str, value: object) -> None:
    body = {"model": "m1", "input": "a"}
    assert key({**body, name: value}, "embeddings") != key(body, "embeddings")
    assert key({**body, "stream": False}, "embeddings") == key(body, "embeddings")


TWICE = (
    ("x", '{"a":1,"a":2}', '{"a":2}'),
    ("x", '[{"":{},"":0}]', '[{"":0}]'),
    ("x", '{"a":"\\"","a":2}', '{"a":2}'),
    ("user", '{"a":1,"a":2}', '{"a":2}'),
    ("metadata", '{"a":"1","a":"2"}', '{"a":"2"}'),
    ("metadata", '{"a":"1","\\u0061":"2"}', '{"a":"2"}'),
    ("stream_options", '{"include_usage":true,"include_usage":true}', '{"include_usage":true}'),
    ("stream_options", '{"new":"a","new":"b"}', '{"new":"b"}'),
)


@pytest.mark.parametrize(("name", "twice", "once"), TWICE)
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_member_given_twice_inside_a_field_sets_a_request_apart(
    name: str, twice: str, once: str, endpoint: Endpoint
) -> None:
    """A strict engine refuses it. The last one counts for others, as for us."""
    start = '{"messages":[{"role":"user","content":"a\\"b"}],"prompt":"","stream":true,'
    bodies = [f"{start}{json.dumps(name)}: {text}}}" for text in (twice, once)]
    assert key(bodies[0], endpoint) != key(bodies[1], endpoint)
    assert key(bodies[0], endpoint) == key(bodies[0], endpoint)


def test_a_member_given_twice_in_a_message_or_an_option_of_embeddings_sets_it_apart() -> None:
    assert key('{"messages":[{"a":1,"a":"b"}]}') != key('{"messages":[{"a":"b"}]}')
    asks = [
        decode("embeddings", f'{{"input":["a"],"x":{text}}}'.encode()) for text in ('{"a":1,"a":2}', '{"a":2}')
    ]
    assert len({Keyer().items(ask, [b'"a"'])[0] for ask in asks}) == 2


@pytest.mark.parametrize("name", ["x", "user", "metadata"])
def test_a_quote_is_the_same_however_it_is_written(name: str) -> None:
    """.NET writes it as an escape."""
    said = '{"a": "b\\"c"}' if name == "metadata" else '"b\\"c"'
    start = json.dumps(CHAT)[:-1] + f', "{name}": '
    spelled_ = [f"{start}{text}}}" for text in (said, said.replace('\\"', "\\u0022"))]
    assert spelled_[0] != spelled_[1]
    assert key(spelled_[0]) == key(spelled_[1])
    assert (key(spelled_[0]) == key(CHAT)) is (name != "x")


@pytest.mark.parametrize(
    "form",
    [
        '{"messages":[{"role":"user",%s}]}',
        '{"messages":[{"role":"user","content":"a"}],"x":{%s}}',
        '{"messages":[{"role":"user","content":"a"}],"metadata":{%s}}',
    ],
)
def test_escaped_quotes_do_not_hide_a_member_given_twice(form: str) -> None:
    """Four quotes written as escapes are as many as the second member has."""
    twice = form % '"content":"evil","content":"\\u0022x\\u0022 \\u0022y\\u0022"'
    plain = form % '"content":"\\"x\\" \\"y\\""'
    assert twice.count('"') == plain.count('"')
    assert key(twice) != key(plain)


def test_a_body_padded_to_many_times_its_size_is_one_with_its_like_alone() -> None:
    """An engine, or what stands before it, may refuse a body for its size."""
    body = json.dumps(CHAT)
    assert key(body + " " * 1000) == key(body)
    padded = body + " " * 200_000
    assert key(padded) != key(body)
    assert key(padded) == key(padded)


# -- who shares a key shares an engine's answer, also that of an engine that refuses what it can ----------


class Refusal(Exception):
    """A strict engine's 400."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise Refusal("given twice")
    return dict(pairs)


def strict(body: str) -> object:
    """What an engine makes of a request of chat that refuses whatever an engine could."""
    fields = json.loads(body, parse_float=Written, object_pairs_hook=once)
    user, metadata, options = (fields.pop(name, None) for name in ("user", "metadata", "stream_options"))
    if user is not None and not (isinstance(user, str) and len(user) <= 256):
        raise Refusal("user")
    if metadata is not None and not (
        isinstance(metadata, dict)
        and len(metadata) <= 16
        and all(isinstance(value, str) and len(value) <= 512 for value in metadata.values())
    ):
        raise Refusal("metadata")
    if options is not None:
        known = {"include_usage", "continuous_usage_stats"}
        if not fields.get("stream") or not isinstance(options, dict) or options.keys() - known:
            raise Refusal("stream_options")
    fields.pop("stream", None)
    fields["messages"] = [dict(sorted(message.items())) for message in fields["messages"]]
    usage = bool((options or {}).get("continuous_usage_stats"))
    return dense([dict(sorted(fields.items())), usage])


USUAL = {
    "user": st.sampled_from([None, "a", "b", ""]),
    "metadata": st.sampled_from([None, {}, {"a": "b"}]),
    "stream": st.sampled_from([None, True, False]),
    "stream_options": st.sampled_from([None, {}, {"include_usage": True}, {"continuous_usage_stats": True}]),
}
UNUSUAL = {
    "user": st.sampled_from([5, [], "x" * 300, {"a": "b"}, True]),
    "metadata": st.sampled_from(["x", {"a": 1}, {"a": "b" * 600}, [], {"a": {"a": "b"}}]),
    "stream_options": st.sampled_from([{"new": None}, {"new": 1}, {"include_usage": False}]),
    "x": st.sampled_from([{"a": "b"}, {"a": "b"}, Written("1.0")]),
}
LIKE = st.builds(
    lambda usual, unusual: {"messages": [{"role": "user", "content": "a"}], **usual, **unusual},
    st.fixed_dictionaries({}, optional=USUAL),
    st.fixed_dictionaries({}, optional=UNUSUAL),
)
DOUBLED = st.sampled_from(["", "a", "include_usage", "role"])


@given(one=spelled(LIKE), other=spelled(LIKE), doubled=st.tuples(DOUBLED, DOUBLED))
def test_two_bodies_with_one_key_are_answered_alike_by_a_strict_engine(
    one: str, other: str, doubled: tuple[str, str]
) -> None:
    bodies = [
        text.replace(f'"{name}":', f'"{name}":null,"{name}":') if name else text
        for text, name in zip((one, other), doubled, strict=True)
    ]
    answers: list[object] = []
    for body in bodies:
        try:
            decode("chat", body.encode())
        except GatewayError as e:
            assume(e.param != "stream_options")  # refused here already
        try:
            answers.append(strict(body))
        except Refusal:
            answers.append(Refusal)
    if key(bodies[0]) == key(bodies[1]):
        assert answers[0] == answers[1]
    elif bodies[0] == bodies[1]:
        raise AssertionError("the same body has two keys")


UNREADABLE = {"half": b"{", "bytes": b'"\xff"', "deep": b"[" * 100_000 + b"]" * 100_000, "lone": b'"\\ud800"'}


@pytest.mark.parametrize("value", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_field_that_cannot_be_read_is_refused_by_its_name(value: bytes) -> None:
    good = decode("chat", json.dumps(CHAT).encode())
    with pytest.raises(GatewayError) as refused:
        Keyer().key(msgspec.structs.replace(good, fields=good.fields | {"x": msgspec.Raw(value)}))
    assert (refused.value.code, refused.value.param, refused.value.status) == (Code.INVALID_JSON, "x", 400)

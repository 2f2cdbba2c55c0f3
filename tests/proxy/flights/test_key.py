"""The key: what makes two requests one and the same, and what never may."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.flights.key import SCHEMA, UNKEYED, Keyer, hash_for
from proxy.redis.cache import KEY_BYTES, TAG_BYTES
from proxy.wire.openai import Endpoint, decode

CHAT: dict[str, Any] = {
    "model": "m1",
    "messages": [{"role": "user", "content": "héllo"}, {"role": "assistant", "content": "hi"}],
    "temperature": 0,
    "seed": 7,
    "stop": ["a", "b"],
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
EXTRAS = st.dictionaries(TEXT.filter(lambda name: name not in {*CHAT, *UNKEYED}), VALUES, max_size=4)


def key(body: str | bytes | dict[str, Any], endpoint: Endpoint = "chat", **options: Any) -> bytes:
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    return Keyer().key(decode(endpoint, data.encode() if isinstance(data, str) else data), **options)


def raw(name: str, text: str) -> bytes:
    """The key of a request with one more member, as it is written."""
    return key(json.dumps(CHAT)[:-1] + f", {json.dumps(name)}: {text}}}")


def test_a_key_is_a_tag_and_thirty_two_bytes_whichever_hash_is_chosen() -> None:
    api_request = decode("chat", json.dumps(CHAT).encode())
    for cpuinfo in ("flags: sse sha_ni", "Features: sha2", "flags: sse"):
        assert len(Keyer(hash_for(cpuinfo)).key(api_request)) == KEY_BYTES == 36


def test_sha256_is_taken_only_where_the_processor_has_it() -> None:
    assert hash_for("flags : fpu sha_ni avx") is hashlib.sha256
    assert hash_for("Features : fp sha1 sha2") is hashlib.sha256
    assert hash_for("flags : fpu avx")(b"").name == "blake2b"
    assert hash_for("")(b"").name == "blake2b"


@given(extras=EXTRAS, order=st.randoms(use_true_random=False))
def test_order_of_members_spaces_and_escapes_do_not_matter(extras: dict[str, Any], order: Any) -> None:
    body = {**CHAT, **extras}
    names = list(body)
    order.shuffle(names)
    shuffled = {name: body[name] for name in names}
    spaced = json.dumps(shuffled, indent=3, ensure_ascii=True)
    dense = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    assert key(spaced) == key(dense)


def test_the_order_of_a_message_own_members_does_not_matter() -> None:
    turned = [dict(reversed(message.items())) for message in CHAT["messages"]]
    assert key({**CHAT, "messages": turned}) == key(CHAT)


def test_the_order_of_messages_matters() -> None:
    assert key({**CHAT, "messages": CHAT["messages"][::-1]}) != key(CHAT)


@pytest.mark.parametrize("name", ["tools", "response_format", "unknown"])
def test_the_inner_order_of_tools_and_schemas_matters(name: str) -> None:
    one = {"type": "function", "function": {"name": "f", "parameters": {"a": 1, "b": 2}}}
    two = {"type": "function", "function": {"name": "f", "parameters": {"b": 2, "a": 1}}}
    assert key({**CHAT, name: [one]}) != key({**CHAT, name: [two]})


def test_deeper_order_inside_a_message_matters() -> None:
    one, two = ([{"role": "user", "content": [part]}] for part in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert key({**CHAT, "messages": one}) != key({**CHAT, "messages": two})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "m2"),
        ("messages", [{"role": "user", "content": "hello"}]),
        ("temperature", 1),
        ("seed", 8),
        ("stop", ["b", "a"]),
        ("max_tokens", 1),
        ("top_p", 0.5),
        ("logprobs", True),
        ("n", 2),
        ("lora", None),
        ("an unknown field", ""),
        ("cache_salt", "x"),
    ],
)
def test_any_change_of_a_keyed_field_changes_the_key(name: str, value: Any) -> None:
    assert key({**CHAT, name: value}) != key(CHAT)


@pytest.mark.parametrize("name", sorted(CHAT.keys() - {"messages"}))
def test_leaving_a_keyed_field_out_changes_the_key(name: str) -> None:
    assert key({other: value for other, value in CHAT.items() if other != name}) != key(CHAT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stream", True),
        ("stream", False),
        ("user", "someone"),
        ("user", ""),
        ("user", None),
        ("metadata", {"a": "1"}),
        ("metadata", {"n" * 64: "v" * 512}),
        ("metadata", {}),
        ("safety_identifier", "someone"),
        ("safety_identifier", None),
        ("prompt_cache_key", "chat-7"),
        ("store", True),
        ("store", None),
        ("service_tier", "flex"),
        ("service_tier", None),
        ("stream_options", None),
        ("stream_options", {}),
        ("stream_options", {"include_usage": True}),
        ("stream_options", {"include_usage": False, "continuous_usage_stats": False}),
        ("stream_options", {"continuous_usage_stats": None}),
    ],
)
def test_what_cannot_change_the_tokens_is_not_keyed(name: str, value: Any) -> None:
    assert name in UNKEYED
    assert key({**CHAT, "stream": True, name: value}) == key({**CHAT, "stream": True}) == key(CHAT)


@pytest.mark.parametrize(
    "options",
    [{"new": 1}, {"new": "x"}, {"new": None}, {"new": False}, {"new": '"'}],
)
def test_stream_options_that_change_the_frames_are_keyed(options: dict[str, Any]) -> None:
    chat = {**CHAT, "stream": True}
    assert key({**chat, "stream_options": options}) != key(chat)
    assert key({**chat, "stream_options": options}) == key(
        {**chat, "stream_options": {"include_usage": True, **options}}
    )


def test_usage_in_every_frame_is_keyed_and_apart_from_a_request_for_it_that_has_no_effect() -> None:
    chat = {**CHAT, "stream": True}
    keys = {
        key({**chat, "stream_options": {"include_usage": usage, "continuous_usage_stats": continuous}})
        for usage in (True, False)
        for continuous in (True, False)
    }
    assert len(keys) == 3
    without = {**chat, "stream_options": {"continuous_usage_stats": True}}
    assert key(without) == key(
        {**chat, "stream_options": {"include_usage": False, "continuous_usage_stats": True}}
    )


SENT = [("x-data-parallel-rank", "1"), ("x-session-id", "s")]


def test_headers_on_which_an_engine_acts_are_keyed() -> None:
    keys = [key(CHAT, headers=headers) for headers in ((), SENT[:1], SENT[1:], SENT, [(SENT[0][0], "2")])]
    assert len(set(keys)) == len(keys)
    assert key(CHAT, headers=SENT[::-1]) == key(CHAT, headers=SENT)
    api_request = decode("embeddings", b'{"input":["a"]}')
    items = [Keyer().items(api_request, [b'"a"'], headers=headers) for headers in ((), SENT)]
    assert items[0][0] != items[1][0]
    assert items[0][1] != items[1][1]


@given(st.lists(st.tuples(st.sampled_from(["x-session-id", "x"]), st.binary(max_size=6)), max_size=3))
def test_no_bytes_of_a_header_break_a_key(headers: list[tuple[str, bytes]]) -> None:
    read = [(name, value.decode("utf-8", "surrogateescape")) for name, value in headers]
    assert (key(CHAT, headers=read) == key(CHAT)) is (not read)


def test_a_stream_option_is_not_taken_for_a_field_of_its_name() -> None:
    chat = {**CHAT, "stream": True}
    assert key({**chat, "stream_options": {"a": 1}}) != key({**chat, "stream_options.a": 1})


def test_each_tenant_has_keys_of_its_own() -> None:
    keys = [key(CHAT), key(CHAT, tenant=b"a"), key(CHAT, tenant=b"b"), key(CHAT, tenant=b"ab")]
    assert len(set(keys)) == len(keys)


def test_each_endpoint_has_keys_of_its_own() -> None:
    body = {"prompt": "a", "input": "a", "messages": []}
    endpoints: list[Endpoint] = ["chat", "completions", "embeddings"]
    assert len({key(body, endpoint) for endpoint in endpoints}) == 3


def test_modes_share_a_key_only_where_a_fold_can_join_them() -> None:
    stream, whole = {**CHAT, "stream": True}, {**CHAT, "stream": False}
    assert key(stream) == key(whole)
    assert key(stream, fold=False) != key(whole, fold=False)
    assert key(stream) not in (key(stream, fold=False), key(whole, fold=False))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "1.0"),
        ("1.0", "1.00"),
        ("1e1", "10"),
        ("0", "-0.0"),
        ("1", '"1"'),
        ("true", '"true"'),
        ("null", "false"),
        ("[1,2]", "[12]"),
        ("[]", "{}"),
        ("9007199254740992.0", "9007199254740993.0"),
        ("100000000000000000000000", "100000000000000000000001"),
        ("1e400", "1e401"),
    ],
)
def test_values_that_are_written_differently_are_kept_apart(one: str, other: str) -> None:
    assert raw("x", one) != raw("x", other)


@given(one=EXTRAS, other=EXTRAS)
def test_keys_are_the_same_only_for_the_same_fields(one: dict[str, Any], other: dict[str, Any]) -> None:
    spelled = [{name: json.dumps(value) for name, value in extras.items()} for extras in (one, other)]
    assert (key({**CHAT, **one}) == key({**CHAT, **other})) == (spelled[0] == spelled[1])


@given(parts=st.lists(TEXT, min_size=1, max_size=4), cut=st.integers(0, 20))
def test_moving_text_between_the_parts_moves_the_key(parts: list[str], cut: int) -> None:
    text = "".join(parts)
    cut = min(cut, len(text))
    pair = {"tenant": text[:cut].encode(), "name": "z" + text[cut:]}
    whole = {"tenant": text.encode(), "name": "z"}
    keys = {key({**CHAT, str(p["name"]): 1}, tenant=p["tenant"]) for p in (pair, whole)}
    assert len(keys) == (1 if cut == len(text) else 2)


def test_messages_that_are_no_objects_still_have_a_key() -> None:
    keys = [key(f'{{"messages": {text}}}') for text in ('[ 1, "a" ]', '[1,"\\u0061"]', '[1,"b"]', '["a",1]')]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


@pytest.mark.parametrize("value", ['"\\ud800"', "[" * 5000 + "]" * 5000])
def test_a_value_that_no_reader_can_read_is_refused_or_keyed_but_never_breaks(value: str) -> None:
    try:
        assert len(raw("x", value)) == 32
    except GatewayError as error:
        assert error.code is Code.INVALID_JSON


# -- what is hashed, against the same made slowly by other means --------------------------------------


class Hashed:
    """A hash that lets its text be read."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def digest(self) -> bytes:
        return self.text


class Written(str):
    """A number as it is written."""


def dense(value: Any) -> str:
    """JSON in one spelling, every number as it was written."""
    if isinstance(value, Written):
        return value
    if isinstance(value, list):
        return f"[{','.join(map(dense, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{dense(name)}:{dense(member)}" for name, member in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def slow(body: str) -> bytes:
    """What is hashed of a request of chat, by the standard library."""
    fields = json.loads(body, parse_float=Written)
    messages = fields["messages"]
    if all(isinstance(message, dict) for message in messages):
        fields["messages"] = [dict(sorted(message.items())) for message in messages]
    extras = fields.get("stream_options") or {}
    extras = {
        name: extras[name]
        for name in sorted(extras)
        if name != "include_usage" and (name != "continuous_usage_stats" or extras[name] not in (None, False))
    }
    keyed = {name: fields[name] for name in sorted(fields) if name not in UNKEYED}
    return dense(["gateway", SCHEMA, "", "chat", "both", extras or None, keyed]).encode()


@st.composite
def spelled(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> str:
    """A value as JSON, with spaces and escapes as they may come."""
    pick = draw(st.randoms(use_true_random=False))

    def space() -> str:
        return pick.choice(["", "", " ", "\n\t"])

    def text(value: str) -> str:
        marks = [
            f"\\u{ord(c):04x}"
            if ord(c) < 0x10000 and pick.random() < 0.2
            else json.dumps(c, ensure_ascii=False)[1:-1]
            for c in value
        ]
        return '"' + "".join(marks) + '"'

    def spell(value: Any) -> str:
        if isinstance(value, Written):
            return value
        if isinstance(value, str):
            return text(value)
        if isinstance(value, list):
            return "[" + space() + f"{space()},{space()}".join(map(spell, value)) + space() + "]"
        if isinstance(value, dict):
            members = list(value.items())
            pairs = [f"{text(name)}{space()}:{space()}{spell(member)}" for name, member in members]
            return "{" + space() + f"{space()},{space()}".join(pairs) + space() + "}"
        return json.dumps(value)

    return spell(draw(values))


WRITTEN = st.sampled_from(["1.0", "1.00", "-0.0", "1e5", "1E+5", "1e400", "0", "12"]).map(Written)
DEEP = VALUES | WRITTEN | st.lists(WRITTEN, max_size=2)
MESSAGES = st.lists(
    st.dictionaries(TEXT | st.sampled_from(["role", "content"]), TEXT | DEEP, max_size=4)
    | st.dictionaries(TEXT | st.sampled_from(["role", "content"]), TEXT | st.none() | st.booleans(), max_size=4),
    max_size=3,
)
REQUESTS = st.builds(
    lambda messages, extras: {**extras, "messages": messages},
    MESSAGES | st.lists(DEEP, max_size=3),
    st.dictionaries(TEXT.filter(lambda name: name not in {*CHAT, *UNKEYED}), DEEP, max_size=4),
)


@given(body=spelled(REQUESTS))
def test_what_is_hashed_is_what_the_standard_library_makes_of_it(body: str) -> None:
    assert Keyer(Hashed).key(decode("chat", body.encode()))[TAG_BYTES:] == slow(body)


@given(
    body=spelled(
        st.fixed_dictionaries(
            {
                "messages": MESSAGES,
                "stream": st.just(True),
                "stream_options": st.just({"x": 1, "a": None, "continuous_usage_stats": None}),
            }
        )
    )
)
def test_the_options_that_are_hashed_are_those_that_change_the_frames(body: str) -> None:
    assert Keyer(Hashed).key(decode("chat", body.encode()))[TAG_BYTES:] == slow(body)


@pytest.mark.parametrize(
    "messages", ["[]", "[{}]", '[{"n":-0}]', '[{"n":1.0}]', '[{"a":"b"}]', '[{"a":[{"b":1,"a":2}]}]']
)
def test_messages_that_are_not_flat_are_hashed_by_the_same_rules(messages: str) -> None:
    body = f'{{"messages":{messages},"z":-0}}'
    assert Keyer(Hashed).key(decode("chat", body.encode()))[TAG_BYTES:] == slow(body)


@given(body=spelled(REQUESTS))
def test_a_long_request_has_the_key_that_it_would_have_as_a_short_one(body: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("proxy.flights.key.LONG", -1)
        assert Keyer(Hashed).key(decode("chat", body.encode()))[TAG_BYTES:] == slow(body)


def test_numbers_without_end_are_keyed_without_a_call_for_each() -> None:
    body = json.dumps(CHAT)[:-1] + ', "x": [' + "1.50, " * 10_000 + "1.5]}"
    calls = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event == "call"

    gc.collect()
    gc.disable()  # a collection calls the finalizers of what earlier tests left behind
    sys.setprofile(count)
    try:
        key(body)
    finally:
        sys.setprofile(None)
        gc.enable()
    assert calls < 100
    assert key(body) != key(body.replace("1.50, ", "1.5, ", 1))

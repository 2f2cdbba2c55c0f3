"""The key: what is the same request, and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.key import UNKEYED, Keyer, hash_for
from proxy.wire.openai import decode

BASE: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "é / hi"}],
    "temperature": 0,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": 1, "b": 2}}}],
}

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def key(body: dict[str, Any] | bytes, **how: Any) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Keyer().key(decode("chat", data), **how)


def test_order_spaces_and_escapes_do_not_matter() -> None:
    turned = dict(reversed(BASE.items())) | {"messages": [{"content": "é / hi", "role": "user"}]}
    spelled = json.dumps(turned, ensure_ascii=False, indent=3).replace("/", "\\/").encode()
    assert key(BASE) == key(spelled)


@pytest.mark.parametrize("name", sorted(UNKEYED))
def test_fields_that_cannot_change_the_answer_are_not_keyed(name: str) -> None:
    value: Any = {"stream": True, "stream_options": {"include_usage": True}}.get(
        name, "x" if name == "user" else {}
    )
    assert key(BASE | {name: value}) == key(BASE)


@pytest.mark.parametrize("name", ["seed", "n", "stop", "logprobs", "top_k", "cache_salt", "never_heard_of"])
@given(value=values.filter(lambda value: value is not None))
def test_every_other_field_is_keyed_known_or_not(name: str, value: Any) -> None:
    changed = BASE | {name: 3 if name == "seed" else value}
    assert key(changed) != key(BASE)
    assert key(changed) != key(changed | {name: 4 if name == "seed" else [value]})


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"temperature": 0.0},  # a template may print numbers as they are written
        {"messages": [{"role": "user", "content": "é / hi "}]},
        {"messages": BASE["messages"] * 2},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"b": 2, "a": 1}}}]},
        {"stream_options": {"continuous_usage_stats": True}},
    ],
)
def test_what_can_change_the_answer_changes_the_key(change: dict[str, Any]) -> None:
    assert key(BASE | change) != key(BASE)


def test_tenant_endpoint_and_where_it_must_be_mode_are_in_the_key() -> None:
    assert key(BASE, tenant=b"a") != key(BASE, tenant=b"b")
    assert key(BASE | {"stream": True}, fold=False) != key(BASE, fold=False)
    assert key(BASE | {"stream": True}) == key(BASE)
    prompt = json.dumps({"prompt": "x", "input": "x"}).encode()
    assert Keyer().key(decode("completions", prompt)) != Keyer().key(decode("embeddings", prompt))


@given(st.dictionaries(st.text(min_size=1, max_size=4), values, max_size=4), st.data())
def test_two_bodies_have_one_key_only_if_they_say_the_same(extra: dict[str, Any], data: st.DataObject) -> None:
    reserved = {"messages", "stream", "stream_options", "model", "temperature", "seed", *UNKEYED}
    one = {name: value for name, value in extra.items() if name not in reserved}
    other = data.draw(st.dictionaries(st.sampled_from([*one, "zz"]), values, max_size=4))
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    if not same:
        assert key(BASE | one) != key(BASE | other)


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [("flags : fpu sha_ni sse", "sha256"), ("Features : aes sha2", "sha256"), ("fpu", "blake2b")],
)
def test_the_hash_is_cryptographic_and_the_one_the_cpu_does_best(cpuinfo: str, name: str) -> None:
    digest = hash_for(cpuinfo)()
    assert digest.name == name
    assert digest.digest_size == 32

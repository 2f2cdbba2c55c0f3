"""The key at its bounds: how long a name, how much padding, which values of a field that is not keyed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.errors import GatewayError
from proxy.flights.key import MAX_METADATA, PADDING, Keyer, hash_of_cpu, model_tag
from proxy.redis.cache import TAG_BYTES
from proxy.wire.openai import decode
from tests.proxy.flights.test_key import CHAT, Hashed, key


def test_a_machine_that_does_not_tell_its_processor_has_the_hash_for_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object) -> str:
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", unreadable)
    assert hash_of_cpu()(b"").name == "blake2b"


def test_a_request_without_a_model_has_the_tag_of_an_empty_name() -> None:
    assert model_tag(None) == model_tag("") != model_tag("m")
    assert len(model_tag("\ud800")) == TAG_BYTES


def test_the_name_of_a_field_that_cannot_be_read_is_told_by_its_beginning() -> None:
    good = decode("chat", json.dumps(CHAT).encode())
    with pytest.raises(GatewayError) as refused:
        Keyer().key(msgspec.structs.replace(good, fields=good.fields | {"n" * 70: msgspec.Raw(b"{")}))
    assert refused.value.param == "n" * 64
    assert f"The field {'n' * 64!r} is" in str(refused.value)


@pytest.mark.parametrize("padded", [False, True])
def test_a_body_may_be_so_much_longer_than_what_it_says(padded: bool) -> None:
    body = json.dumps(CHAT).encode()
    text = Keyer(Hashed).key(decode("chat", body))[TAG_BYTES:]
    longest = body + b" " * (4 * len(text) + PADDING - len(body))
    assert (key(longest + b" " * padded) == key(body)) is not padded


@pytest.mark.parametrize(
    ("name", "value", "keyed"),
    [
        ("store", 1, True),
        ("store", "true", True),
        ("service_tier", "gold", True),
        ("service_tier", True, True),
        ("safety_identifier", 5, True),
        ("prompt_cache_key", "a\nb", True),
        ("user", "x" * 256, False),
        ("metadata", {str(n): "v" for n in range(MAX_METADATA[0])}, False),
        ("metadata", {"a\n": "v"}, True),
        ("metadata", {"a": "v\n"}, True),
        ("stream", None, False),
    ],
)
def test_only_an_ordinary_value_is_not_keyed(name: str, value: Any, keyed: bool) -> None:
    assert (key({**CHAT, name: value}) != key(CHAT)) is keyed


@pytest.mark.parametrize("more", [0, 1])
def test_metadata_is_looked_into_up_to_so_many_bytes(more: int) -> None:
    members, name, value = MAX_METADATA
    start = json.dumps({"messages": [{"role": "user", "content": "x" * 40_000}]})[:-1]
    spaces = " " * (16 * members * (name + value) - len('{"a":"b"}') + more)
    assert (key(f'{start},"metadata":{{"a":{spaces}"b"}}}}') == key(start + "}")) is not more


@pytest.mark.parametrize("unread", ['{"a":"b"', '{"a":"\\ud800"}', "[" * 100_000 + "]" * 100_000])
@pytest.mark.parametrize("name", ["user", "metadata"])
def test_a_value_that_nobody_can_read_is_not_ordinary(name: str, unread: str) -> None:
    good = decode("chat", json.dumps(CHAT).encode())
    with pytest.raises(GatewayError):
        Keyer().key(msgspec.structs.replace(good, fields=good.fields | {name: msgspec.Raw(unread.encode())}))


def test_what_an_array_shares_is_all_but_its_input() -> None:
    def common(body: str, tenant: bytes = b"") -> tuple[bytes, list[bytes]]:
        return Keyer().items(decode("embeddings", body.encode()), [b'"a"', b'"b"'], tenant=tenant)

    one, other = common('{"input":["a","b"]}'), common('{"input":["c","d","e"]}')
    assert one == other
    assert len(set(one[1])) == 2
    assert common('{"input":["a"],"dimensions":3}')[0] != one[0]
    assert common('{"input":["a"]}', b"t")[0] != one[0]
    assert common('{"input":["a"]}', b"t")[1] != one[1]

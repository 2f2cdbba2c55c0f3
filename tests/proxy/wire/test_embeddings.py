"""Embeddings as items: requests taken apart, arrays made, answers split and put together, usage shared out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.embeddings import (
    MAX_ITEMS,
    Inputs,
    Parts,
    Unsplittable,
    Vector,
    array_body,
    envelope_of,
    inputs_of,
    put_together,
    take_apart,
)
from proxy.wire.openai import decode
from tests.golden import load


def whole(parts: Parts, tokens: int | None, only: slice = slice(None)) -> bytes:
    """What `put_together` makes of these vectors, in one piece."""
    slices = put_together(envelope_of(parts), [Vector.of(datum) for datum in parts.data[only]], tokens)
    return b"".join(piece for pieces in slices for piece in pieces)


def api_request(**fields: Any) -> Any:
    return decode("embeddings", json.dumps({"model": "m", **fields}).encode())


@pytest.mark.parametrize(
    ("given_", "items"),
    [
        ("a", [b'"a"']),
        (["a", "b", "a"], [b'"a"', b'"b"', b'"a"']),
        ("", [b'""']),
        ([1, 2], [b"[1,2]"]),
        ([[1, 2], [3]], [b"[1,2]", b"[3]"]),
    ],
)
def test_a_text_a_list_of_texts_ids_and_lists_of_ids_are_items(given_: Any, items: list[bytes]) -> None:
    found = inputs_of(api_request(input=given_))
    assert found is not None
    assert found.items == items


@pytest.mark.parametrize(
    "fields",
    [
        {"input": []},
        {"input": ["a", [1]]},
        {"input": [{"role": "user", "content": "x"}]},
        {"input": [1.0, 2]},
        {"input": [True]},
        {"input": ["a"] * (MAX_ITEMS + 1)},
        {"input": "a", "encoding_format": "bytes"},
    ],
)
def test_what_cannot_be_told_apart_goes_up_as_it_is(fields: dict[str, Any]) -> None:
    assert inputs_of(api_request(**fields)) is None


def test_one_text_in_two_spellings_is_one_item() -> None:
    one, other = (decode("embeddings", b'{"input": "%s"}' % text) for text in (rb"caf\u00e9", "café".encode()))
    found = inputs_of(one)
    assert found is not None
    assert found == inputs_of(other)


def test_ids_are_counted_and_texts_guessed() -> None:
    assert inputs_of(api_request(input=[[7, 8, 9], [1]])) == Inputs("ids", [b"[7,8,9]", b"[1]"], [3, 1])
    guessed = inputs_of(api_request(input=["x" * 40]))
    assert guessed is not None
    assert guessed.tokens == [12]


def test_an_array_has_the_options_of_all_and_nothing_of_one_client() -> None:
    one = api_request(input="a", user="me", metadata={"a": 1}, dimensions=8, encoding_format="base64", extra=1.50)
    assert json.loads(array_body(one, [b'"a"', b'"b"'])) == {
        "model": "m", "dimensions": 8, "encoding_format": "base64", "extra": 1.5, "input": ["a", "b"],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["embed-list", "embed-ids", "embed-one", "embed-base64"])
def test_a_recorded_answer_taken_apart_and_put_together_is_itself_byte_for_byte(name: str) -> None:
    body = load(name).body
    count = len(json.loads(body)["data"])
    parts = take_apart(body, count)
    assert whole(parts, parts.tokens) == body


def test_a_vector_of_an_array_is_in_its_own_answer_byte_for_byte_what_it_is_alone() -> None:
    both, alone = take_apart(load("embed-list").body, 2), take_apart(load("embed-one").body, 1)
    made = whole(both, alone.tokens, slice(1))
    assert take_apart(made, 1).data[0]["embedding"] == alone.data[0]["embedding"]
    assert json.loads(made)["usage"] == json.loads(load("embed-one").body)["usage"]
    second = json.loads(whole(both, 3, slice(1, 2)))
    assert (second["data"][0]["index"], second["usage"]["total_tokens"]) == (0, 3)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"data":[]}',
        b'{"data":[{"index":0,"embedding":[1]}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":2,"embedding":[1]}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":1}]}',
        b'{"data":[{"embedding":[1]},{"index":1,"embedding":[1]}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":null}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[]}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":""}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[null]}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":{"a":1}}]}',
        b'{"data":null}',
        b'{"data":[{"index":"0","embedding":[1]},{"index":1,"embedding":[1]}]}',
        b"\xff",
    ],
)
def test_an_answer_that_is_not_one_vector_an_input_is_refused(body: bytes) -> None:
    with pytest.raises(Unsplittable):
        take_apart(body, 2)


@pytest.mark.parametrize(
    "usage", ["3", "null", "{}", *(f'{{"prompt_tokens":{n}}}' for n in ("1" + 30 * "0", 2**64, -1, "5.0", '"5"'))]
)
def test_a_count_that_cannot_be_is_none(usage: str) -> None:
    body = b'{"data":[{"index":0,"embedding":[1]}],"usage":%b}' % usage.encode()
    parts = take_apart(body, 1)
    assert parts.tokens is None
    assert b"usage" not in whole(parts, parts.tokens)


def test_vectors_are_matched_by_their_numbers_and_not_by_their_places() -> None:
    parts = take_apart(b'{"data":[{"index":1,"embedding":[1]},{"index":0,"embedding":[0]}]}', 2)
    assert [bytes(datum["embedding"]) for datum in parts.data] == [b"[0]", b"[1]"]
    assert parts.tokens is None
    assert b"usage" not in whole(parts, None)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_garbage_raises_nothing_else(data: bytes) -> None:
    with pytest.raises(Unsplittable):
        take_apart(data, 1)

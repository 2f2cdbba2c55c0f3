"""Embeddings at their bounds: as many items as may be, pieces that are copied or not, counts that cannot be."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from proxy.wire.embeddings import (
    LARGE,
    MAX_ITEMS,
    SLICE,
    Parts,
    Unsplittable,
    Vector,
    array_body,
    envelope_of,
    inputs_of,
    put_together,
    take_apart,
)
from proxy.wire.openai import ApiRequest, decode


def api_request(given: bytes) -> ApiRequest:
    return msgspec.structs.replace(decode("embeddings", b'{"input":""}'), fields={"input": Raw(given)})


@pytest.mark.parametrize("item", [b'"a"', b"[1]"])
def test_an_array_may_have_so_many_items(item: bytes) -> None:
    for count in (MAX_ITEMS, MAX_ITEMS + 1):
        found = inputs_of(api_request(b"[" + b",".join([item] * count) + b"]"))
        assert (len(found.items) if found is not None else 0) == (count if count == MAX_ITEMS else 0)


@pytest.mark.parametrize("given", [b"[", b'["a"', b"[1", b"[[1],", b"[" * 100_000, b'"\xff"', b"[1.0]", b"[1e2]", b"[1E2]", b"[[1.0]]", b"[[1e2]]", b"[[2E1]]", b"{}", b"5", b"[]"])  # fmt: skip  # noqa: E501
def test_what_is_no_list_of_texts_or_ids_is_no_items(given: bytes) -> None:
    assert inputs_of(api_request(given)) is None


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 2), ("abc", 2), ("abcd", 3), ("abcdefg", 3), ("abcdefgh", 4), ("語" * 4, 5)]
)
def test_the_tokens_of_a_text_are_guessed_by_its_bytes(text: str, tokens: int) -> None:
    found = inputs_of(api_request(json.dumps(text, ensure_ascii=False).encode()))
    assert found is not None
    assert (found.kind, found.tokens) == ("text", [tokens])


@pytest.mark.parametrize("form", ["null", '"float"', '"base64"'])
def test_formats_that_are_json_are_taken_apart(form: str) -> None:
    assert inputs_of(decode("embeddings", f'{{"input":"a","encoding_format":{form}}}'.encode())) is not None


def test_an_array_has_no_field_of_one_client() -> None:
    names = ["user", "metadata", "stream", "stream_options", "safety_identifier", "prompt_cache_key", "store", "service_tier"]  # fmt: skip  # noqa: E501
    one = api_request(b'"a"')
    fields = {**one.fields, **dict.fromkeys(names, Raw(b"null")), "dimensions": Raw(b"3")}
    assert array_body(msgspec.structs.replace(one, fields=fields), [b'"b"']) == b'{"dimensions":3,"input":["b"]}'


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"x":1}', "it has no data"),
        (b'{"data":[{"embedding":[1]}]}', "it has no index"),
        (b'{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[1]}]}', "2 vectors for 1 inputs"),
        (b'{"data":[{"index":1,"embedding":[1]}]}', "1 vectors for 1 inputs, or numbered otherwise"),
        (b'{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]}', "2 vectors for 1 inputs"),
        (b'{"data":[{"index":0}]}', "an input without its vector"),
        (b'{"data":[{"index":0,"embedding":5}]}', "an input without its vector"),
        (b'{"data":5}', "it is no list of vectors"),
        (b'{"data":' + b"[" * 100_000, "it is no list of vectors"),
    ],
)
def test_an_answer_that_cannot_be_taken_apart_says_why(body: bytes, says: str) -> None:
    with pytest.raises(Unsplittable, match=says):
        take_apart(body, 1)


def test_an_answer_of_no_vectors_for_no_inputs_is_whole() -> None:
    assert take_apart(b'{"data":[],"usage":{"prompt_tokens":3}}', 0) == Parts(
        {"data": Raw(b"[]"), "usage": Raw(b'{"prompt_tokens":3}')}, [], 3
    )


def vector(size: int, **more: Any) -> Vector:
    """One whose bytes before its index are so many."""
    datum = {"embedding": Raw(b'"' + b"x" * (size - 13 - 2 - len(b',"index":')) + b'"'), "index": Raw(b"0")}
    return Vector.of({name: Raw(json.dumps(value).encode()) for name, value in more.items()} | datum)


def test_a_vector_has_the_size_of_its_bytes() -> None:
    found = vector(500)
    assert (len(found.before), found.after, found.size) == (500, b"}", 501)
    early = Vector.of({"index": Raw(b"7"), "embedding": Raw(b"[1]"), "object": Raw(b'"e"')})
    assert (early.before, early.after) == (b'{"index":', b',"embedding":[1],"object":"e"}')
    none = Vector.of({"embedding": Raw(b"[1]")})
    assert none.before + none.after == b'{"embedding":[1]}'


def test_a_large_vector_is_not_copied_and_a_small_one_is_put_together_with_others() -> None:
    small, large = vector(LARGE - 1), vector(LARGE)
    pieces, tail = put_together(b'{"a":1,"data":[],"b":2,"c":3}', [small, large, large], None)
    assert pieces[1] is pieces[3] is large.before
    assert len(pieces) == 5
    assert pieces[0] == b'{"a":1,"data":[' + small.before + b"0},"
    assert pieces[2:] == [b"1},", large.before, b"2}"]
    assert tail == [b'],"b":2,"c":3}']


def test_many_vectors_come_in_slices() -> None:
    slices = list(put_together(b'{"data":[]}', [vector(100)] * (SLICE + 1), None))
    assert len(slices) == 3
    body = json.loads(b"".join(piece for pieces in slices for piece in pieces))
    assert [datum["index"] for datum in body["data"]] == list(range(SLICE + 1))
    assert b"".join(slices[0]).count(b"index") == SLICE


@pytest.mark.parametrize(
    ("envelope", "tokens", "usage"),
    [
        (b'{"data":[]}', 3, {"prompt_tokens": 3, "total_tokens": 3}),
        (b'{"data":[],"usage":{"a":1,"total_tokens":9}}', 3, {"a": 1, "total_tokens": 3, "prompt_tokens": 3}),
        (b'{"usage":{"a":1},"data":[]}', 0, {"a": 1, "total_tokens": 0, "prompt_tokens": 0}),
        (b'{"usage":{"a":1},"data":[]}', None, None),
    ],
)
def test_usage_is_told_where_the_tokens_are_known(envelope: bytes, tokens: int | None, usage: Any) -> None:
    made = b"".join(piece for pieces in put_together(envelope, [vector(100)], tokens) for piece in pieces)
    assert json.loads(made).get("usage") == usage


def test_an_envelope_is_the_answer_without_its_vectors() -> None:
    parts = take_apart(b'{"object":"list","data":[{"index":0,"embedding":[1]}],"model":"m"}', 1)
    assert envelope_of(parts) == b'{"object":"list","data":[],"model":"m"}'

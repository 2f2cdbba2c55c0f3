"""JSON bodies are read as Python's json reads them, or refused: never otherwise, whatever is done to them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from proxy.errors import Code, GatewayError
from proxy.wire.document import lone_surrogate, read, read_leniently
from proxy.wire.http.media_type import Media
from proxy.wire.openai import decode
from proxy.wire.prompt import WORDS, everything
from proxy.wire.raw_body import read_passed

REFUSED = [
    ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    ('{"a": 1}'.encode("utf-16-le"), "UTF-16"),
    ('{"a": 1}'.encode("utf-16-be"), "UTF-16"),
    ('{"a": 1}'.encode("utf-32"), "not UTF-8"),
    ('{"a": 1}'.encode("utf-32-le"), "UTF-16"),
    ('{"a": 1}'.encode("utf-32-be"), "UTF-16"),
    (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
    ('{"a": "é"}'.encode("latin-1"), "not UTF-8 (byte 7)"),
    (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
    (b'{"a": "\xc0\xaf"}', "not UTF-8"),
    (b'{"a": NaN}', "NaN is no JSON value"),
    (b'{"a": Infinity}', "Infinity is no JSON value"),
    (b'{"a": -Infinity}', "-Infinity is no JSON value"),
    (b'{"a": nan}', "Expecting value"),
    (b'{"a": "\\ud800"}', "surrogate"),
    (b'{"a": "\\uDC00x"}', "surrogate"),
    (b'{"\\udc00\\ud800": 1}', "surrogate"),
    (b'{"a": 1, "a": 2}', "'a' is given twice"),
    (b'{"a": 1, "\\u0061": 2}', "'a' is given twice"),
    (b'{"x": [{"a": 1, "b": {}, "a": 1}]}', "'a' is given twice"),
    (b'{"a": "\x01"}', "control character"),
    (b'{"a": "\n"}', "control character"),
    (b'{"a": 1e999}', "too large"),
    (b'{"a": -1e999}', "too large"),
    (b'{"a": 1} x', "Extra data"),
    (b'{"a": 1}{"a": 1}', "Extra data"),
    (b'{"a": 1}\x00', "Extra data"),
    (b'\x0b{"a": 1}', "Expecting value"),
    ('\u00a0{"a": 1}'.encode(), "Expecting value"),
    (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    (b'{"a": ' + b"9" * 5000 + b"}", "too large"),
    (b'{"a": -' + b"9" * 310 + b"}", "too large"),
    (b"{'a': 1}", "double quotes"),
    (b'{"a": 1,}', ""),
    (b'{"a": 01}', ""),
    (b'{"a": +1}', ""),
    (b'{"a": .5}', ""),
    (b'{"a": 0x1}', ""),
    (b'{"a": 1 /* x */}', ""),
    (b'{"a": "\\x41"}', ""),
    (b'{"a"', ""),
    (b" ", "Expecting value"),
]


@pytest.mark.parametrize(("body", "why"), REFUSED)
def test_what_readers_differ_about_is_refused_and_named(body: bytes, why: str) -> None:
    with pytest.raises(GatewayError) as e:
        read(body)
    assert (e.value.code, e.value.status) == (Code.INVALID_JSON, 400)
    assert why in e.value.message
    assert len(e.value.message) < 400


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b' \t\r\n{"a": 1} \t\r\n', {"a": 1}),
        (b'{"a": "\\ud83d\\ude00"}', {"a": "\N{GRINNING FACE}"}),
        (b'{"a": "\\\\ud800"}', {"a": "\\ud800"}),
        ('{"é": "\U0001f600"}'.encode(), {"é": "\U0001f600"}),
        (b'{"a": "\\u0000"}', {"a": "\0"}),
        (b'{"a": "\x7f"}', {"a": "\x7f"}),
        (b'{"a": 1e308, "b": 1e-999, "c": -0.0}', {"a": 1e308, "b": 0.0, "c": 0.0}),
        (b'{"a": 123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
        (b'[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        (b'{"a": ' + b"9" * 300 + b"}", {"a": 10**300 - 1}),
        (b"null", None),
    ],
)
def test_valid_json_stays_valid(body: bytes, value: Any) -> None:
    assert read(body) == value


def test_a_part_of_a_body_is_named_by_its_field() -> None:
    with pytest.raises(GatewayError) as e:
        read(b"[" * 5000, "The field 'messages'", "messages")
    assert e.value.param == "messages"
    assert e.value.message.startswith("The field 'messages' is not valid JSON")


def test_json_in_a_string_keeps_what_is_given_twice() -> None:
    assert read_leniently(' {"a": NaN, "a": [1]}')[1] == ("a", ["1"])  # numbers are not needed


def test_half_of_a_surrogate_pair_is_named_on_the_generating_paths_too() -> None:
    with pytest.raises(GatewayError) as e:
        decode("chat", b'{"messages": [{"content": "\\ud800"}]}')
    assert "surrogate" in e.value.message


ESCAPES = st.sampled_from(
    [
        "\\ud800",
        "\\uDBFF",
        "\\udc00",
        "\\uDFFF",
        "\\ud83d\\ude00",
        "\\\\",
        '\\"',
        "\\u0041",
        "\\ud7ff",
        "\\ue000",
        "u",
        "é",
    ]
)


@given(st.lists(ESCAPES, max_size=6))
def test_half_of_a_surrogate_pair_is_seen_in_any_company(pieces: list[str]) -> None:
    text = '["' + "".join(pieces) + '"]'
    lone = any("\ud800" <= char <= "\udfff" for char in json.loads(text)[0])
    assert lone_surrogate(text.encode()) == lone


# -- whatever is done to a document

TEXTS = st.text(max_size=8) | st.sampled_from(["secret", "NaN", "model", "\U0001f600"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(TEXTS | st.sampled_from(["model", "messages", "input"]), VALUES, max_size=5)
PIECES = st.sampled_from(
    [b"NaN", b"Infinity", b"1e999", b"\xef\xbb\xbf", b"\\ud800", b"\\u0061", b'"a":1,', b'"model":"x",', b"{",
     b"}", b"[", b"]", b",", b":", b'"', b"\\", b" ", b"\n", b"\0", b"\xff", b"\xed\xa0\x80", b"{}", b"0", b"e5"]
)  # fmt: skip


class Any_(BaseModel):
    """How an engine takes a request: any members, the last of two."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    text = json.dumps(draw(DOCUMENTS), ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    body = text.encode(draw(st.sampled_from(["utf-8"] * 8 + ["utf-16", "utf-16-le", "utf-32-be"])))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(body)))
        end = min(len(body), at + draw(st.integers(0, 4)))
        body = body[:at] + draw(PIECES) + body[end:]
    return body


def strict_reading(body: bytes) -> Any:
    """What Python's json reads of strict UTF-8; the last of two members of one name."""
    return json.loads(body.decode("utf-8"))


@given(mutated())
@example(b'{"model": "a", "model": "b"}')
@example(b' {"model": "a"}')
def test_what_is_read_is_what_an_engine_reads_or_it_is_refused(body: bytes) -> None:
    try:
        value = read(body)
    except GatewayError as e:
        assert e.code is Code.INVALID_JSON
        return
    theirs = json.loads(body)  # bytes: it guesses the encoding, as Starlette lets it
    assert value == theirs == strict_reading(body)
    assert repr(value) == repr(theirs)
    assert msgspec.json.decode(body) == value or len(body) > 1000  # what rewrites a body reads it alike
    texts = set(everything(value))
    _found_in(theirs, texts)
    passed = read_passed(Media("json"), body)
    if isinstance(theirs, dict):
        try:
            assert Any_.model_validate(theirs).model == passed.model
            assert Any_.model_validate_json(body).model == passed.model
        except ValidationError:
            assert passed.model is None
    changed = passed.with_numbers({"max_tokens": 3}) if isinstance(value, dict) else passed
    assert strict_reading(changed.body) == changed.value


def _found_in(value: Any, texts: set[str]) -> None:
    """Every string and every name of a document is among the texts that the deny list is shown."""
    if isinstance(value, str):
        assert value in texts or value in WORDS  # as a role or a type
    elif isinstance(value, list):
        for item in value:
            _found_in(item, texts)
    elif isinstance(value, dict):
        for name, member in value.items():
            assert name in texts or name in WORDS
            _found_in(member, texts)


@given(DOCUMENTS)
def test_valid_json_is_never_refused_for_its_form(document: dict[str, Any]) -> None:
    for text in (json.dumps(document), "\n " + json.dumps(document, ensure_ascii=False, indent=2) + "\t"):
        assert read(text.encode()) == document

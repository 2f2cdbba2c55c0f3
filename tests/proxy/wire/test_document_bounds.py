"""Readers of one value at their bounds: strict JSON, loose types, media, and prompts with log probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from proxy.errors import Code, GatewayError
from proxy.wire import document, openai
from proxy.wire.document import DIGITS, lone_surrogate, long_number, read, read_leniently, too_deep, utf8
from proxy.wire.loose import boolean, integer, number
from proxy.wire.media import refers
from proxy.wire.openai import decode
from proxy.wire.prompt_logprobs import BYTES_A_CANDIDATE, BYTES_A_TOKEN, VOCABULARY, outgrows
from tests.kit.cpu import cpu_seconds


def refused(body: bytes) -> str:
    with pytest.raises(GatewayError) as e:
        read(body)
    return e.value.message


def test_a_number_may_have_as_many_digits_as_the_largest_double() -> None:
    assert read(b"9" * 309) == 10**309 - 1
    assert refused(b"9" * 310) == (
        f"The request body is not valid JSON: the number {'9' * 32}… is too large: it has more than 309 digits."
    )
    assert (
        refused(b"1" * 40 + b"e999") == f"The request body is not valid JSON: the number {'1' * 32} is too large."
    )
    assert read(b"-" + b"9" * 308) == 1 - 10**308


LONG = b"7" * 310
IN_NUMBERS = {
    "alone": LONG,
    "negative": b"-" + LONG,
    "a fraction": b"0." + LONG,
    "an exponent": b"1e" + LONG,
    "after strings": b'["a","\\"","\\\\",%b]' % LONG,
    "after digits in a string": b'["%b",%b]' % (LONG, LONG),
    "deep": b'[{"a":[{"b":[1,%b]}]}]' % LONG,
    "among others": b"[%b-0,%b,1]" % (b"9," * 500, LONG),
}
NOT_IN_NUMBERS = {
    "a string": b'"%b"' % LONG,
    "a string with quotes": b'"\\"%b\\"%b"' % (LONG, LONG),
    "a string after a backslash": b'["\\\\","%b"]' % LONG,
    "a name": b'{"%b":1}' % LONG,
    "strings among numbers": b"[%b1]" % (b'12,"%b",' % LONG * 20),
    "short numbers": b"[%b1]" % ((b"7" * 309 + b",") * 20),
}


@pytest.mark.parametrize("offset", [0, 1, 15, 30])
@pytest.mark.parametrize("value", IN_NUMBERS.values(), ids=IN_NUMBERS)
def test_a_number_of_too_many_digits_is_refused_on_every_path_wherever_it_is(value: bytes, offset: int) -> None:
    body = b'{"messages":[],"x":%b%b}' % (b" " * offset, value)
    for reader in (read, partial(decode, "chat")):
        with pytest.raises(GatewayError, match="has more than 309 digits") as e:
            reader(body)
        assert (e.value.code, e.value.status) == (Code.INVALID_JSON, 400)


@pytest.mark.parametrize("offset", [0, 1, 15, 30])
@pytest.mark.parametrize("value", NOT_IN_NUMBERS.values(), ids=NOT_IN_NUMBERS)
def test_digits_in_strings_may_be_any_number(value: bytes, offset: int) -> None:
    body = b'{"messages":[],"x":%b%b}' % (b" " * offset, value)
    assert bytes(decode("chat", body).fields["x"]) == value
    assert read(body)["x"] == json.loads(value)


@given(st.recursive(st.integers(0, 330).map(lambda n: "8" * n) | st.integers(0, 10**320), st.lists))
@example(["\\", int("8" * 310)])
def test_it_is_found_as_a_parser_finds_it(value: Any) -> None:
    body = json.dumps(value).encode()
    longest = 0

    def seen(text: str) -> int:
        nonlocal longest
        longest = max(longest, len(text))
        return 0

    json.loads(body, parse_int=seen)
    assert bool(long_number(body)) is (longest > DIGITS)


@pytest.mark.parametrize("piece", [b"9" * 309 + b",", b'"%b",' % LONG, b'"\\"%b",' % LONG, b"9,", b'"9",'])
def test_finding_it_takes_linear_time(piece: bytes) -> None:
    def seconds(size: int) -> float:
        body = b"[%b1]" % (piece * (size // len(piece)))
        return min(cpu_seconds(lambda: long_number(body)) for _ in range(5))

    assert seconds(2_000_000) < 32 * seconds(125_000) + 0.005  # 16 times the bytes


def test_where_a_text_is_no_json_is_told_and_what_it_may_be() -> None:
    assert refused(b'{"a": x}') == "The request body is not valid JSON: Expecting value (character 6)."
    assert (
        refused(b"\0{")
        == "The request body is not valid JSON: Expecting value (character 0); is it UTF-16 or UTF-32?."
    )
    assert "UTF-16" in refused(b'{"a\0')
    assert "UTF-16" not in refused(b'{"a"\0')


def test_a_member_given_twice_is_told_by_the_beginning_of_its_name() -> None:
    name = b"n" * 70
    assert f"the member '{'n' * 64}' is given twice" in refused(b'{"%b":1,"%b":2}' % (name, name))
    assert "'b' is given twice" in refused(b'{"a":1,"b":1,"c":1,"b":2,"a":2}')
    told = refused(b'{"%b":1,"%b":2}' % ((b"\\u0000" * 70,) * 2))
    assert len(told) == len("The request body is not valid JSON: ") + 200 + len(".")


def test_the_byte_that_is_no_utf_8_is_told() -> None:
    assert utf8(b"a") == "a"
    with pytest.raises(GatewayError, match=r"\(byte 1\)"):
        utf8(b"a\xff")


@pytest.mark.parametrize(
    ("body", "lone"),
    [
        (b'"\\ud800"', True),
        (b'"\\uD800"', True),
        (b'"\\uD83D\\uDE00"', False),
        (b'"\\ud83d\\ude00"', False),
        (b'"a"', False),
        (b'"\\\\ud800"', False),
        (b"[" * 100_000 + b'"\\ud800"', True),
    ],
    ids=lambda each: str(each)[:20],
)
def test_half_of_a_pair_is_seen_in_either_case_of_letters(body: bytes, lone: bool) -> None:
    assert lone_surrogate(body) is lone


def test_json_inside_a_string_is_read_with_numbers_as_they_are_written() -> None:
    assert read_leniently('{"a": 1.50, "a": 10}') == [("a", "1.50"), ("a", "10")]
    with pytest.raises(ValueError, match="Expecting value"):
        read_leniently("x")


Reader = Callable[[Any], Any]


@pytest.mark.parametrize(
    ("reader", "value", "read_as"),
    [
        (boolean, 2, None),
        (boolean, -1, None),
        (boolean, 0.5, None),
        (boolean, "ｔ", None),
        (boolean, "T", True),
        (boolean, "N", False),
        (boolean, "2", None),
        (integer, 2.0**53, None),
        (integer, 2.0**53 - 1, 2**53 - 1),
        (integer, -(2.0**53) + 1, 1 - 2**53),
        (integer, 1.5, None),
        (integer, float("inf"), None),
        (integer, True, 1),
        (integer, "9" * 18, 10**18 - 1),
        (integer, "9" * 19, None),
        (integer, "1." + "0" * 18, 1),
        (integer, "1." + "0" * 19, None),
        (integer, "\t7\n", 7),
        (integer, "\x0b7", None),
        (number, "\t.5\r", 0.5),
        (number, "\x0b.5", None),
        (number, "1" * 64, float("1" * 64)),
        (number, "1" * 65, None),
        (number, 3, 3.0),
    ],
)
def test_loose_types_are_read_within_bounds(reader: Reader, value: Any, read_as: Any) -> None:
    found = reader(value)
    assert found == read_as
    assert type(found) is type(read_as)


def test_a_request_without_a_prompt_or_with_one_that_nobody_reads_refers_to_nothing_or_to_all() -> None:
    assert not refers(decode("completions", b'{"prompt_embeds":"a"}'))
    api_request = decode("chat", b'{"messages":[]}')
    for broken in (b'[{"image_url":', b'[{"image_url":"\xff"}]', b'{"image_url":' + b"[" * 100_000):
        assert refers(msgspec.structs.replace(api_request, fields={"messages": Raw(broken)}))
    for plain in (
        b'[{"image_url":5}]',
        b'["image_url"]',
        b'[{"image_url":{"url":5}}]',
        b'[{"x_url":{"x":"http://a"}}]',
    ):
        assert not refers(msgspec.structs.replace(api_request, fields={"messages": Raw(plain)}))
    assert refers(
        msgspec.structs.replace(api_request, fields={"messages": Raw(b'[{"a":{"b":[{"c_url":"dat:"}]}}]')})
    )


@pytest.mark.parametrize(("candidates", "each"), [(0, 1), (4, 5), (-1, VOCABULARY)])
def test_an_answer_may_have_just_so_many_bytes(candidates: int, each: int) -> None:
    body = b'{"prompt":"","prompt_logprobs":%d' % candidates
    api_request = decode("completions", body + b" " * (-(len(body) + 1) % BYTES_A_TOKEN + 300) + b"}")
    tokens = len(api_request.body) // BYTES_A_TOKEN
    bound = tokens * each * BYTES_A_CANDIDATE
    assert not outgrows(api_request, bound)
    assert outgrows(api_request, bound - 1)


@pytest.mark.parametrize("given", [b"-2", b"null", b'"a"', b"1.5", b"[", b'"\xff"'])
def test_candidates_that_are_no_number_are_for_the_engine_to_judge(given: bytes) -> None:
    api_request = decode("completions", b'{"prompt":""}')
    assert not outgrows(msgspec.structs.replace(api_request, fields={"prompt_logprobs": Raw(given)}), 0)


def _depth(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


TEXTS = st.text(st.sampled_from('[]{}"\\n\x00é'), max_size=6)
VALUES = st.recursive(
    TEXTS | st.integers(0, 9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=40,
)


@pytest.mark.parametrize("passes", [0, 1, 2, 16])
@given(value=VALUES, deepest=st.integers(1, 6), ascii_only=st.booleans())
def test_depth_is_counted_whatever_is_in_the_strings(
    passes: int, value: Any, deepest: int, ascii_only: bool
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(document, "DEEPEST", deepest)
        monkeypatch.setattr(document, "_PASSES", passes)
        assert too_deep(body) == (_depth(value) > deepest)


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[[]]," * 99_999 + b"[]]",
        b"[" * 999 + b"[]," * 99_999 + b"[]" + b"]" * 999,
        b"[" + b'"[[",' * 99_999 + b"0]",
    ],
    ids=["wide", "deep and wide", "in strings"],
)
def test_what_is_wide_is_not_deep(body: bytes) -> None:
    assert not too_deep(body)
    assert too_deep(body.replace(b"[]", b"[" * 1000 + b"]" * 1000, 1)) == (b"[]" in body)


def test_too_deep_a_member_is_refused_whether_it_is_read_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "DEEPEST", 4)
    monkeypatch.setattr(document, "COUNTED", True)
    monkeypatch.setattr(openai, "COUNTED", True)
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        assert read(opening * 4 + b"1" + closing * 4) is not None
        decode("completions", b'{"prompt":"","x":%b1%b}' % (opening * 3, closing * 3))
        with pytest.raises(GatewayError, match="nested too deeply"):
            read(b"[1," + opening * 4 + b"1" + closing * 4 + b"]")
        with pytest.raises(GatewayError, match="nested too deeply"):
            decode("completions", b'{"prompt":"","x":%b1%b}' % (opening * 4, closing * 4))
    wide = b"[" + b"[]," * 50 + b'"[[[[[[[["]'
    assert len(read(wide)) == 51

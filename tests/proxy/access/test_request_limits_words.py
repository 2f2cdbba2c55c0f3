"""Sizes at their bounds, and in words: what is told of what is too much; numbers of bodies that pass through."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from proxy.access.request_limits import RequestLimits
from proxy.errors import Code, GatewayError
from proxy.wire.http.media_type import Media
from proxy.wire.openai import Endpoint, decode
from proxy.wire.raw_body import NONE, RawBody, generates, read_passed, takes_json_only
from tests.kit.forms import form_of, joined, part


def passed(**members: Any) -> RawBody:
    return read_passed(Media("json"), json.dumps(members).encode())


def refused(sizes: RequestLimits, endpoint: Endpoint = "chat", **fields: Any) -> GatewayError:
    with pytest.raises(GatewayError) as e:
        sizes.check(decode(endpoint, json.dumps({"messages": [], **fields}).encode()))
    return e.value


@pytest.mark.parametrize(
    ("sizes", "endpoint", "fields", "param", "says"),
    [
        (
            RequestLimits(messages=1),
            "chat",
            {"messages": [{}, {}]},
            "messages",
            "The request has 2 messages; at most 1 are allowed.",
        ),
        (
            RequestLimits(messages=1),
            "completions",
            {"prompt": ["a", "b"]},
            "prompt",
            "The request has 2 prompts; at most 1 are allowed.",
        ),
        (
            RequestLimits(messages=1),
            "embeddings",
            {"input": ["a", "b"]},
            "input",
            "The request has 2 inputs; at most 1 are allowed.",
        ),
        (
            RequestLimits(prompt_chars=1),
            "completions",
            {"prompt": "ab"},
            "prompt",
            "has 2 characters; at most 1 are allowed.",
        ),
        (RequestLimits(n=1), "chat", {"n": 2}, "n", "n is 2; at most 1 is allowed."),
        (
            RequestLimits(best_of=1),
            "completions",
            {"prompt": "", "best_of": 2},
            "best_of",
            "best_of is 2; at most 1 is allowed.",
        ),
        (
            RequestLimits(max_tokens=5, action="refuse"),
            "chat",
            {"n_predict": 6},
            "n_predict",
            "n_predict is 6; at most 5 is allowed.",
        ),
        (
            RequestLimits(max_tokens=5, action="refuse"),
            "chat",
            {},
            "max_tokens",
            "'max_tokens' is missing; send at most 5.",
        ),
        (RequestLimits(max_tokens=5), "chat", {"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1."),
        (
            RequestLimits(max_tokens=5),
            "completions",
            {"prompt": "", "n_predict": 0},
            "n_predict",
            "must be at least 1.",
        ),
        (RequestLimits(n=1), "chat", {"n": -1}, "n", "n must be a non-negative integer."),
    ],
)
def test_what_is_too_much_is_told(
    sizes: RequestLimits, endpoint: Endpoint, fields: Any, param: str, says: str
) -> None:
    error = refused(sizes, endpoint, **fields)
    assert (error.param, error.message.endswith(says)) == (param, True), error.message


def test_a_number_that_nobody_can_read_is_refused_as_none() -> None:
    for broken in (b"{", b'"\xff"', b"[" * 100_000):
        api_request = decode("chat", b'{"messages":[]}')
        api_request = msgspec.structs.replace(api_request, fields={**api_request.fields, "n": msgspec.Raw(broken)})
        with pytest.raises(GatewayError, match="n must be a non-negative integer"):
            RequestLimits(n=5).check(api_request)


def test_what_is_just_as_much_as_may_be_goes_on_untouched() -> None:
    sizes = RequestLimits(max_tokens=5, messages=2, n=2, best_of=2, prompt_chars=2)
    body = passed(messages=["a", "b"], n=2, best_of=2, max_tokens=5)
    assert sizes.check_raw("/v1/a/b", body) is body
    api_request = decode("chat", b'{"messages":[{"content":"a"},{"content":"b"}],"n":0,"max_tokens":5}')
    assert sizes.check(api_request) is api_request
    vectors = decode("embeddings", b'{"input":"ab"}')
    assert sizes.check(vectors) is vectors  # nothing is generated: no cap
    assert RequestLimits(prompt_chars=2).check_raw("/tokenize", body) is body
    assert not RequestLimits()
    assert all(
        (
            RequestLimits(n=1),
            RequestLimits(best_of=1),
            RequestLimits(messages=1),
            RequestLimits(prompt_chars=1),
            RequestLimits(max_tokens=1),
        )
    )


@pytest.mark.parametrize(
    ("members", "param"), [({"best_of": 3}, "best_of"), ({"n": 3}, "n"), ({"input": [1, 2, 3]}, "input")]
)
def test_bodies_that_pass_through_have_each_limit(members: dict[str, Any], param: str) -> None:
    sizes = RequestLimits(n=2, best_of=2, messages=2)
    with pytest.raises(GatewayError) as e:
        sizes.check_raw("/v1/a/b", passed(**members))
    assert e.value.param == param
    counted = passed(**members)
    assert sizes.check_raw("/tokenize", counted) is counted  # which generates nothing
    assert RequestLimits(max_tokens=9).check_raw("/v1/a/b", counted) is counted


def test_a_body_that_is_no_object_has_no_number_to_lower() -> None:
    listed = read_passed(Media("json"), b'["a"]')
    assert RequestLimits(max_tokens=5).check_raw("/v1/responses", listed) is listed


# What passes through


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (8, 8),
        ("8", 8),
        (8.0, 8),
        (True, None),
        (0, None),
        (-1, None),
        ("0", None),
        ("x", None),
        ([8], None),
        (1, 1),
    ],
)
def test_a_number_of_a_body(value: Any, number: int | None) -> None:
    assert passed(n=value).number("n") == number


@pytest.mark.parametrize(
    ("text", "number"),
    [("8", 8), ("0", None), ("", None), ("x", None), ("1" * 13, int("1" * 12)), ("\u0665", None), (" 8", 8)],
)
def test_a_number_of_a_form(text: str, number: int | None) -> None:
    form = read_passed(Media("form", b"x"), form_of(b"x", {"n": text}))
    assert form.number("n") == number
    assert form.number("m") is None


@pytest.mark.parametrize(
    ("messages", "count"), [([[], []], 2), ([[]], 1), ([], 1), ([[], {}], 1), ("x", 1), (None, 1)]
)
def test_conversations_of_a_batch(messages: Any, count: int) -> None:
    assert passed(messages=messages).conversations == count


@pytest.mark.parametrize(("fields", "model"), [({"model": "m"}, "m"), ({"model": ""}, None), ({"a": "b"}, None)])
def test_the_model_of_a_form(fields: dict[str, str], model: str | None) -> None:
    assert read_passed(Media("form", b"x"), form_of(b"x", fields)).model == model
    assert passed(**fields).model == fields.get("model")


def test_bodies_by_their_type() -> None:
    assert read_passed(None, b"x") is read_passed(Media("json"), b"") is NONE
    assert read_passed(Media("other"), b"x") == RawBody("other", b"x")
    assert (NONE.members, NONE.model, NONE.prompt()) == ({}, None, [])
    form = read_passed(Media("form", b"x"), form_of(b"x", {"model": "m"}))
    assert form.prompt() == ["model", "file", "m"]


def test_files_are_read_of_audio_alone_and_by_one_name() -> None:
    audio = read_passed(Media("form", b"x"), form_of(b"x", {"model": "m"}))
    assert "m" in audio.texts("/v1/audio/transcriptions")
    other = read_passed(Media("form", b"x"), joined(b"x", part("image", b"x", filename="a")))
    plain = read_passed(Media("form", b"x"), joined(b"x", part("a", b"b")))
    assert "b" in plain.texts("/v1/x")
    for form, path in ((audio, "/v1/x"), (other, "/v1/audio/transcriptions")):
        with pytest.raises(GatewayError, match="only 'file' of audio may be a file") as e:
            form.texts(path)
        assert e.value.code is Code.INVALID_VALUE


def test_numbers_are_changed_in_their_place() -> None:
    body = passed(a=1, n=2)
    assert body.with_numbers({}) is body
    changed = body.with_numbers({"n": 5, "m": 6})
    assert (changed.body, changed.members) == (b'{"a":1,"n":5,"m":6}', {"a": 1, "n": 5, "m": 6})
    form = read_passed(Media("form", b"x"), form_of(b"x", {"n": "2"})).with_numbers({"n": 5, "m": 6})
    assert (form.number("n"), form.number("m"), form.kind) == (5, 6, "form")


@pytest.mark.parametrize(
    ("path", "generated", "json_only"),
    [
        ("/tokenize/", False, True),
        ("/v1/rerank", False, True),
        ("/v1/completions/x", True, True),
        ("/invocations/", True, True),
        ("/version", False, False),
        ("/v1/audio/translations", True, False),
        ("/v1/chatty", True, False),
    ],
)
def test_what_is_known_of_a_path(path: str, generated: bool, json_only: bool) -> None:
    assert (generates(path), takes_json_only(path)) == (generated, json_only)

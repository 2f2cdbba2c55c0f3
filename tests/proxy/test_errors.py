"""The error family: one table, one rendering."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxy.errors import Code, GatewayError, frames_of, place_of, shutting_down, words_of

PROXY = Path(__file__).parents[2] / "proxy"


def test_every_code_has_a_name_of_its_own() -> None:
    assert len({code.code for code in Code}) == len(Code)


@pytest.mark.parametrize("code", list(Code), ids=lambda code: str(code.code))
def test_every_code_has_a_status_and_a_type_that_agree(code: Code) -> None:
    assert 400 <= code.status <= 599
    if code.status == 429:
        assert code.type == "rate_limit_error"
    elif code.status < 500:
        assert code.type == "invalid_request_error"
    elif code.code.startswith("upstream_"):
        assert code.status in (502, 504)
        assert code.type == "upstream_error"
        assert code.code.endswith("_timeout") is (code.status == 504)
    else:
        assert code.type == ("overloaded_error" if code.status == 503 else "server_error")


def test_the_error_of_a_gateway_that_ends_is_written_once() -> None:
    written = [path for path in PROXY.rglob("*.py") if "GatewayError(Code.SHUTTING_DOWN" in path.read_text()]
    assert written == [PROXY / "errors.py"]
    error, later = shutting_down(), shutting_down(retry_after=1)
    assert (error.code, error.message, error.retry_after) == (
        Code.SHUTTING_DOWN, "The gateway is shutting down.", None,
    )  # fmt: skip
    assert (later.message, later.retry_after) == (error.message, 1)


def test_an_error_is_rendered_as_openai_renders_its_own() -> None:
    error = GatewayError(Code.MISSING_FIELD, 'a "quoted" é\n', param="messages", retry_after=3)
    assert json.loads(error.json()) == {
        "error": {
            "message": 'a "quoted" é\n',
            "type": "invalid_request_error",
            "param": "messages",
            "code": "missing_field",
        }
    }
    assert b"\n" not in error.json()
    assert (error.status, error.retry_after, str(error)) == (400, 3, 'a "quoted" é\n')


def test_an_error_without_a_parameter_says_null() -> None:
    assert json.loads(GatewayError(Code.INTERNAL, "x").json())["error"]["param"] is None


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def deep(count: int) -> None:
    if count:
        deep(count - 1)
    "a prompt \udcff".encode()


def test_what_a_fault_says_is_cut_and_does_not_hold_the_text_that_it_is_about() -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        deep(100)
    assert "prompt" in repr(caught.value)
    assert "prompt" not in words_of(caught.value)
    assert words_of(caught.value).startswith("UnicodeEncodeError: 'utf-8' codec can't encode")
    assert len(words_of(ValueError("x" * 10**6))) == 300
    assert words_of(Mute()) == "Mute"
    places = frames_of(caught.value).split(" < ")
    assert len(places) == 8
    assert all(place.startswith("test_errors.py:") for place in places)
    assert frames_of(ValueError()) == ""


def test_a_place_and_its_frames_are_told_up_to_a_bound() -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        deep(3)
    places = frames_of(caught.value).split(" < ")
    assert [place.rpartition(" ")[2] for place in places[:4]] == ["deep"] * 4
    assert places[4].endswith(" test_a_place_and_its_frames_are_told_up_to_a_bound")
    assert place_of(caught.value) == places[0].partition(" ")[0]
    assert frames_of(caught.value, 2).split(" < ") == places[:2]
    assert (words_of(ValueError("abc"), 12), place_of(ValueError())) == ("ValueError: ", "")


def test_an_error_has_the_headers_that_it_is_given() -> None:
    assert GatewayError(Code.INTERNAL, "x").headers == ()
    assert GatewayError(Code.INTERNAL, "x", headers=(("allow", "GET"),)).headers == (("allow", "GET"),)
    assert (Code.NOT_FOUND.code, Code.NOT_FOUND.status, Code.NOT_FOUND.type) == Code.NOT_FOUND.value

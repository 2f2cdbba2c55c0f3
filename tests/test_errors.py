"""The error family: one table, one rendering."""

from __future__ import annotations

import json

import pytest

from proxy.errors import Code, GatewayError


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

"""What passes through to the engine: which paths, and which headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.server.handlers.relay import ACTED_ON, end_to_end_headers, engine_headers, is_allowed
from proxy.wire.http.target import Malformed, read_target


@pytest.mark.parametrize(
    ("raw", "through"),
    [
        ("/v1/models", True),
        ("/v1/audio/transcriptions", True),
        ("/v1/responses/resp_1?stream=true", True),
        ("/v1/models/meta-llama%2FLlama-3", True),
        ("/v1/files?after=../x", True),
        ("/v1/a..b", True),
        ("/v1/a%25b", True),
        ("/v1/a b", None),
        ("/v1/a%20b", True),
        ("/v1/%C3%A9;x", True),
        ("/v1/./models", True),
        ("/v1//models", True),
        ("/tokenize", True),
        ("/tokenize/", True),
        ("/v2/rerank?x=1", True),
        ("/v2/embed", True),
        ("/tokenizer", False),
        ("/v1", False),
        ("/v1/", False),
        ("/v2/models", False),
        ("/metrics", False),
        ("/sleep", False),
        ("/load_lora_adapter", False),
        ("/v1/load_lora_adapter", False),
        ("/v1/load_lora_adapter/", False),
        ("/v1//load_lora_adapter", False),
        ("/v1/x/../load_lora_adapter", False),
        ("/v1/load_lora_adapter;x", False),
        ("/v1/unload_lora_adapter?x=1", False),
        ("/v1/load%5Flora_adapter", False),
        ("/v1/load%255Flora_adapter", False),
        ("/v1/load_lora_adapter#?x", None),
        ("/v1/%2e%2e/metrics", False),
        ("/v1/../metrics", False),
        ("/v1/%252e%252e/metrics", False),
        ("/v1/x/..;/metrics", False),
        ("/v1/..%2fmetrics", False),
        ("/v1/..\\metrics", None),
        ("/v1/%5c..%5cmetrics", None),
        ("/v1/%255c..%255cmetrics", False),
        ("/v1/LOAD_lora_adapter", False),
        ("/v1/load_lora_adapter%3Fx", False),
        ("/v1/streams", False),
        ("/v1/streams/NAME/../", False),
        ("/v1/streams/NAME/", False),
        ("/v1/Streams/NAME", False),
        ("/v1/streams;x/NAME", False),
        ("/v1/%2573treams/NAME", False),
        ("/v1/streams%252fNAME", False),
        ("/v1/streams%20/NAME", False),
        ("/v1/streamsx/NAME", True),
        ("/v1/load_lora_adapter%23", False),
        ("/v1/load_lora_adapter%20", False),
        ("/v1/load_lora_adapter%C2%A0", False),
        ("/v1/load_lora_adapter%253Fx", False),
        ("/v1/load%25255Flora_adapter", False),
        ("/v1/%EF%BD%8Coad_lora_adapter", False),
        ("/v1/..%20/metrics", False),
        ("/v1/%EF%BC%8E%EF%BC%8E/metrics", False),
        ("/v1/%25252e%25252e/metrics", False),
        ("/v1/..%3f/metrics", False),
        ("/v1/responses/r", True),
        ("/v1/responses/r%2Fcancel", True),
        ("/v1/Responses/r", False),
        ("/v1/responses;x/r", False),
        ("/v1/responses%3Fa/r", False),
        ("/v1/responses%20/r", False),
        ("/v1/responses%252Fr", False),
        ("/v1/re%2573ponses/r", False),
        ("/v1/%EF%BD%92esponses/r", False),
        ("/v1/responsesx", True),
        ("/v1/what%3F", True),
        ("/v1/%E6%A8%A1%E5%9E%8B", True),
        ("/v1/a%0d%0ab", None),
        ("/v1/a%250d", False),
        ("/v1/a%00", None),
        ("/v1/a%1f", None),
        ("/v1/a%7e", True),
        ("/v1/a\r\nb", None),
        ("/v1/\u00e9", None),
        ("v1/models", None),
        ("", None),
    ],
)
def test_a_path_passes_only_where_nobody_could_read_another_in_it(raw: str, through: bool | None) -> None:
    if through is None:
        with pytest.raises(Malformed):
            read_target(raw)
    else:
        assert is_allowed(read_target(raw).path) is through


@pytest.mark.parametrize(
    ("name", "through"),
    [
        ("Accept", True),
        ("Content-Type", True),
        ("X-Custom", True),
        ("traceparent", True),
        ("Authorization", False),
        ("cookie", False),
        ("Host", False),
        ("Content-Length", False),
        ("Expect", False),
        ("Forwarded", False),
        ("X-Forwarded-For", False),
        ("x-forwarded-anything", False),
        ("X-Request-Id", False),
        ("x-gateway-share", False),
        ("Connection", False),
        ("Keep-Alive", False),
        ("Proxy-Authorization", False),
        ("Proxy-Connection", False),
        ("TE", False),
        ("Trailer", False),
        ("Transfer-Encoding", False),
        ("Upgrade", False),
        ("X-HTTP-Method-Override", False),
        ("X-Original-URL", False),
        ("X-Rewrite-Url", False),
        ("X-Host", False),
        ("True-Client-IP", False),
        ("Proxy", False),
    ],
)
def test_a_header_passes_unless_it_ends_here(name: str, through: bool) -> None:
    assert end_to_end_headers([(name.encode(), b"x")]) == ([(name, "x")] if through else [])


def test_a_header_that_connection_names_ends_here() -> None:
    headers = [(b"X-Hop", b"1"), (b"connection", b"close, x-HOP ,,"), (b"CONNECTION", b"X-Two"), (b"x-two", b"2")]
    assert end_to_end_headers([*headers, (b"X-End", b"3")]) == [("X-End", "3")]


def test_what_says_how_a_body_was_read_goes_with_it_whatever_connection_names() -> None:
    headers = [(b"Content-Type", b"application/json"), (b"Connection", b"close, content-type, Content-Encoding")]
    assert end_to_end_headers(headers) == [("Content-Type", "application/json")]


def test_repeated_headers_their_order_their_case_and_their_bytes_are_kept() -> None:
    headers = [(b"X-B", b"2"), (b"x-a", "é".encode()), (b"X-B", b"\xff"), (b"x-empty", b"")]
    passed = end_to_end_headers(headers)
    assert [name for name, _ in passed] == ["X-B", "x-a", "X-B", "x-empty"]
    assert [value.encode("utf-8", "surrogateescape") for _, value in passed] == [value for _, value in headers]


@given(st.dictionaries(st.sampled_from([*ACTED_ON, "authorization", "connection", "x"]), st.binary(max_size=9)))
def test_what_goes_up_of_a_shared_request_is_printable_whatever_came(given_: dict[str, bytes]) -> None:
    headers = {name: value.decode("utf-8", "surrogateescape") for name, value in given_.items()}
    try:
        sent = engine_headers(headers, (*ACTED_ON, "authorization"))
    except GatewayError as e:
        assert e.code is Code.INVALID_HEADER
        assert e.param in headers
        return
    assert all(value.isascii() and (value.isprintable() or not value) for _, value in sent)
    assert not any(name.startswith("trace") for name, _ in sent)  # no such bytes are a trace context


@pytest.mark.parametrize("name", ["x-session-id", "x-data-parallel-rank", "authorization"])
def test_a_header_that_an_engine_acts_on_goes_up_as_it_came(name: str) -> None:
    assert engine_headers({name: " a~1"}, (*ACTED_ON, "authorization")) == [(name, " a~1")]
    assert engine_headers({name: "\udcff", "connection": f"x, {name.title()}"}, (*ACTED_ON, "authorization")) == []
    assert engine_headers({"x": "1"}, ACTED_ON) == []


@pytest.mark.parametrize(
    "left_out",
    [{"connection": "x-session-id", "x-session-id": "1"}, {"traceparent": "no such"}],
    ids=["named", "odd"],
)
def test_a_header_that_is_left_out_takes_no_other_along(left_out: dict[str, str]) -> None:
    headers = left_out | {"x-data-parallel-rank": "2"}
    sent = engine_headers(headers, ("traceparent", "x-session-id", "x-data-parallel-rank"))
    assert sent == [("x-data-parallel-rank", "2")]

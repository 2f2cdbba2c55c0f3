"""The reading of heads, paths, openings and bodies at hand, each at its bounds and a step beyond."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion, HttpVersion10, HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.access.hosts import SHOWN, Hosts
from proxy.access.policy import returns_no_text
from proxy.errors import Code, GatewayError
from proxy.server.handlers.relay import (
    asks_for_websocket,
    end_to_end_headers,
    engine_headers,
    is_allowed,
    named_by_connection,
)
from proxy.server.listener.head import read_head
from proxy.server.listener.proxy_protocol import MAX_V1, MAX_V2, V2, ProxyHeader, parse_proxy_header
from proxy.server.listener.request import AT_HAND, buffered_body
from proxy.server.listener.timeouts import Times
from proxy.server.listener.unreadable import error_for, final_response
from proxy.wire.http.media_type import media_of, unread
from proxy.wire.http.target import KEPT_LENGTH, known_host, known_target
from tests.kit.clock import virtual


def message(
    method: str = "GET",
    path: str = "/x",
    version: HttpVersion = HttpVersion11,
    *,
    chunked: bool = False,
    host: str | None = "h",
    **fields: str,
) -> RawRequestMessage:
    pairs = [(name.replace("_", "-"), value) for name, value in fields.items()]
    headers = CIMultiDict(pairs if host is None else [("Host", host), *pairs])
    return cast(
        RawRequestMessage,
        SimpleNamespace(
            method=method, path=path, version=version, headers=CIMultiDictProxy(headers), chunked=chunked
        ),
    )


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (message(version=HttpVersion(0, 9)), Code.INVALID_VALUE, "must end with HTTP/1.1"),
        (message(version=HttpVersion(1, 2)), Code.HTTP_VERSION, "HTTP/1.2 is not supported"),
        (message(version=HttpVersion(2, 0)), Code.HTTP_VERSION, "HTTP/2.0 is not supported"),
        (message("GET", "*"), Code.INVALID_VALUE, "is for OPTIONS only"),
        (message("CONNECT", "/x"), Code.INVALID_VALUE, "Host"),
        (message(host=None), Code.INVALID_VALUE, "must have a Host"),
        (message("TRACE", chunked=True, transfer_encoding="chunked"), Code.INVALID_VALUE, "TRACE"),
        (message("TRACE", content_length="1"), Code.INVALID_VALUE, "TRACE"),
        (message(content_length="1x"), Code.INVALID_VALUE, "one number"),
        (message(content_length="\u0663"), Code.INVALID_VALUE, "one number"),
        (message(chunked=True), Code.INVALID_VALUE, "and nothing else"),
        (message(transfer_encoding="chunked"), Code.INVALID_VALUE, "and nothing else"),
        (message(chunked=True, transfer_encoding="gzip"), Code.INVALID_VALUE, "and nothing else"),
        (message(chunked=True, transfer_encoding="chunked", content_length="1"), Code.INVALID_VALUE, "not both"),
        (
            message(version=HttpVersion10, chunked=True, transfer_encoding="chunked"),
            Code.INVALID_VALUE,
            "HTTP/1.0 has no",
        ),
        (message(expect="x"), Code.EXPECTATION_FAILED, "100-continue"),
    ],
)
def test_a_head_that_no_rfc_allows_is_refused(given: RawRequestMessage, code: Code, words: str) -> None:
    with pytest.raises(GatewayError, match=words) as refused:
        read_head(given)
    assert refused.value.code is code


@pytest.mark.parametrize(
    ("given", "host"),
    [
        (message(), "h"),
        (message(version=HttpVersion10), "h"),
        (message(version=HttpVersion10, host=None), ""),
        (message("OPTIONS", "*"), "h"),
        (message("CONNECT", "other:1"), "other"),
        (message(path="http://Other:80/x"), "other"),
        (message("TRACE", content_length="0"), "h"),
        (message("TRACE"), "h"),
        (message("POST", chunked=True, transfer_encoding="Chunked"), "h"),
        (message("POST", content_length="12"), "h"),
        (message(expect="100-Continue"), "h"),
        (message(version=HttpVersion10, expect="x"), "h"),
    ],
)
def test_a_head_that_rfcs_allow_is_read(given: RawRequestMessage, host: str) -> None:
    assert read_head(given)[1] == host


def test_only_short_texts_are_kept() -> None:
    for cached, kept in ((known_target, "path"), (known_host, "host")):
        cached.cache_clear()
        for size, known in ((KEPT_LENGTH, 1), (KEPT_LENGTH + 1, 1)):
            text = ("/" if kept == "path" else "h") + "x" * (size - 1)
            read_head(message(path=text) if kept == "path" else message(host=text))
            assert cached.cache_info().currsize == known
        cached.cache_clear()


# -- a body at hand


def body_of(*pieces: bytes, eof: bool = True) -> StreamReader:
    protocol = cast(BaseProtocol, SimpleNamespace(_reading_paused=False, resume_reading=lambda **how: None))
    reader = StreamReader(protocol, 2**20, loop=asyncio.get_running_loop())
    for piece in pieces:
        reader.feed_data(piece)
    if eof:
        reader.feed_eof()
    return reader


@virtual
async def test_a_body_is_at_hand_where_all_of_it_has_come_and_it_is_small() -> None:
    assert buffered_body(EMPTY_PAYLOAD) == buffered_body(body_of()) == b""
    assert buffered_body(body_of(b"abc")) == buffered_body(body_of(b"a", b"bc")) == b"abc"
    assert buffered_body(body_of(b"abc"), 3) == b"abc"
    assert buffered_body(body_of(b"abc"), 2) is None
    assert buffered_body(body_of(b"a", b"bc"), 2) is None
    assert buffered_body(body_of(b"abc", eof=False)) is None
    assert buffered_body(body_of(b"x" * AT_HAND)) == b"x" * AT_HAND
    assert buffered_body(body_of(b"x" * AT_HAND, b"y")) is None
    broken = body_of(b"abc")
    broken.set_exception(ValueError("x"))
    assert buffered_body(broken) is None
    begun = body_of(b"abc")
    assert begun.read_nowait(1) == b"a"
    assert buffered_body(begun) == b"bc"


# -- openings


def test_an_opening_may_be_as_long_as_it_is_specified() -> None:
    line = b"PROXY UNKNOWN " + b"x" * (MAX_V1 - 16) + b"\r\n"
    assert len(line) == MAX_V1
    assert parse_proxy_header(line) == ProxyHeader("", MAX_V1)
    assert parse_proxy_header(line[:-2]) is parse_proxy_header(line[:-1]) is None
    for wrong in (line[:-2] + b"xx", line[:-2] + b"x\r\n"):
        with pytest.raises(ValueError, match="does not end"):
            parse_proxy_header(wrong)
    head = V2 + b"\x21\x31" + (MAX_V2 - 16).to_bytes(2, "big")
    assert parse_proxy_header(head + bytes(MAX_V2 - 16)) == ProxyHeader("", MAX_V2)
    assert parse_proxy_header(head + bytes(MAX_V2 - 17)) is None
    with pytest.raises(ValueError, match="malformed"):
        parse_proxy_header(V2 + b"\x21\x31" + (MAX_V2 - 15).to_bytes(2, "big"))
    assert parse_proxy_header(b"PROXY TCP4 1.2.3.4 1.2.3.4 00080 1\r\n") == ProxyHeader("1.2.3.4", 36)
    for ports in ("000080 1", "1 65536", "1 \u00b2"):
        with pytest.raises(ValueError, match="malformed"):
            parse_proxy_header(f"PROXY TCP4 1.2.3.4 1.2.3.4 {ports}\r\n".encode())


# -- what passes


@pytest.mark.parametrize(
    ("path", "through"),
    [
        ("/v1/a%20b", True),
        ("/v1/a%1fb", False),
        ("/v1/a%7fb", False),
        ("/v1/a%7eb", True),
        ("/v1/a%80b", True),
        ("/v1/a;b//c", False),
        ("/v1/a%2fb", True),
        ("/v1/%2f%2fb", False),
        ("/v1/a %3fb", True),
        ("/v1/load_lora_adapter%3b/x", False),
        ("/v1/UNLOAD_lora_adapter ", False),
        ("/version", True),
        ("/version/x", False),
    ],
)
def test_what_another_server_could_decode_once_more(path: str, through: bool) -> None:
    assert is_allowed(path) is through


def test_paths_whose_answers_hold_no_text() -> None:
    assert returns_no_text("/tokenize")
    assert not returns_no_text("/detokenize")
    assert not returns_no_text("/detokenize/")
    assert not returns_no_text("/v1/responses")


def test_a_websocket_is_asked_for_by_its_key_or_by_the_upgrade() -> None:
    assert asks_for_websocket({"sec-websocket-key": "x"})
    assert asks_for_websocket({"upgrade": "h2c, WebSocket"})
    assert not asks_for_websocket({"upgrade": "h2c"})
    assert not asks_for_websocket({})
    assert named_by_connection("Close, X-a ,,") == {"close", "x-a", ""}


PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NAMES = ("traceparent", "tracestate", "x-session-id")


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({"traceparent": PARENT}, ["traceparent"]),
        ({"traceparent": PARENT, "tracestate": "a=b"}, ["traceparent", "tracestate"]),
        ({"traceparent": PARENT, "tracestate": "\u00e9"}, ["traceparent"]),
        ({"tracestate": "a=b"}, []),
        ({"traceparent": "x", "tracestate": "a=b"}, []),
        ({"traceparent": PARENT, "tracestate": "a=b", "connection": "tracestate"}, ["traceparent"]),
        ({"traceparent": PARENT, "tracestate": "a=b", "connection": "traceparent"}, []),
        ({"x-session-id": "a", "connection": "close"}, ["x-session-id"]),
    ],
)
def test_a_trace_context_goes_up_where_it_is_one(headers: dict[str, str], sent: list[str]) -> None:
    assert [name for name, _ in engine_headers(headers, NAMES)] == sent


def test_what_is_no_text_for_an_engine_is_refused_by_its_name() -> None:
    with pytest.raises(GatewayError, match="x-session-id must be printable ASCII") as refused:
        engine_headers({"x-session-id": "\u00e9"}, NAMES)
    assert (refused.value.code, refused.value.param) == (Code.INVALID_HEADER, "x-session-id")


def test_a_credential_passes_only_where_that_is_meant() -> None:
    headers = [
        (b"Authorization", b"x"),
        (b"X-Api-Key", b"y"),
        (b"a_b", b"1"),
        (b"x-envoy-a", b"1"),
        (b"X-A", b"2"),
    ]
    assert end_to_end_headers(headers) == [("X-A", "2")]
    passed = [("Authorization", "x"), ("X-Api-Key", "y"), ("X-A", "2")]
    assert end_to_end_headers(headers, authorization=True) == passed
    named = [*headers, (b"Connection", b"authorization, x-api-key")]
    assert end_to_end_headers(named, authorization=True) == [("X-A", "2")]


# -- smaller ones


def test_who_is_brought_by_a_balancer_is_asked_for_no_host() -> None:
    hosts = Hosts("127.0.0.1", ())
    hosts.check("evil.example", brought="1.2.3.4")
    assert hosts.known == {""}
    hosts.check("localhost")
    assert hosts.known == {"", "localhost"}
    with pytest.raises(GatewayError) as refused:
        hosts.check("x" * (SHOWN + 1))
    assert repr("x" * SHOWN) in refused.value.message


@pytest.mark.parametrize(
    ("times", "every"),
    [(Times(head=0.4), 0.1), (Times(stall=0.4), 0.1), (Times(closing=0.4), 0.1), (Times(), 1.0)],
)
def test_each_time_is_looked_at_four_times(times: Times, every: float) -> None:
    assert times.every == pytest.approx(every)


def test_a_type_is_shown_up_to_a_length() -> None:
    head = cast(Any, CIMultiDictProxy(CIMultiDict([("content-type", "text/" + "x" * 500)])))
    with pytest.raises(GatewayError) as refused:
        media_of(head, json_only=False)
    assert len(refused.value.message) < 300
    assert "/v1/x takes application/json" in unread("/v1/x").message
    assert dict(unread("/v1/x").headers) == {"accept": "application/json, multipart/form-data"}


@pytest.mark.parametrize(
    ("words", "status"),
    [("Invalid HTTP version", 400), ("HTTP/1.2", 400), ("Invalid HTTP version: HTTP/1.7", 505), ("headers", 400)],
)
def test_a_version_is_refused_as_one_where_it_is_of_http_1(words: str, status: int) -> None:
    assert error_for(BadHttpMessage(words), 9, proxied=False).status == status


def test_an_answer_that_says_no_time_has_no_retry_after() -> None:
    assert b"retry-after" not in final_response(GatewayError(Code.NOT_FOUND, "x"))
    assert b"retry-after: 0\r\n" in final_response(GatewayError(Code.QUEUE_FULL, "x", retry_after=0))
